"""Drawing samples from a trained network, on all devices of this host."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zsnr_jax import parallel, predictions, randomness, samplers, signal_leak
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
    """Draws labelled samples in batches of one shape, so that each program compiles once.

    A sample depends on the seed, its label and its number, not on the batch or the device it was
    drawn in.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        process: DiffusionProcess,
        sampling: Sampling,
        *,
        negative_label: int,
        image_shape: tuple[int, int, int],
        batch_size: int,
        seed: int,
        leak: SignalLeak | None = None,
    ):
        """network: (params, x_t, timestep, label) -> output; devices may round batch_size up.

        leak: arrays [number of labels, ...], of the data of each, for a start that is not noise.
        """
        self._network = network
        self._process = process
        self._sampling = sampling
        self._negative_label = negative_label
        self._image_shape = image_shape
        self.batch_size = parallel.round_up(batch_size)
        self._key = functools.partial(randomness.purpose_key, seed)
        self._leak = leak
        self._plain = parallel.parallel_rows(self._draw_plain)
        self._guided = parallel.parallel_rows(self._draw_guided)

    def __call__(self, params: Any, labels: np.ndarray, guided: bool = False) -> np.ndarray:
        """Draw one sample for each label.

        Args: params: of the network; labels: int [n]; guided: use the sampling's guidance, or the
          conditional output alone (scale 1), whose distribution is the data's own.
        Returns: float32 [n, H, W, C]; data lie in [-1, 1], samples may pass it slightly.
        """
        n, size = len(labels), self.batch_size
        padded = np.resize(np.asarray(labels, np.int32), -(-n // size) * size)
        index = np.arange(len(padded), dtype=np.int32)
        shared = (params, self._sampling.coefficients)
        draw = self._guided if guided else self._plain
        starts = tqdm(range(0, len(padded), size), desc="sampling", unit="batch", leave=False)
        batches = [draw(shared, (padded[i : i + size], index[i : i + size])) for i in starts]
        return np.concatenate(batches)[:n]

    def start(self, labels: Any, index: Any) -> jax.Array:
        """What samples of `labels`, number `index`, int32 [n], start from: float32 [n, H, W, C]."""
        noise = randomness.row_normal(self._key(Purpose.START), 0, index, self._image_shape)
        if self._leak is None:
            return noise
        leak_noise = randomness.row_normal(self._key(Purpose.LEAK), 0, index, self._image_shape)
        first = self._sampling.coefficients.level[0]
        alpha, sigma = (side[first] for side in self._process.noise_schedule)
        leaks = jax.tree.map(lambda of_labels: jnp.asarray(of_labels)[labels], self._leak)

        def one(leak: SignalLeak, noise: jax.Array, leak_noise: jax.Array) -> jax.Array:
            return signal_leak.start(leak, noise[None], leak_noise[None], alpha, sigma)[0]

        return jax.vmap(one)(leaks, noise, leak_noise)

    def _draw_plain(self, shared: Any, rows: Any) -> jax.Array:
        (params, coefficients), (labels, index) = shared, rows
        denoise = predictions.make_denoise(
            lambda x_t, timestep: self._network(params, x_t, timestep, labels),
            self._process.noise_schedule,
            self._process.prediction,
        )
        return self._integrate(denoise, coefficients, labels, index)

    def _draw_guided(self, shared: Any, rows: Any) -> jax.Array:
        (params, coefficients), (labels, index) = shared, rows
        denoise = self._sampling.guidance(
            lambda x_t, timestep, label: self._network(params, x_t, timestep, label),
            labels,
            jnp.full_like(labels, self._negative_label),
        )
        return self._integrate(denoise, coefficients, labels, index)

    def _integrate(self, denoise: Any, coefficients: Any, labels: Any, index: Any) -> jax.Array:
        sampler = self._sampling.sampler
        key = self._key(Purpose.SAMPLE) if sampler.stochastic else None
        x_T = self.start(labels, index)
        return samplers.integrate(sampler, denoise, x_T, coefficients, key, index)


def spread_labels(labels: np.ndarray, num_samples: int) -> np.ndarray:
    """Labels in the proportions of the data's, evenly: int [num_samples] from int [n]."""
    ordered = np.sort(labels)
    return ordered[np.arange(num_samples) * len(ordered) // num_samples]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, clipped, for pictures."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
