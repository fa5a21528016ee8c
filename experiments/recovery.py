"""How much of the brightness comes through: of the labels' means, and of the spread about them.

Experiments tell the two apart, since a start at the wrong SNR loses both, and few steps of first
order the second alone.
"""

import jax.numpy as jnp
import numpy as np
import scipy.stats

from zsnr_jax import randomness
from zsnr_jax.data.brightness import LABELS
from zsnr_jax.evaluation import brightness
from zsnr_jax.schedules import NoiseSchedule

_SEED = 0


def even_starts(num_labels: int, num_each: int, shape: tuple[int, ...]) -> np.ndarray:
    """Noise [num_labels num_each, ...] whose means are, for each label, even quantiles.

    The mean of N values of noise is N(0, 1/N), whatever else is in them. With its quantiles in the
    place of random means, few samples tell the mean and the spread well.
    """
    key = randomness.purpose_key(_SEED, randomness.Purpose.START)
    noise = randomness.row_normal(key, 0, jnp.arange(num_labels * num_each), shape)
    quantiles = scipy.stats.norm.ppf((np.arange(num_each) + 0.5) / num_each)
    means = np.tile(quantiles / np.std(quantiles) / np.sqrt(np.prod(shape)), num_labels)
    centred = np.asarray(noise) - np.mean(noise, axis=(1, 2, 3), keepdims=True)
    return (centred + means[:, None, None, None]).astype(np.float32)


def even_labels(num_each: int) -> np.ndarray:
    """Each label num_each times, in the order of `even_starts`: int [labels num_each]."""
    return np.repeat(np.arange(len(LABELS)), num_each)


def within(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Values [n] less the mean of their label."""
    means = np.array([np.mean(values[labels == label]) for label in range(len(LABELS))])
    return values - means[labels]


def spread_given_label(images: np.ndarray, labels: np.ndarray) -> float:
    """tau: the standard deviation of mean brightness about the mean of its label."""
    return float(np.std(within(brightness.mean_brightness(images), labels)))


def flat_pictures(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One grey for each image, such that a label's greys have its mean, and a Gaussian spread."""
    grey = brightness.mean_brightness(images)
    tau = np.std(within(grey, labels))
    for label in range(len(LABELS)):
        rows = np.flatnonzero(labels == label)
        quantiles = scipy.stats.norm.ppf((np.arange(len(rows)) + 0.5) / len(rows))
        grey[rows] = np.mean(grey[rows]) + tau * quantiles / np.std(quantiles)
    return np.broadcast_to(grey[:, None, None, None], images.shape).astype(np.float32)


def recovery_and_spread(
    samples: np.ndarray, sample_labels: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> tuple[list[float], list[float]]:
    """The parts of the labels' means and of the spread; and of each label's mean."""
    drawn, real = brightness.mean_brightness(samples), brightness.mean_brightness(images)
    groups = [drawn[sample_labels == label] for label in range(len(LABELS))]
    truth = [real[labels == label] for label in range(len(LABELS))]
    each = [float(np.mean(g) / np.mean(d)) for g, d in zip(groups, truth)]
    slope = brightness.recovery_slope(groups, truth)
    spread = brightness.std_ratio(within(drawn, sample_labels), within(real, labels))
    assert slope is not None and spread is not None
    return [slope, spread], each


def ddim_on_one_mode(
    schedule: NoiseSchedule,
    levels: np.ndarray,
    std: float,
    final_level: int = 0,
    start: tuple[float, float] = (0.0, 1.0),
) -> list[float]:
    """The parts of mean and spread that DDIM keeps of one Gaussian mode.

    Args:
      std: of the mode, in units of the noise it is denoised of.
      start: the mode's mean in x_T over that of the data, and its deviation; default: noise.
    """
    alpha, sigma = (np.asarray(side, np.float64) for side in schedule)
    x = np.array(start)
    for t, s in zip(levels, np.append(levels[1:], final_level)):
        gain = alpha[t] * std**2 / (alpha[t] ** 2 * std**2 + sigma[t] ** 2)
        x0_hat = gain * x + np.array([1 - gain * alpha[t], 0.0])
        x = alpha[s] * x0_hat + sigma[s] * (x - alpha[t] * x0_hat) / sigma[t]
    return [float(x[0]), float(x[1] / std)]
