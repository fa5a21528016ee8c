"""Drawing samples from a trained network, on all devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zsnr_jax import parallel, predictions, preemption, randomness, samplers, signal_leak
from zsnr_jax.guidance import ConditionalNetwork
from zsnr_jax.predictions import StatefulDenoise
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.randomness import Purpose
from zsnr_jax.signal_leak import SignalLeak

# (network with a condition, condition, negative condition) -> what samplers take for a denoise
Guidance = Callable[[ConditionalNetwork, Any, Any], StatefulDenoise]


class Sampling(NamedTuple):
    """How samples are drawn."""

    sampler: samplers.Sampler
    coefficients: samplers.Coefficients  # of its S steps
    guidance: Guidance


class Generator:
    """Draws samples of conditions in batches of one shape, so that each program compiles once.

    A sample depends on the seed, its condition and its number, not on the batch or the device it
    was drawn in.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        process: DiffusionProcess,
        sampling: Sampling,
        *,
        negative: Any,
        shape: tuple[int, int, int],
        batch_size: int,
        seed: int,
        placement: parallel.Placement,
        encode: Callable[[Any, Any], Any] = lambda frozen, condition: condition,
        prepare: Callable[[Any, Any], Any] = lambda params, encoded: encoded,
        decode: Callable[[Any, jax.Array], jax.Array] = lambda frozen, x: x,
        leak: SignalLeak | None = None,
    ):
        """Bind what is the same for all samples.

        Args:
          network: (params, x_t, timestep, condition) -> output.
          negative: what guidance moves away from, where nothing else is said; like one condition.
          shape: of an x_t.
          batch_size: of all devices; rounded up to what they share evenly.
          encode: (frozen, conditions) -> what the network takes for a condition.
          prepare: (params, encoded) -> the same for all steps, with what they have in common done.
          decode: (frozen, x_0) -> images.
          leak: arrays [number of labels, ...], of the data of each, for a start that is not noise.
        """
        self._network = network
        self._process = process
        self._sampling = sampling
        self._negative = negative
        self._shape = shape
        self._placement = placement
        self._encode, self._prepare, self._decode = encode, prepare, decode
        self.batch_size = parallel.round_up(batch_size, placement.num_devices)
        self._key = functools.partial(randomness.purpose_key, seed)
        self._leak = leak
        self._plain = placement.draw(self.draw_plain)
        self._guided = placement.draw(self.draw_guided)

    def __call__(
        self,
        params: Any,
        conditions: np.ndarray,
        guided: bool = False,
        negatives: np.ndarray | None = None,
        frozen: Any = (),
    ) -> np.ndarray:
        """Draw one sample for each condition; every host gets all of them.

        Args: params: of the network; conditions: int [n, ...], labels say; guided: use the
          sampling's guidance, or the conditional output alone (scale 1), whose distribution is the
          data's own; negatives: like conditions; frozen: of `encode` and `decode`.
        Returns: float32 [n, H, W, C]; data lie in [-1, 1], samples may pass it slightly.
        """
        return np.concatenate([*self.batches(params, conditions, guided, negatives, frozen)])

    def batches(
        self,
        params: Any,
        conditions: np.ndarray,
        guided: bool = False,
        negatives: np.ndarray | None = None,
        frozen: Any = (),
    ) -> Iterator[np.ndarray]:
        """The same, batch by batch, for samples that would fill the host's memory."""
        n = len(conditions)
        size = min(self.batch_size, parallel.round_up(n, self._placement.num_devices))
        conditions = np.asarray(conditions, np.int32)
        if negatives is None:
            negatives = np.broadcast_to(np.asarray(self._negative, np.int32), conditions.shape)
        order = np.arange(-(-n // size) * size)  # the last batch is filled up from the first
        rows = (conditions[order % n], negatives[order % n], order.astype(np.int32))
        weights = self._placement.gather(params), self._placement.gather(frozen)
        shared = weights, self._sampling.coefficients
        draw = self._guided if guided else self._plain
        quiet = not parallel.is_first_host()
        starts = range(0, len(order), size)
        for i in tqdm(starts, desc="sampling", unit="batch", leave=False, disable=quiet):
            if i:  # not before the first: training draws one batch, and ends where it can save
                preemption.check("sampling")
            batch = jax.tree.map(lambda x: x[i : i + size], rows)  # noqa: B023
            yield draw(shared, batch)[: n - i]

    def start(self, labels: Any, index: Any) -> jax.Array:
        """What samples of `labels`, number `index`, int32 [n], start from: float32 [n, H, W, C]."""
        noise = randomness.row_normal(self._key(Purpose.START), 0, index, self._shape)
        if self._leak is None:
            return noise
        leak_noise = randomness.row_normal(self._key(Purpose.LEAK), 0, index, self._shape)
        first = self._sampling.coefficients.level[0]
        alpha, sigma = (side[first] for side in self._process.noise_schedule)
        leaks = jax.tree.map(lambda of_labels: jnp.asarray(of_labels)[labels], self._leak)

        def one(leak: SignalLeak, noise: jax.Array, leak_noise: jax.Array) -> jax.Array:
            return signal_leak.start(leak, noise[None], leak_noise[None], alpha, sigma)[0]

        return jax.vmap(one)(leaks, noise, leak_noise)

    def draw_plain(self, shared: Any, rows: Any) -> jax.Array:
        """The program of unguided samples: ((params, frozen), path), rows -> images."""
        ((params, frozen), path), (conditions, _, index) = shared, rows
        condition = self._prepare(params, self._encode(frozen, conditions))
        denoise = predictions.make_denoise(
            lambda x_t, timestep: self._network(params, x_t, timestep, condition),
            self._process.noise_schedule,
            self._process.prediction,
        )
        return self._integrate(denoise, frozen, path, conditions, index)

    def draw_guided(self, shared: Any, rows: Any) -> jax.Array:
        """The program of guided samples; arguments as of `draw_plain`."""
        ((params, frozen), path), (conditions, negatives, index) = shared, rows
        denoise = self._sampling.guidance(
            lambda x_t, timestep, condition: self._network(params, x_t, timestep, condition),
            self._prepare(params, self._encode(frozen, conditions)),
            self._prepare(params, self._encode(frozen, negatives)),
        )
        return self._integrate(denoise, frozen, path, conditions, index)

    def _integrate(
        self, denoise: Any, frozen: Any, path: Any, conditions: Any, index: Any
    ) -> jax.Array:
        sampler = self._sampling.sampler
        key = self._key(Purpose.SAMPLE) if sampler.stochastic else None
        x_T = self.start(conditions, index)
        return self._decode(frozen, samplers.integrate(sampler, denoise, x_T, path, key, index))


def spread_labels(labels: np.ndarray, num_samples: int) -> np.ndarray:
    """Labels in the proportions of the data's, evenly: int [num_samples] from int [n]."""
    ordered = np.sort(labels)
    return ordered[np.arange(num_samples) * len(ordered) // num_samples]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, clipped, for pictures."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
