"""Drawing samples from a trained network, on all devices of this host."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zsnr_jax import guidance, parallel, predictions, randomness, samplers
from zsnr_jax.process import DiffusionProcess


class Sampling(NamedTuple):
    """How samples are drawn."""

    sampler: samplers.Sampler
    timesteps: np.ndarray  # int32 [S]
    guidance_scale: float
    guidance_rescale: float


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
        null_label: int,
        image_shape: tuple[int, int, int],
        batch_size: int,
        seed: int,
    ):
        """network: (params, x_t, timestep, label) -> output; devices may round batch_size up."""
        self._network = network
        self._process = process
        self._sampling = sampling
        self._null_label = null_label
        self._image_shape = image_shape
        self.batch_size = parallel.round_up(batch_size)
        self._coefficients = samplers.coefficients(
            sampling.sampler, process.noise_schedule, sampling.timesteps
        )
        self._keys = (
            randomness.purpose_key(seed, randomness.Purpose.START),
            randomness.purpose_key(seed, randomness.Purpose.SAMPLE),
        )
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
        strength = (self._sampling.guidance_scale, self._sampling.guidance_rescale)
        shared = (params, self._coefficients, self._keys, np.array(strength, np.float32))
        draw = self._guided if guided else self._plain
        starts = tqdm(range(0, len(padded), size), desc="sampling", unit="batch", leave=False)
        batches = [draw(shared, (padded[i : i + size], index[i : i + size])) for i in starts]
        return np.concatenate(batches)[:n]

    def _draw_plain(self, shared: Any, rows: Any) -> jax.Array:
        params, coefficients, keys, _ = shared
        labels, index = rows
        return self._integrate(
            lambda x_t, timestep: self._network(params, x_t, timestep, labels),
            coefficients, keys, index,
        )  # fmt: skip

    def _draw_guided(self, shared: Any, rows: Any) -> jax.Array:
        params, coefficients, keys, (scale, rescale) = shared
        labels, index = rows
        network = guidance.guide_network(
            lambda x_t, timestep, label: self._network(params, x_t, timestep, label),
            labels, jnp.full_like(labels, self._null_label), scale, rescale,
        )  # fmt: skip
        return self._integrate(network, coefficients, keys, index)

    def _integrate(self, network: Any, coefficients: Any, keys: Any, index: Any) -> jax.Array:
        start_key, sample_key = keys
        x_T = randomness.row_normal(start_key, 0, index, self._image_shape)
        denoise = predictions.make_denoise(
            network, self._process.noise_schedule, self._process.prediction
        )
        sampler = self._sampling.sampler
        key = samplers.needed_key(sampler, self._coefficients, sample_key)
        return samplers.integrate(sampler, denoise, x_T, coefficients, key, index)


def spread_labels(labels: np.ndarray, num_samples: int) -> np.ndarray:
    """Labels in the proportions of the data's, evenly: int [num_samples] from int [n]."""
    ordered = np.sort(labels)
    return ordered[np.arange(num_samples) * len(ordered) // num_samples]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, clipped, for pictures."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
