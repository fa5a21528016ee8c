"""The signal-leak start: its moments, its limits, and the brightness it brings back."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.fft

from zsnr_jax import randomness, samplers, signal_leak
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation.ideal import one_mode_law
from zsnr_jax.schedules import make_schedule
from zsnr_jax.timesteps import make_timesteps

SHAPE = (6, 8, 2)
FLAWED = make_schedule("scaled_linear")


def pictures(n: int = 500, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Images whose brightness, gradients and colours go together, with a grain of uneven depth."""
    rng = np.random.default_rng(0)
    H, W, C = shape
    y, x = np.linspace(-1, 1, H)[:, None, None], np.linspace(-1, 1, W)[None, :, None]
    shapes = np.broadcast_arrays(np.ones(shape), y + 0 * x, x * y, np.arange(C) + x)
    weights = rng.normal(size=(n, 4)) @ rng.normal(size=(4, 4)) * 0.2
    grain = 0.1 * (1.5 + np.sin(3 * x + y)) * rng.normal(size=(n, *shape))
    return 0.2 * x + np.einsum("nk,khwc->nhwc", weights, np.stack(shapes)) + grain


def transformed(images: np.ndarray) -> np.ndarray:
    """SciPy's orthonormal cosine transform, [n, H, W, C]."""
    return np.asarray(scipy.fft.dctn(images, axes=(1, 2), norm="ortho"))


def lowest(images: np.ndarray, K: int) -> np.ndarray:
    return transformed(images)[:, :K, :K].reshape(len(images), -1)


def without_lowest(images: np.ndarray, K: int) -> np.ndarray:
    coefficients = transformed(images)
    coefficients[:, :K, :K] = 0
    return np.asarray(scipy.fft.idctn(coefficients, axes=(1, 2), norm="ortho"))


def responses(leak: signal_leak.SignalLeak) -> np.ndarray:
    """What the leak adds to its mean for each entry of leak_noise by itself: [H W C, H, W, C].

    The leak is affine in leak_noise, so these rows give its covariance without any sampling.
    """
    size = leak.mean.size
    unit = jnp.eye(size).reshape(size, *leak.mean.shape)
    return np.asarray(signal_leak.start(leak, 0 * unit, unit, 1.0, 0.0), np.float64) - leak.mean


def white(purpose: randomness.Purpose, n: int, shape: tuple[int, int, int] = SHAPE) -> jax.Array:
    return randomness.row_normal(randomness.purpose_key(0, purpose), 0, jnp.arange(n), shape)


@pytest.mark.parametrize("K", [0, 1, 3, 6])
def test_the_mean_and_the_low_frequencies_are_the_datas(K: int) -> None:
    images = pictures()
    leak = signal_leak.fit(images, K)
    assert all(array.dtype == np.float32 for array in leak)
    np.testing.assert_allclose(leak.mean, images.mean(axis=0), atol=1e-6)
    low = lowest(responses(leak), K)
    expected = np.cov(lowest(images, K), rowvar=False, ddof=0)
    np.testing.assert_allclose(low.T @ low, expected, atol=1e-5)


def test_the_low_frequencies_vary_by_themselves_and_the_rest_has_none() -> None:
    leak, K = signal_leak.fit(pictures(), 3), 3
    found = responses(leak)
    low = lowest(found, K)
    rest = without_lowest(found, K).reshape(len(found), -1)
    assert np.abs(low.T @ rest).max() < 1e-5  # of covariances up to 1


def test_every_pixel_of_the_rest_varies_as_the_datas() -> None:
    rng, K = np.random.default_rng(1), 2
    images = rng.normal(size=(2000, *SHAPE)) + 3 * rng.normal(size=(2000, 1, 1, 1))
    expected = without_lowest(images, K).std(axis=0)
    leak = signal_leak.fit(images, K)
    np.testing.assert_allclose(leak.rest, expected, rtol=1e-5)
    found = np.sqrt(np.sum(without_lowest(responses(leak), K) ** 2, axis=0))
    # Pixels are drawn by themselves, and then lose their low frequencies: 4 of 48.
    np.testing.assert_allclose(found, expected * np.sqrt(1 - 4 / 48), rtol=0.1)


def test_without_frequencies_every_pixel_varies_by_itself() -> None:
    images = pictures()
    found = responses(signal_leak.fit(images, 0)).reshape(images[0].size, -1)
    np.testing.assert_allclose(found, np.diag(images.std(axis=0).ravel()), atol=1e-6)


def test_starts_are_spread_as_noised_data_are() -> None:
    alpha, sigma, n = 0.6, 0.8, 4000
    leak, images = signal_leak.fit(pictures(), 3), pictures()
    noise, leak_noise = white(randomness.Purpose.START, n), white(randomness.Purpose.LEAK, n)
    x_T = np.asarray(jax.jit(signal_leak.start)(leak, noise, leak_noise, alpha, sigma))
    assert x_T.dtype == np.float32 and x_T.shape == (n, *SHAPE)
    pixels = SHAPE[0] * SHAPE[1]
    np.testing.assert_allclose(x_T.mean(axis=0), alpha * images.mean(axis=0), atol=0.08)
    expected = alpha**2 * images.mean(axis=(1, 2)).var(axis=0) + sigma**2 / pixels
    np.testing.assert_allclose(x_T.mean(axis=(1, 2)).var(axis=0), expected, rtol=0.1)
    expected = alpha**2 * np.cov(lowest(images, 3), rowvar=False) + sigma**2 * np.eye(18)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    found = np.cov(lowest(x_T, 3), rowvar=False)
    np.testing.assert_allclose(found / scale, expected / scale, atol=0.1)


def test_at_zero_snr_the_start_is_the_noise_bit_for_bit() -> None:
    leak, noise = signal_leak.fit(pictures(), 3), white(randomness.Purpose.START, 16)
    x_T = signal_leak.start(leak, noise, white(randomness.Purpose.LEAK, 16), 0.0, 1.0)
    np.testing.assert_array_equal(np.asarray(x_T).view(np.int32), np.asarray(noise).view(np.int32))


@pytest.mark.parametrize("n", [1, 3])
def test_few_images_vary_in_few_directions(n: int) -> None:
    images = pictures(n)
    leak = signal_leak.fit(images, 3)
    low = lowest(responses(leak), 3)
    expected = np.cov(lowest(images, 3), rowvar=False, ddof=0)
    np.testing.assert_allclose(low.T @ low, expected, atol=1e-5)
    assert np.linalg.matrix_rank(low, tol=1e-3) == n - 1


def test_the_level_may_differ_from_row_to_row() -> None:
    leak = signal_leak.fit(pictures(), 3)
    noise, leak_noise = white(randomness.Purpose.START, 2), white(randomness.Purpose.LEAK, 2)
    x_T = signal_leak.start(leak, noise, leak_noise, jnp.array([0.0, 0.6]), jnp.array([1.0, 0.8]))
    one = signal_leak.start(leak, noise[1:], leak_noise[1:], 0.6, 0.8)
    np.testing.assert_array_equal(x_T[0], noise[0])
    np.testing.assert_allclose(x_T[1:], one, rtol=1e-5, atol=1e-6)


def test_ddim_from_the_leak_start_brings_back_the_brightness_that_pure_noise_loses() -> None:
    tau, size, n = 0.5, 32, 1000
    shape = (size, size, 1)
    alphas, sigmas = (jnp.asarray(coefficients) for coefficients in FLAWED)

    def denoise(x_t, level):
        """Exact for images that are one brightness, N(0, tau^2), all over."""
        alpha, sigma = alphas[level], sigmas[level]
        brightness = jnp.mean(x_t, axis=(1, 2, 3), keepdims=True)
        x0_hat = oracles.gaussian_x0(brightness, alpha, sigma / size, 0.0, tau) + 0 * x_t
        return x0_hat, (x_t - alpha * x0_hat) / sigma

    path = samplers.coefficients(samplers.ddim(), FLAWED, make_timesteps("trailing", 1000, 50))
    draw = jax.jit(lambda x_T: samplers.integrate(samplers.ddim(), denoise, x_T, path))
    images = tau * np.random.default_rng(2).normal(size=(n, 1, 1, 1)) * np.ones(shape)
    images *= tau / images[:, 0, 0, 0].std()
    noise, leak_noise = (
        white(purpose, n, shape) for purpose in (randomness.Purpose.START, randomness.Purpose.LEAK)
    )
    leak = signal_leak.fit(images, 1)
    x_T = signal_leak.start(leak, noise, leak_noise, alphas[-1], sigmas[-1])
    lost, restored = (
        float(np.std(np.mean(draw(start), axis=(1, 2, 3)))) / tau for start in (noise, x_T)
    )
    law = one_mode_law(FLAWED, size**2, tau).std_ratio
    assert law == pytest.approx(0.676, abs=1e-3)
    assert lost == pytest.approx(law, abs=0.05)
    assert restored == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("K", [-1, 7])
def test_a_number_of_frequencies_out_of_range_is_refused(K: int) -> None:
    with pytest.raises(UsageError, match=f"num_frequencies must be from 0 to 6, .* it is {K}"):
        signal_leak.fit(pictures(3), K)


@pytest.mark.parametrize("shape", [(6, 8, 2), (0, 6, 8, 2)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"images must be \[n, H, W, C\], and their shape is \("):
        signal_leak.fit(np.zeros(shape), 1)
