import json

import numpy as np
import pytest

from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import brightness


def _flat(values):
    """Images [n, 2, 2, 3] of the given mean brightness, none of them flat."""
    ripple = np.array([[0.05, -0.05], [-0.1, 0.1]])[None, :, :, None]
    return np.asarray(values, np.float64)[:, None, None, None] + ripple + np.zeros(3)


def _numbers(estimate):
    """low, value and high, none of which may be missing."""
    numbers = [estimate[key] for key in ("low", "value", "high")]
    assert all(isinstance(number, float) for number in numbers)
    return np.array(numbers)


def _w1_by_quantiles(a, b):
    """The integral of |quantile_a - quantile_b|, piece by piece, on the union of both grids."""
    a, b = np.sort(a), np.sort(b)
    grid = np.unique(np.r_[np.arange(len(a) + 1) / len(a), np.arange(len(b) + 1) / len(b)])
    total = 0.0
    for low, high in zip(grid[:-1], grid[1:], strict=True):
        p = (low + high) / 2
        total += (high - low) * abs(a[int(p * len(a))] - b[int(p * len(b))])
    return total


def test_mean_brightness_of_floats_and_bytes():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 4, 3, 3), dtype=np.uint8)
    expected = [sum(image.flatten().tolist()) / 36 / 127.5 - 1 for image in images]
    np.testing.assert_allclose(brightness.mean_brightness(images), expected, rtol=1e-13)
    floats = (images / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(brightness.mean_brightness(floats), expected, atol=1e-7)


def test_std_ratio():
    data = np.array([-1.0, 1.0] * 50)
    assert brightness.std_ratio(0.4 * data[:10] + 0.3, data) == pytest.approx(0.4)
    assert brightness.std_ratio(data, np.full(7, 0.2)) is None


@pytest.mark.parametrize("shift", [0.0, 0.125, -0.7])
def test_w1_of_a_shifted_uniform_is_the_shift(shift):
    grid = lambda n: (np.arange(n) + 0.5) / n  # noqa: E731
    assert brightness.wasserstein1(grid(1000) + shift, grid(1000)) == pytest.approx(abs(shift))
    assert brightness.wasserstein1(grid(300) + shift, grid(4096)) == pytest.approx(
        abs(shift), abs=1e-3
    )


def test_w1_of_different_sizes_is_the_integral_over_quantiles():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=37), rng.uniform(-1, 1, 101)
    assert brightness.wasserstein1(a, b) == pytest.approx(_w1_by_quantiles(a, b), rel=1e-12)


def test_recovery():
    dark, bright, grey = np.array([-0.5, -0.3]), np.array([0.5, 0.7, 0.6]), np.array([0.03, 0.04])
    assert brightness.mean_recovery(np.array([-0.1]), dark) == pytest.approx(0.25)
    assert brightness.mean_recovery(np.array([0.4]), grey) is None
    assert brightness.mean_recovery(np.array([]), dark) is None
    generated = [np.array([-0.1]), np.array([0.5]), np.array([0.1])]
    slope = brightness.recovery_slope(generated, [dark, bright, grey])
    data_means = np.array([[-0.4], [0.6], [0.035]])
    assert slope == pytest.approx(np.linalg.lstsq(data_means, np.array([-0.1, 0.5, 0.1]))[0][0])
    assert brightness.recovery_slope([grey], [grey]) is None


def test_the_interval_has_the_width_of_theory():
    rng = np.random.default_rng(2)
    samples, data = 0.3 * rng.normal(size=400), 0.5 * rng.normal(size=20000)
    estimate = brightness.bootstrap(lambda g: brightness.std_ratio(g[0], data), [samples], rng)
    # The standard error of a Gaussian's standard deviation is std / sqrt(2 n).
    low, value, high = _numbers(estimate)
    assert high - low == pytest.approx(2 * 1.96 * value / np.sqrt(2 * 400), rel=0.15)


def test_evaluate_recovers_what_was_done_to_the_samples():
    rng = np.random.default_rng(3)
    means, names = np.array([-0.4, 0.0, 0.4]), ["dark", "grey", "bright"]
    data_labels, labels = np.arange(1500) % 3, np.arange(600) % 3
    data = means[data_labels] + 0.2 * rng.normal(size=1500)
    samples = 0.5 * (means[labels] + 0.2 * rng.normal(size=600))
    found = dict(brightness.evaluate(_flat(samples), labels, _flat(data), data_labels, names))
    assert list(found) == [
        "brightness/std_ratio",
        "brightness/wasserstein1",
        "brightness/mean_recovery",
        *(f"brightness/mean_recovery/{name}" for name in names),
    ]
    assert found["brightness/std_ratio"]["value"] == pytest.approx(np.std(samples) / np.std(data))
    w1 = _w1_by_quantiles(samples, data)
    assert found["brightness/wasserstein1"]["value"] == pytest.approx(w1, rel=1e-6)
    for name in ("std_ratio", "mean_recovery", "mean_recovery/dark", "mean_recovery/bright"):
        low, _, high = _numbers(found[f"brightness/{name}"])
        assert low < 0.5 < high < low + 0.15
    assert set(found["brightness/mean_recovery/grey"].values()) == {None}
    again = dict(brightness.evaluate(_flat(samples), labels, _flat(data), data_labels, names))
    assert again == found


def test_a_perfect_sample_lies_within_its_own_interval():
    rng = np.random.default_rng(4)
    data, zeros = rng.uniform(-1, 1, 2000), np.zeros(2000, int)
    samples = np.sort(data)[5::10]
    found = dict(brightness.evaluate(_flat(samples), zeros[:200], _flat(data), zeros, ["all"]))
    low, value, high = _numbers(found["brightness/wasserstein1"])
    assert low <= value < 0.01 < high


def test_nothing_is_ever_nan():
    data, labels = _flat(np.zeros(8)), np.zeros(8, int)
    found = dict(brightness.evaluate(data[:3], labels[:3], data, labels, ["all", "absent"]))
    json.dumps(found, allow_nan=False)
    assert found["brightness/std_ratio"]["value"] is None
    assert found["brightness/mean_recovery/absent"]["value"] is None
    assert found["brightness/wasserstein1"]["value"] == 0


def test_mistakes_are_refused():
    images, labels = _flat([0.1, np.nan, 0.2]), np.array([0, 1, 1])
    with pytest.raises(UsageError, match="1 of 3 samples are not finite"):
        dict(brightness.evaluate(images, labels, images[:1], labels[:1], ["a", "b"]))
    with pytest.raises(UsageError, match="labels run from 0 to 1"):
        dict(brightness.evaluate(images[::2], labels[::2], images[::2], labels[::2], ["a"]))


def test_histogram_is_a_density_with_outliers_in_the_end_bins():
    density = brightness.histogram(np.array([-1.2, -0.95, 0.05, 1.0, 1.3]))
    assert len(density) + 1 == len(brightness.HISTOGRAM_EDGES) == 21
    expected = np.zeros(20)
    expected[[0, 10, 19]] = [2, 1, 2]
    np.testing.assert_allclose(density, expected / 5 / 0.1)
