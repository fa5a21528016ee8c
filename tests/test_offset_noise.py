"""Offset noise: the statistics that section 5.4 gives it, and nothing at all at strength 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax.offset_noise import add_offset

N_ROWS, SHAPE = 4000, (8, 8, 3)
PIXELS = 64


def drawn(strength: float) -> tuple[np.ndarray, np.ndarray]:
    """White noise and what it becomes, from the same keys, as in training: [N_ROWS, 8, 8, 3]."""
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), N_ROWS)
    eps = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    shifted = jax.jit(add_offset, static_argnums=2)(eps, keys, strength)
    assert shifted.shape == eps.shape and shifted.dtype == eps.dtype
    return np.asarray(eps, np.float64), np.asarray(shifted, np.float64)


def test_strength_zero_changes_no_bit() -> None:
    eps, shifted = drawn(0.0)
    np.testing.assert_array_equal(eps, shifted)


def test_all_pixels_of_a_channel_move_together_by_standard_normals_times_the_strength() -> None:
    eps, shifted = drawn(0.5)
    offset = (shifted - eps) / 0.5
    d = offset.mean(axis=(1, 2))
    np.testing.assert_allclose(offset, np.broadcast_to(d[:, None, None], offset.shape), atol=2e-6)
    np.testing.assert_allclose(d.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(d, rowvar=False), np.eye(3), atol=0.08)
    np.testing.assert_allclose(np.mean(d**4), 3, rtol=0.1)
    assert np.unique(d).size == d.size
    # ... and independently of the white noise, though the keys are the same.
    pixels = eps.reshape(N_ROWS, -1)
    correlations = (pixels.T @ d) / N_ROWS
    assert np.abs(correlations).max() < 5 / np.sqrt(N_ROWS)


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_the_mean_of_a_channel_varies_more_and_what_is_left_stays_white(strength: float) -> None:
    _, shifted = drawn(strength)
    mean = shifted.mean(axis=(1, 2))
    dc = np.sqrt(PIXELS) * mean
    expected = (1 + strength**2 * PIXELS) * np.eye(3)  # 1.64 and 17, by the docstring's law
    np.testing.assert_allclose(np.cov(dc, rowvar=False), expected, atol=0.08 * expected.max())
    rest = (shifted - mean[:, None, None]).reshape(N_ROWS, PIXELS, 3)
    for channel in range(3):
        covariance = np.cov(rest[..., channel], rowvar=False)
        np.testing.assert_allclose(covariance, np.eye(PIXELS) - 1 / PIXELS, atol=0.13)


def test_a_row_does_not_depend_on_its_batch() -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    eps = jnp.zeros((5, 4, 2))  # one axis of positions
    whole = add_offset(eps, keys, 1.0)
    np.testing.assert_array_equal(add_offset(eps[3:], keys[3:], 1.0), whole[3:])
