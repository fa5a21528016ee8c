"""Signal-leak start: give a flawed model the start it was trained on, without training anything.

Where SNR(T) > 0, training ended at alpha_T x0 + sigma_T eps, and sampling starts from eps alone.
What is missing is a picture, of which only the coarse shape and the colours outlast the noise. So
sampling starts from

    x_T = alpha_T leak + sigma_T noise,     leak = mean + low + rest

with a leak drawn from a distribution that is fitted to the data: `low` is made of the lowest
frequencies of a cosine transform, over all channels jointly Gaussian; `rest` is what they leave,
each pixel a Gaussian by itself, of which the low frequencies are taken out once more.

Where alpha is 0 the start is the noise, bit for bit: with zero terminal SNR there is no leak, and
this does nothing. Elsewhere it mends the start and not the schedule, and it needs statistics of the
data, and of each class or prompt its own, where the paper's fixes need none.

Source: Everaert et al., "Exploiting the Signal-Leak Bias in Diffusion Models" (arXiv 2309.15842);
how low and rest are kept apart is our choice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from zsnr_jax.errors import UsageError
from zsnr_jax.predictions import add_noise

_EXACT = jax.lax.Precision.HIGHEST  # matrix units would round to bfloat16


class SignalLeak(NamedTuple):
    """The fitted distribution: a pytree of float32 arrays, whose shapes tell K, H, W and C."""

    mean: np.ndarray  # [H, W, C], the mean image
    low: np.ndarray  # [K, K, C, K, K, C], symmetric root of the low frequencies' covariance
    rest: np.ndarray  # [H, W, C], standard deviation of what the low frequencies leave


def fit(images: np.ndarray, num_frequencies: int) -> SignalLeak:
    """Fit the distribution of the leak to data, on the host, in float64.

    Args:
      images: [n, H, W, C], in [-1, 1], n >= 1. Fewer images than the K^2 C low coefficients are
        no failure: the leak then varies as they do, and in no other direction.
      num_frequencies: K, the low frequencies per side, from 0 to the smaller of H and W. 0 is
        every pixel by itself, for data of one style; 1 is the mean of each channel besides.
    Returns: the distribution, with the data's mean and the covariance of their low frequencies.
    Raises: UsageError for an empty array, one of another rank, or a K out of range.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not images.size:
        raise UsageError(f"images must be [n, H, W, C], and their shape is {images.shape}.")
    if not 0 <= num_frequencies <= min(images.shape[1:3]):
        raise UsageError(
            f"num_frequencies must be from 0 to {min(images.shape[1:3])}, the smaller side of the "
            f"images, and it is {num_frequencies}."
        )
    mean = images.mean(axis=0, dtype=np.float64)
    centred = images - mean
    rows, columns = (_cosines(size, num_frequencies) for size in images.shape[1:3])
    low = np.einsum("kh,nhwc,lw->nklc", rows, centred, columns, optimize=True)
    rest = centred - np.einsum("kh,nklc,lw->nhwc", rows, low, columns, optimize=True)
    return SignalLeak(*(x.astype(np.float32) for x in (mean, _root(low), rest.std(axis=0))))


def start(
    leak: SignalLeak,
    noise: jax.Array,
    leak_noise: jax.Array,
    alpha: jax.typing.ArrayLike,
    sigma: jax.typing.ArrayLike,
) -> jax.Array:
    """Draw leaks, and noise them to the level that sampling starts from.

    x_T = alpha (mean + low + rest) + sigma noise

    Args:
      leak: from `fit`.
      noise, leak_noise: [B, H, W, C], standard normal and independent. The low frequencies of
        leak_noise make those of the leak, and its others the rest; in white noise the two are
        independent.
      alpha, sigma: scalar or [B], of the first level sampled from, which need not be T.
    Returns: x_T, float32 [B, H, W, C]. Pure and traceable. At SNR = 0 it is exactly the noise.
    """
    return add_noise(_draw(leak, leak_noise), noise, alpha, sigma)


def _draw(leak: SignalLeak, white: jax.Array) -> jax.Array:
    mean, root, deviation = (jnp.asarray(array) for array in leak)
    rows, columns = (_cosines(size, len(root)).astype(np.float32) for size in mean.shape[:2])

    def analyse(x: jax.Array) -> jax.Array:
        return jnp.einsum("kh,bhwc,lw->bklc", rows, x, columns, precision=_EXACT)

    def synthesise(coefficients: jax.Array) -> jax.Array:
        return jnp.einsum("kh,bklc,lw->bhwc", rows, coefficients, columns, precision=_EXACT)

    z = analyse(white)
    low = jnp.einsum("klcmnd,bmnd->bklc", root, z, precision=_EXACT)
    rest = deviation[None] * (white - synthesise(z))
    rest -= synthesise(analyse(rest))  # scaled pixel by pixel, it has low frequencies once more
    return mean[None] + synthesise(low) + rest


def _cosines(size: int, count: int) -> np.ndarray:
    """The first rows of the orthonormal cosine transform (DCT-II), float64 [count, size]."""
    k, x = np.arange(count)[:, None], np.arange(size)
    return np.sqrt((2 - (k == 0)) / size) * np.cos(np.pi * k * (2 * x + 1) / (2 * size))


def _root(low: np.ndarray) -> np.ndarray:
    """The symmetric root of the covariance of coefficients around 0: [n, K, K, C] -> twice that.

    By eigenvalues, since with few images the covariance is singular; and symmetric, since
    that root is unique where eigenvectors are not, so that a seed means one start everywhere.
    """
    flat = rearrange(low, "n k l c -> n (k l c)")
    values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T  # rounding makes some negative
    return root.reshape(*low.shape[1:], *low.shape[1:])
