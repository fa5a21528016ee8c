"""The digits: scikit-learn's own, enlarged, every second one inverted."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from zsnr_jax.data import load_arrays, make_digits


def test_every_second_digit_is_on_white():
    images, labels = make_digits()
    assert images.shape == (1797, 16, 16, 1) and images.dtype == np.uint8
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].astype(int).mean(axis=1)
    assert np.median(corners[0::2]) == 0 and np.median(corners[1::2]) == 255
    means = images.mean(axis=(1, 2, 3))
    assert means[0::2].max() < 127.5 < means[1::2].min()
    assert set(labels) == set(range(10))


def test_no_digit_is_lost():
    images, labels = make_digits()
    images[1::2] = 255 - images[1::2]
    scans: Any = load_digits()
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(scans.target))
    ink = images.mean(axis=(1, 2, 3)) * 16 / 255
    np.testing.assert_allclose(np.sort(ink), np.sort(scans.images.mean((1, 2))), atol=0.25)


def test_both_splits_as_read(digits):
    images, labels = make_digits()
    read, read_labels = load_arrays(digits, 16)
    np.testing.assert_array_equal(np.rint((read + 1) * 127.5), images[1500:])
    np.testing.assert_array_equal(read_labels, labels[1500:])
    info = digits.info
    assert (info.num_examples, info.num_classes, info.channels) == (297, 10, 1)
