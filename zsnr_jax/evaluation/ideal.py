"""The best that any network could do: the optimal denoiser of a finite dataset, in closed form.

    E[x0 | x_t] = sum_i w_i x_i,    w = softmax_i((alpha <x_t, x_i> - alpha^2 |x_i|^2/2) / sigma^2)

Sampling with it separates the recipe (schedule, timesteps, sampler) from the network: what it
cannot reach, no training will. At SNR = 0 all weights are equal, so it predicts the mean of the
data whatever the noise. And for the mean brightness alone there is a law with three numbers in
it, `one_mode_law`.

Source: derived here; arXiv 2305.08891, section 5.2, describes the mean at T in words.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import samplers
from zsnr_jax.errors import UsageError
from zsnr_jax.predictions import Denoise
from zsnr_jax.schedules import NoiseSchedule

_DDIM = samplers.ddim()
_EXACT = jax.lax.Precision.HIGHEST  # matrix units would round the inner products to bfloat16
_MAX_BATCH = 256


def make_ideal_denoise(
    images: jax.Array | np.ndarray,
    schedule: NoiseSchedule,
    mask: jax.Array | np.ndarray | None = None,
) -> Denoise:
    """The optimal denoiser of equally likely images, in the convention of `samplers`.

    Args:
      images: [n, ...], the whole dataset, in [-1, 1].
      schedule: T + 1 levels; may be traced.
      mask: bool [n], False where a row is padding; at least one is True. Default: all True.
    Returns: denoise(x_t [B, ...], level, an int32 scalar in 1..T) -> (x0_hat, eps_hat), float32.
    At SNR = 0, x0_hat is the mean of the images, the same bits for every x_t, and eps_hat is x_t.
    """
    mask = jnp.ones(len(images), bool) if mask is None else jnp.asarray(mask)
    flat = jnp.asarray(images, jnp.float32).reshape(len(images), -1)
    mean = jnp.sum(flat, axis=0, where=mask[:, None], keepdims=True) / jnp.sum(mask)
    # Around the mean the weights are the same, and the rounding of large inner products smaller.
    centred = jnp.where(mask[:, None], flat - mean, 0.0)
    half_norms = jnp.sum(centred**2, axis=1)[None] / 2
    alphas, sigmas = jnp.asarray(schedule.alpha), jnp.asarray(schedule.sigma)

    def denoise(x_t: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha, sigma = alphas[level], sigmas[level]
        x = x_t.reshape(len(x_t), -1).astype(jnp.float32)
        inner = jnp.matmul(x - alpha * mean, centred.T, precision=_EXACT)
        logits = jnp.where(mask[None], alpha * (inner - alpha * half_norms) / sigma**2, -jnp.inf)
        x0_hat = mean + jnp.matmul(jax.nn.softmax(logits), centred, precision=_EXACT)
        eps_hat = (x - alpha * x0_hat) / sigma
        return x0_hat.reshape(x_t.shape), eps_hat.reshape(x_t.shape)

    return denoise


def ideal_samples(
    images: np.ndarray,
    labels: np.ndarray,
    schedule: NoiseSchedule,
    timesteps: np.ndarray,
    sample_labels: np.ndarray,
    x_T: np.ndarray | jax.Array,
    sampler: samplers.Sampler = _DDIM,
    key: jax.Array | None = None,
    final_level: int = 0,
) -> np.ndarray:
    """Sample with the ideal denoiser of each label's images.

    Args:
      images, labels: the dataset, [n, ...] in [-1, 1] and int [n].
      schedule, timesteps: the recipe; timesteps as `timesteps.make_timesteps` gives them.
      sample_labels: int [m], the label of each sample; each must occur in the data.
      x_T: [m, ...], the start: standard normal noise.
      sampler: the update rule.  key: for a stochastic one.
      final_level: the level samples end at; 0 is clean data.
    Returns: float32 [m, ...], close to images of the dataset: they judge the recipe, not novelty.
    Raises: UsageError for a sample label without data, or a stochastic sampler without a key.
    """
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    sample_labels, x_T = np.asarray(sample_labels), np.asarray(x_T, np.float32)
    if missing := sorted(set(sample_labels.tolist()) - set(labels.tolist())):
        raise UsageError(f"labels {missing} are to be sampled, and the data has no images of them.")
    path = samplers.coefficients(sampler, schedule, timesteps, final_level)
    key = key if sampler.stochastic else None  # drawing noise only to multiply it by 0 takes time
    wanted, counts = np.unique(sample_labels, return_counts=True)
    batch = min(int(counts.max(initial=0)), _MAX_BATCH)
    size = max((int(np.sum(labels == label)) for label in wanted), default=0)
    samples = np.empty_like(x_T)
    for label in wanted:
        group, mask = _pad(images[labels == label], size)
        rows = np.flatnonzero(sample_labels == label)
        for some in np.split(rows, range(batch, len(rows), batch)):
            # Padded to one shape, and by repeated rows, so that all of it compiles once.
            index = np.resize(some, batch)
            x = _integrate(sampler, group, mask, schedule, path, x_T[index], key, index)
            samples[some] = np.asarray(x)[: len(some)]
    return samples


class OneModeLaw(NamedTuple):
    """What a perfect network makes of brightness when it starts from N(0, I)."""

    q: float  # SNR(T) N tau^2, the signal-to-noise ratio of the mean at T; 0 is right
    std_ratio: float  # standard deviation of brightness over the data's, given the label
    mean_recovery: float  # the part of the label's mean brightness that comes through


def one_mode_law(schedule: NoiseSchedule, num_values: int, tau: float) -> OneModeLaw:
    """Predict the loss of brightness from the schedule's end alone (exact ODE, no network).

    q = SNR(T) N tau^2,   std ratio = 1 / (sigma_T sqrt(1 + q)),   recovery = 1 - sqrt(q / (1 + q))

    Brightness is one Gaussian mode here: what varies is the mean of N values, with standard
    deviation tau, and unit noise in every value.

    Args:
      schedule: only its end counts.
      num_values: N, over which the mean is taken: H W for a channel by itself, H W C where the
        channels rise and fall together, as they do in mean brightness.
      tau: standard deviation of that mean given the label.
    At SNR(T) = 0, q is 0 and both ratios are exactly 1.
    """
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    q = (alpha / sigma) ** 2 * num_values * float(tau) ** 2
    return OneModeLaw(q, 1 / (sigma * math.sqrt(1 + q)), 1 - math.sqrt(q / (1 + q)))


@functools.partial(jax.jit, static_argnums=0)
def _integrate(
    sampler: samplers.Sampler,
    images: jax.Array,
    mask: jax.Array,
    schedule: NoiseSchedule,
    path: samplers.Coefficients,
    x_T: jax.Array,
    key: jax.Array | None,
    index: jax.Array,
) -> jax.Array:
    denoise = make_ideal_denoise(images, schedule, mask)
    return samplers.integrate(sampler, denoise, x_T, path, key, index)


def _pad(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n, ...] with zeros put after them, [size, ...], and which are real, bool [size]."""
    zeros = np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)
    return np.concatenate([rows, zeros]), np.arange(size) < len(rows)
