import numpy as np
import pytest

from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import exposure


def _images():
    """Three images [2, 2, 3]: within the range, at its edge, and a quarter beyond it."""
    inside = np.linspace(-0.9, 0.9, 12).reshape(2, 2, 3)
    edge = np.where(inside > 0, 1.003, -1.003)  # within half a step of 8 bits, 1/255
    beyond = inside.copy()
    beyond[0, 0] = [1.5, -2.0, 1.25]
    return np.stack([inside, edge, beyond])


def test_values_beyond_the_range_are_counted_and_measured():
    np.testing.assert_allclose(exposure.overexposed(_images()), [0, 0, 3 / 12])
    np.testing.assert_allclose(
        exposure.excess(_images()), [0, 0.003, (0.5 + 1 + 0.25) / 12], atol=1e-12
    )


def test_contrast_is_the_deviation_within_an_image():
    low, high = np.full((1, 4, 4, 3), 0.3), np.full((1, 4, 4, 3), 0.3)
    high[:, ::2] += 0.2
    both = np.concatenate([low, high])
    np.testing.assert_allclose(exposure.contrast(both), [0, 0.1], atol=1e-12)


def test_the_two_numbers_of_guided_samples():
    images = _images().astype(np.float32)
    found = dict(exposure.evaluate(images, images / 2, seed=0))
    share, contrast = found["guided/overexposed"], found["guided/contrast"]
    assert share["value"] == pytest.approx(1 / 12) and share["low"] == 0
    assert share["high"] is not None and 1 / 12 <= share["high"] <= 0.25
    assert contrast["value"] == pytest.approx(2)  # the data's is half of theirs
    again = dict(exposure.evaluate(images, images / 2, seed=0))
    assert found == again


def test_data_without_contrast_and_samples_that_are_not_finite():
    flat = np.zeros((2, 4, 4, 3))
    assert dict(exposure.evaluate(_images(), flat))["guided/contrast"]["value"] is None
    broken = _images()
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="1 of 3 samples are not finite"):
        dict(exposure.evaluate(broken, flat))
