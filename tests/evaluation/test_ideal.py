import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax import samplers
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import ideal
from zsnr_jax.schedules import make_schedule
from zsnr_jax.timesteps import make_timesteps

FIXED = make_schedule("scaled_linear", zero_terminal_snr=True)
FLAWED = make_schedule("scaled_linear")


@jax.jit
def _denoise(images, schedule, x_t, level, mask=None):
    return ideal.make_ideal_denoise(images, schedule, mask)(x_t, level)


def _normal_quantiles(n):
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / n) for i in range(n)])


def _posterior_mean(images, x_t, alpha, sigma):
    """Bayes' rule on a finite dataset, in float64, from the distances themselves."""
    flat, x = images.reshape(len(images), -1), x_t.reshape(len(x_t), -1)
    distances = np.sum((x[:, None] - alpha * flat[None]) ** 2, axis=-1)
    likelihood = np.exp(-(distances - distances.min(axis=1, keepdims=True)) / (2 * sigma**2))
    return (likelihood @ flat / likelihood.sum(axis=1, keepdims=True)).reshape(x_t.shape)


@pytest.mark.parametrize("level", [1, 20, 300, 700, 999, 1000])
@pytest.mark.parametrize("schedule", [FIXED, FLAWED])
def test_it_is_bayes_rule(schedule, level):
    rng = np.random.default_rng(level)
    images = rng.uniform(-1, 1, (12, 4, 4, 3)).astype(np.float32)
    alpha, sigma = (float(x[level]) for x in schedule)
    x_t = (alpha * images[:5] + sigma * rng.normal(size=(5, 4, 4, 3))).astype(np.float32)
    x0_hat, eps_hat = _denoise(images, schedule, x_t, level)
    assert x0_hat.dtype == eps_hat.dtype == jnp.float32
    expected = _posterior_mean(images.astype(np.float64), x_t.astype(np.float64), alpha, sigma)
    np.testing.assert_allclose(x0_hat, expected, atol=2e-5)
    np.testing.assert_allclose(alpha * x0_hat + sigma * eps_hat, x_t, atol=1e-5)


@pytest.mark.parametrize("level", [300, 600, 900, 1000])
def test_gaussian_data_give_the_linear_denoiser(level):
    mean, tau = 0.3, 0.4
    images = (mean + tau * _normal_quantiles(4000))[:, None].astype(np.float32)
    alpha, sigma = (float(x[level]) for x in FIXED)
    x_t = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    x0_hat, _ = _denoise(images, FIXED, x_t, level)
    gain = alpha * tau**2 / (alpha**2 * tau**2 + sigma**2)
    np.testing.assert_allclose(x0_hat, mean + gain * (x_t - alpha * mean), atol=1e-3)


@pytest.mark.parametrize("level", [50, 400, 800, 1000])
def test_two_points_give_a_tanh(level):
    rng = np.random.default_rng(0)
    point, x_t = rng.uniform(-0.3, 0.3, (1, 6)), rng.normal(size=(7, 6))
    alpha, sigma = (float(x[level]) for x in FIXED)
    images = np.concatenate([point, -point]).astype(np.float32)
    x0_hat, _ = _denoise(images, FIXED, x_t.astype(np.float32), level)
    expected = np.tanh(alpha * (x_t @ point.T) / sigma**2) * point
    np.testing.assert_allclose(x0_hat, expected, atol=1e-6)


def test_at_zero_snr_it_is_the_mean_whatever_the_noise():
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (37, 8, 8, 3)).astype(np.float32)
    x_T = (100 * rng.normal(size=(16, 8, 8, 3))).astype(np.float32)
    x0_hat, eps_hat = _denoise(images, FIXED, x_T, 1000)
    np.testing.assert_array_equal(x0_hat, np.broadcast_to(x0_hat[0], x0_hat.shape))
    np.testing.assert_allclose(x0_hat[0], images.mean(axis=0, dtype=np.float64), atol=1e-6)
    np.testing.assert_array_equal(eps_hat, x_T)


@pytest.mark.parametrize("level", [1, 500, 1000])
def test_padding_counts_for_nothing(level):
    rng = np.random.default_rng(2)
    images = rng.uniform(-1, 1, (9, 4, 4, 1)).astype(np.float32)
    x_t = rng.normal(size=(5, 4, 4, 1)).astype(np.float32)
    padded = np.concatenate([images, np.full((4, 4, 4, 1), 7.0, np.float32)])
    whole = _denoise(images, FIXED, x_t, level)
    masked = _denoise(padded, FIXED, x_t, level, np.arange(13) < 9)
    for found, expected in zip(masked, whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def _labelled():
    rng = np.random.default_rng(3)
    images = rng.uniform(-1, 1, (20, 4, 4, 1)).astype(np.float32)
    labels = np.array([0] * 12 + [2] * 8)
    wanted = np.array([2, 0, 0, 2, 0, 0, 0])
    return images, labels, wanted, rng.normal(size=(7, 4, 4, 1)).astype(np.float32)


def test_one_step_from_zero_snr_gives_the_mean_of_the_label():
    images, labels, wanted, x_T = _labelled()
    found = ideal.ideal_samples(images, labels, FIXED, np.array([1000]), wanted, x_T)
    means = {label: images[labels == label].mean(axis=0, dtype=np.float64) for label in (0, 2)}
    np.testing.assert_allclose(found, [means[label] for label in wanted], atol=1e-6)


@pytest.mark.parametrize(("max_batch", "eta"), [(256, 0.0), (2, 1.0)])
def test_batches_change_nothing(monkeypatch, max_batch, eta):
    monkeypatch.setattr(ideal, "_MAX_BATCH", max_batch)
    images, labels, wanted, x_T = _labelled()
    timesteps, sampler = make_timesteps("trailing", 1000, 4), samplers.ddim(eta)
    key = jax.random.key(0) if eta else None
    found = ideal.ideal_samples(
        images, labels, FIXED, timesteps, wanted, x_T, sampler=sampler, key=key
    )
    denoise, rows = ideal.make_ideal_denoise(images[labels == 0], FIXED), wanted == 0
    path = samplers.coefficients(sampler, FIXED, timesteps)
    integrate = jax.jit(functools.partial(samplers.integrate, sampler, denoise))
    alone = integrate(x_T[rows], path, key, np.flatnonzero(rows))
    np.testing.assert_allclose(found[rows], alone, atol=5e-4)


def test_all_labels_and_recipes_share_one_compilation():
    traces = []

    def step(denoise, x, memory, c):
        traces.append(1)
        return samplers.ddim().step(denoise, x, memory, c)

    images, labels, wanted, x_T = _labelled()
    sampler = samplers.ddim()._replace(step=step)
    counts = []
    for schedule, spacing in ((FIXED, "trailing"), (FLAWED, "leading")):
        timesteps = make_timesteps(spacing, 1000, 7)
        ideal.ideal_samples(images, labels, schedule, timesteps, wanted, x_T, sampler)
        counts.append(len(traces))
    assert counts[1] == counts[0] > 0


def test_mistakes_are_refused():
    images, labels, wanted, x_T = _labelled()
    with pytest.raises(UsageError, match=r"labels \[1\]"):
        ideal.ideal_samples(images, labels, FIXED, np.array([1000]), np.minimum(wanted, 1), x_T)
    timesteps = make_timesteps("trailing", 1000, 7)
    with pytest.raises(UsageError, match="needs a key"):
        ideal.ideal_samples(images, labels, FIXED, timesteps, wanted, x_T, samplers.ddim(1.0))


@pytest.mark.parametrize(
    ("name", "size", "std_ratio"),
    [
        ("scaled_linear", 8, 0.967),
        ("scaled_linear", 16, 0.879),
        ("scaled_linear", 32, 0.676),
        ("scaled_linear", 64, 0.416),
        ("scaled_linear", 128, 0.223),
        ("linear", 64, 0.980),
        ("linear", 512, 0.524),
        ("cosine", 512, 1.000),
    ],
)
def test_the_law_has_the_published_numbers(name, size, std_ratio):
    law = ideal.one_mode_law(make_schedule(name), size**2, 0.5)
    assert law.std_ratio == pytest.approx(std_ratio, abs=1e-3)


def test_the_law_of_the_means():
    law = ideal.one_mode_law(FLAWED, 64 * 64, 0.5)
    assert law.q == pytest.approx(4.79, abs=0.01)
    assert law.mean_recovery == pytest.approx(0.091, abs=1e-3)
    assert ideal.one_mode_law(FIXED, 64 * 64, 0.5) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("num_values", [1024, 4096])
def test_the_law_is_what_ddim_does_to_one_gaussian_mode(num_values):
    mean, tau, alphas, sigmas = 0.3, 0.5, *(np.asarray(x, np.float64) for x in FLAWED)
    variance = num_values * tau**2
    slope, offset = 1.0, 0.0  # of the mode x_t as a function of x_T; its mean in units of the true
    for t in range(1000, 0, -1):
        alpha, sigma = alphas[t], sigmas[t]
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        share = 1 - gain * alpha
        to_x = alphas[t - 1] * gain + sigmas[t - 1] * (1 - alpha * gain) / sigma
        to_mean = (alphas[t - 1] - sigmas[t - 1] * alpha / sigma) * share * mean
        slope, offset = to_x * slope, to_x * offset + to_mean
    law = ideal.one_mode_law(FLAWED, num_values, tau)
    assert law.std_ratio == pytest.approx(slope / np.sqrt(variance), abs=2e-3)
    assert law.mean_recovery == pytest.approx(offset / mean, abs=2e-3)


def test_the_law_is_what_ideal_samples_show():
    # Flat grey images whose brightness is N(0.3, 1): N tau^2 = 256 as at 32 x 32 with tau = 1/2.
    images = np.broadcast_to((0.3 + _normal_quantiles(300))[:, None, None, None], (300, 16, 16, 1))
    x_T = np.random.default_rng(4).normal(size=(200, 16, 16, 1))
    x_T += _normal_quantiles(200)[:, None, None, None] / 16 - x_T.mean(
        axis=(1, 2, 3), keepdims=True
    )
    labels, timesteps = np.zeros(300, int), make_timesteps("trailing", 1000, 100)
    for schedule in (FLAWED, FIXED):
        found = ideal.ideal_samples(images, labels, schedule, timesteps, labels[:200], x_T)
        brightness = found.mean(axis=(1, 2, 3))
        law = ideal.one_mode_law(schedule, 256, 1.0)
        assert brightness.std() / images.std() == pytest.approx(law.std_ratio, abs=0.07)
        assert brightness.mean() / 0.3 == pytest.approx(law.mean_recovery, abs=0.03)
