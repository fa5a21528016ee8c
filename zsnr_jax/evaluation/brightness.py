"""Is the brightness of generated images spread as the data's is?

A start at SNR(T) > 0 pulls every sample towards medium brightness. Three numbers show it: the
standard deviation of mean brightness over that of the data (1 is right, below 1 too timid), the
distance between the two distributions, and the part of each label's mean brightness that comes
through (1 is right, 0 means that all labels come out alike). All are NumPy, on the host.

Source: arXiv 2305.08891, sections 2 and 5; the paper shows pictures and gives no such number.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from zsnr_jax.errors import UsageError

HISTOGRAM_EDGES = np.linspace(-1.0, 1.0, 21)
# A label this close to medium grey has no mean to recover: the quotient would be noise.
_SMALLEST_MEAN = 0.05
# Half a step of 8 bits: below it, brightness does not vary at all.
SMALLEST_STD = 1 / 255

Estimate = dict[str, float | None]  # value, low, high; all None where undefined, never NaN


def mean_brightness(images: np.ndarray) -> np.ndarray:
    """Mean of each image over its pixels and channels.

    Args: images: [n, H, W, C], floats in [-1, 1] (samples may stray) or uint8 in 0..255.
    Returns: float64 [n], on the scale of [-1, 1] in both cases.
    """
    mean = np.asarray(images).mean(axis=(1, 2, 3), dtype=np.float64)
    return mean / 127.5 - 1 if np.asarray(images).dtype == np.uint8 else mean


def std_ratio(samples: np.ndarray, data: np.ndarray) -> float | None:
    """Standard deviation of the samples' brightness [n] over the data's [m]; 1 is right.

    None where the data does not vary.
    """
    spread = float(np.std(data))
    return float(np.std(samples)) / spread if spread > SMALLEST_STD else None


def wasserstein1(samples: np.ndarray, data: np.ndarray) -> float:
    """Exact W1 between two empirical distributions of any sizes [n] and [m]; 0 is right.

    W1 = integral over x of |F_samples(x) - F_data(x)|, F(x) the share of values up to x

    On the scale of brightness: samples that are all 0.1 too dark are 0.1 away. No bins.
    """
    # Written out: to import scipy.stats takes longer than all resamples of the bootstrap do here.
    x = np.sort(np.concatenate([samples, data]))
    share_of = lambda values: np.searchsorted(np.sort(values), x[:-1], "right") / len(values)  # noqa: E731
    return float(np.abs(share_of(samples) - share_of(data)) @ np.diff(x))


def mean_recovery(samples: np.ndarray, data: np.ndarray) -> float | None:
    """Mean brightness of one label's samples [n] over that of its data [m]; 1 is right.

    None where there are no samples, or where the data's mean is within 0.05 of medium grey.
    """
    return recovery_slope([samples], [data])


def recovery_slope(samples: Sequence[np.ndarray], data: Sequence[np.ndarray]) -> float | None:
    """Slope of the labels' generated means on their data means, by least squares through zero.

    slope = sum_l g_l d_l / sum_l d_l^2

    Args: samples, data: the brightness of each label's images, [n_l] and [m_l], in one order.
    Returns: 1 where all means are recovered, None where no label can tell (see `mean_recovery`).
    """
    means = [
        (float(np.mean(g)), float(np.mean(d)))
        for g, d in zip(samples, data, strict=True)
        if len(g) and len(d)
    ]
    if max((abs(d) for _, d in means), default=0.0) < _SMALLEST_MEAN:
        return None
    return sum(g * d for g, d in means) / sum(d * d for _, d in means)


def bootstrap(
    statistic: Callable[[list[np.ndarray]], float | None],
    groups: Sequence[np.ndarray],
    rng: np.random.Generator,
    num_resamples: int = 1000,
) -> Estimate:
    """A statistic of grouped samples with its 95 % percentile bootstrap interval.

    Each group is resampled by itself: labels are asked for, not drawn, and so are held fixed.

    Args:
      statistic: of the list of groups.  groups: values [n_l] each; empty ones are allowed.
      rng: makes the interval a pure function of its seed.  num_resamples: at least 1.
    Returns: value, low and high; all None where the statistic is. Where resampling shifts the
      statistic (it can only add to a distance near 0), the interval is widened to hold the value.
    """
    groups = list(groups)
    value = statistic(groups)
    if value is None:
        return {"value": None, "low": None, "high": None}
    resampled = [
        statistic([_resample(group, rng) for group in groups]) for _ in range(num_resamples)
    ]
    low, high = np.percentile(np.array(resampled, np.float64), [2.5, 97.5])
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def evaluate(
    images: np.ndarray,
    labels: np.ndarray,
    data_images: np.ndarray,
    data_labels: np.ndarray,
    label_names: Sequence[str],
    seed: int = 0,
    num_resamples: int = 1000,
) -> Iterator[tuple[str, Estimate]]:
    """Compare the brightness of samples with the data's.

    Args:
      images, labels: the samples, [n, H, W, C] and int [n]; n >= 1.
      data_images, data_labels: the data, likewise; sizes may differ. Held fixed by the bootstrap.
      label_names: name of label 0, 1, ...; one name for a set without labels.
      seed, num_resamples: of the bootstrap.
    Yields: (name, {"value", "low", "high"}) for brightness/std_ratio, brightness/wasserstein1,
      brightness/mean_recovery (the slope over labels) and brightness/mean_recovery/<label name>.
    Raises: UsageError where a sample is not finite, or a label has no name.
    """
    samples, data = mean_brightness(images), mean_brightness(data_images)
    yield from compare(samples, labels, data, data_labels, label_names, seed, num_resamples)


def compare(
    samples: np.ndarray,
    labels: np.ndarray,
    data: np.ndarray,
    data_labels: np.ndarray,
    label_names: Sequence[str],
    seed: int = 0,
    num_resamples: int = 1000,
) -> Iterator[tuple[str, Estimate]]:
    """The same as `evaluate`, of the mean brightness of samples [n] and data [m]."""
    require_finite(samples)
    by_label = _split(samples, labels, len(label_names))
    data_by_label = _split(data, data_labels, len(label_names))
    rng = np.random.default_rng(seed)
    overall = {
        "std_ratio": lambda groups: std_ratio(np.concatenate(groups), data),
        "wasserstein1": lambda groups: wasserstein1(np.concatenate(groups), data),
        "mean_recovery": lambda groups: recovery_slope(groups, data_by_label),
    }
    for name, statistic in overall.items():
        yield f"brightness/{name}", bootstrap(statistic, by_label, rng, num_resamples)
    for name, group, truth in zip(label_names, by_label, data_by_label, strict=True):
        of_label = lambda groups, truth=truth: mean_recovery(groups[0], truth)  # noqa: E731
        yield (
            f"brightness/mean_recovery/{name}",
            bootstrap(of_label, [group], rng, num_resamples),
        )


def require_finite(samples: np.ndarray) -> None:
    """Refuse samples [n, ...] of which some are not finite: UsageError."""
    if broken := int(np.sum(~np.isfinite(samples).reshape(len(samples), -1).all(axis=1))):
        raise UsageError(
            f"{broken} of {len(samples)} samples are not finite: the training diverged, so lower "
            "the learning rate and train again."
        )


def histogram(brightness: np.ndarray) -> np.ndarray:
    """Density of brightness [n] in 20 equal bins of [-1, 1]; float64 [20] that integrates to 1.

    Values beyond the ends, which samples may reach slightly, count in the end bins.
    """
    inside = np.clip(brightness, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    return np.histogram(inside, HISTOGRAM_EDGES, density=True)[0]


def _resample(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values[rng.integers(len(values), size=len(values))] if len(values) else values


def _split(values: np.ndarray, labels: np.ndarray, num_labels: int) -> list[np.ndarray]:
    """Values [n] by their label [n]: one array per label, empty where the label does not occur."""
    labels = np.asarray(labels)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_labels):
        raise UsageError(
            f"labels run from {labels.min()} to {labels.max()}, and there are {num_labels} "
            "label_names: give one name for each label from 0 up."
        )
    return [values[labels == label] for label in range(num_labels)]
