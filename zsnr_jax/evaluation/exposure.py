"""Are guided images over-exposed, and how much contrast have they?

Guidance from zero terminal SNR multiplies the means at T, and so pushes values out of [-1, 1],
where they are cut off; its rescale takes that back. Two numbers show it: the share of values that
are cut off, and the contrast, which over-exposed images lack too. Both are NumPy, on the host.

Source: arXiv 2305.08891, sections 3.4 and 5.3; the paper shows pictures and gives no such number.
"""

from collections.abc import Iterator

import numpy as np

from zsnr_jax.evaluation.brightness import SMALLEST_STD, Estimate, bootstrap, require_finite

_LIMIT = 1 + 1 / 255  # half a step of 8 bits beyond the range


def overexposed(images: np.ndarray) -> np.ndarray:
    """The share of each image's values beyond [-1, 1], by more than half a step of 8 bits.

    Args: images: float [n, H, W, C], not clipped.
    Returns: [n]; 0 is right.
    """
    return np.asarray(np.mean(np.abs(images) > _LIMIT, axis=(1, 2, 3)))


def excess(images: np.ndarray) -> np.ndarray:
    """How far values are beyond [-1, 1], in the mean over each image [n, H, W, C]; 0 is right."""
    beyond = np.maximum(np.abs(images) - 1, 0)
    return np.asarray(np.mean(beyond, axis=(1, 2, 3), dtype=np.float64))


def contrast(images: np.ndarray) -> np.ndarray:
    """Standard deviation over each image's values, [n] from [n, H, W, C]."""
    return np.std(images, axis=(1, 2, 3), dtype=np.float64)


def evaluate(
    images: np.ndarray, data_images: np.ndarray, seed: int = 0
) -> Iterator[tuple[str, Estimate]]:
    """Measure guided samples [n, H, W, C], float and not clipped, beside the data.

    Yields: (name, {"value", "low", "high"}) for guided/overexposed, the mean share, and
      guided/contrast, over the data's (None where the data have none), with 95 % bootstrap
      intervals over the samples.
    Raises: UsageError where a sample is not finite.
    """
    require_finite(images)
    yield from compare(overexposed(images), contrast(images), contrast(data_images), seed)


def compare(
    shares: np.ndarray, contrasts: np.ndarray, data_contrasts: np.ndarray, seed: int = 0
) -> Iterator[tuple[str, Estimate]]:
    """The same as `evaluate`, of `overexposed` and `contrast` of samples [n] and data [m]."""
    rng = np.random.default_rng(seed)
    of_data = float(np.mean(data_contrasts))

    def over_data(groups: list[np.ndarray]) -> float | None:
        return float(np.mean(groups[0])) / of_data if of_data > SMALLEST_STD else None

    yield (
        "guided/overexposed",
        bootstrap(lambda groups: float(np.mean(groups[0])), [shares], rng),
    )
    yield "guided/contrast", bootstrap(over_data, [contrasts], rng)
