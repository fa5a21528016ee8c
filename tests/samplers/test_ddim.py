"""DDIM against the textbook, against its limit at SNR = 0, and against exact Gaussian data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from zsnr_jax import randomness, samplers, schedules
from zsnr_jax.predictions import make_denoise
from zsnr_jax.timesteps import make_timesteps

MENDED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
FLAWED = schedules.make_schedule("scaled_linear")
KEY = randomness.purpose_key(0, randomness.Purpose.SAMPLE)
ETAS = [0.0, 0.5, 1.0]
STEPS = [5, 7, 10, 15, 25, 30, 50, 60, 61]
MEAN, STD = 0.9, 0.3  # of the data, one Gaussian


@jax.jit
def draw(x_T, schedule, coefficients, key=None):
    """DDIM from x_T with the exact denoiser of the data, as a v-prediction."""
    alphas, sigmas = jnp.asarray(schedule.alpha), jnp.asarray(schedule.sigma)

    def network(x_t, timestep):
        alpha, sigma = alphas[timestep + 1][:, None], sigmas[timestep + 1][:, None]
        return (alpha * x_t - oracles.gaussian_x0(x_t, alpha, sigma, MEAN, STD)) / sigma

    denoise = make_denoise(network, schedule, "v")
    return samplers.integrate(samplers.ddim(), denoise, x_T, coefficients, key)


def path(eta, schedule, levels, final_level=0) -> Any:
    return samplers.coefficients(samplers.ddim(eta), schedule, levels, final_level)


def propagate(coefficients, schedule, mean, std):
    """The mean and deviation that the coefficients give N(mean, std^2), in closed form.

    The exact denoiser is affine in x, so that every step is, and a Gaussian stays one.
    """
    kept = np.array(coefficients.rule, np.float64)
    kept[-1] = coefficients.sigma_next[-1]  # the last step is first order and deterministic
    variance = std**2
    for i, level in enumerate(coefficients.level):
        alpha, sigma = np.float64(schedule.alpha[level]), np.float64(schedule.sigma[level])
        offset = oracles.gaussian_x0(0.0, alpha, sigma, MEAN, STD)
        slope = oracles.gaussian_x0(1.0, alpha, sigma, MEAN, STD) - offset
        of_x0 = coefficients.alpha_next[i] - kept[i] * alpha / sigma
        factor = of_x0 * slope + kept[i] / sigma
        mean = factor * mean + of_x0 * offset
        variance = factor**2 * variance + np.float64(coefficients.noise[i]) ** 2
    return mean, np.sqrt(variance)


# The textbook.


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_the_rule_is_the_papers_eqs_21_and_22(name, eta):
    abar = np.append(oracles.alphas_cumprod(name, zero_terminal_snr=False)[::-7], 1.0)
    sides = np.sqrt(abar), np.sqrt(1 - abar)
    fresh, kept = samplers.ddim(eta).rule(
        samplers.Path(sides[0][:-1], sides[1][:-1], sides[0][1:], sides[1][1:])
    )
    _, of_eps, noise = oracles.ddim_step(abar[:-1], abar[1:], eta)
    np.testing.assert_allclose(kept, of_eps, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fresh, noise, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("S", [7, 50])
def test_coefficients_are_the_papers_for_the_listed_pairs(spacing, S, eta):
    levels = make_timesteps(spacing, 1000, S)
    abar = np.append(1.0, oracles.alphas_cumprod("scaled_linear", zero_terminal_snr=False))
    c = path(eta, FLAWED, levels)
    of_x0, of_eps, noise = oracles.ddim_step(abar[levels[:-1]], abar[levels[1:]], eta)
    np.testing.assert_allclose(c.alpha_next[:-1], of_x0, rtol=2e-6)
    np.testing.assert_allclose(c.rule[:-1], of_eps, rtol=2e-6)
    np.testing.assert_allclose(c.noise[:-1], noise, rtol=1e-5)


def test_eta_one_is_the_papers_ddpm_eq_20():
    levels = make_timesteps("trailing", 1000, 25)
    abar = np.append(1.0, oracles.alphas_cumprod("scaled_linear", zero_terminal_snr=False))
    c = path(1.0, FLAWED, levels)
    alpha, sigma = np.sqrt(abar[levels[:-1]]), np.sqrt(1 - abar[levels[:-1]])
    of_x0, of_x_t, noise = oracles.ddpm_step(abar[levels[:-1]], abar[levels[1:]])
    # eps = (x_t - alpha x0) / sigma
    np.testing.assert_allclose(c.alpha_next[:-1] - c.rule[:-1] * alpha / sigma, of_x0, atol=1e-6)
    np.testing.assert_allclose(c.rule[:-1] / sigma, of_x_t, rtol=1e-5)
    np.testing.assert_allclose(c.noise[:-1], noise, rtol=1e-5)


# SNR = 0.


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("s", [999, 800, 500, 1])
def test_coefficients_from_zero_snr_are_the_limit(s, eta):
    c = path(eta, MENDED, np.array([1000, s]))
    abar = oracles.alphas_cumprod("scaled_linear", zero_terminal_snr=True)[s - 1]
    sigma = np.sqrt(1 - abar)
    np.testing.assert_allclose(c.alpha_next[0], np.sqrt(abar), rtol=1e-6)
    np.testing.assert_allclose(c.rule[0], sigma * np.sqrt(1 - eta**2), rtol=1e-6)
    np.testing.assert_allclose(c.noise[0], eta * sigma, rtol=1e-6)


@jax.jit
def first_step(x_T, v, coefficients):
    """The state at the second of two levels, which the last step hands through."""

    def denoise(x_t, level):
        x0_hat, eps_hat = make_denoise(lambda x, t: v, MENDED, "v")(x_t, level)
        at_T = level == 1000
        unchanged = x_t / coefficients.alpha_next[-1]
        return jnp.where(at_T, x0_hat, unchanged), jnp.where(at_T, eps_hat, 0)

    return samplers.integrate(samplers.ddim(), denoise, x_T, coefficients, KEY)


@pytest.mark.parametrize("eta", ETAS)
def test_the_first_step_from_zero_snr_is_its_closed_form(eta):
    x_T, v = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    x_s = first_step(x_T, v, path(eta, MENDED, np.array([1000, 800]), final_level=300))
    z = jax.jit(randomness.row_normal, static_argnums=3)(KEY, 1000, jnp.arange(3), (8,))
    abar = oracles.alphas_cumprod("scaled_linear", zero_terminal_snr=True)[800 - 1]
    expected = np.sqrt(abar) * -v + np.sqrt(1 - abar) * (np.sqrt(1 - eta**2) * x_T + eta * z)
    np.testing.assert_allclose(x_s, expected, rtol=1e-6, atol=1e-6)


def test_one_step_from_zero_snr_returns_the_conditional_mean_whatever_the_noise():
    c = path(0.0, MENDED, make_timesteps("trailing", 1000, 1))
    x = draw(np.linspace(-5, 5, 64, dtype=np.float32)[None], MENDED, c)
    np.testing.assert_array_equal(x, np.full((1, 64), MEAN, np.float32))


# Exact data: N(0.9, 0.3^2).


@pytest.mark.parametrize("S", STEPS)
def test_the_mean_is_exact_at_every_number_of_steps(S):
    c = path(0.0, MENDED, make_timesteps("trailing", 1000, S))
    # The sampler is affine in x_T, so two opposite starts have the mean of all of them.
    x = draw(jnp.array([[-1.0, 1.0]]), MENDED, c)
    assert np.mean(x) == pytest.approx(MEAN, abs=1e-4)
    mean, std = propagate(c, MENDED, 0.0, 1.0)
    assert np.std(x) == pytest.approx(std, rel=1e-4)
    assert mean == pytest.approx(MEAN, abs=1e-6)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("S", STEPS)
def test_the_mean_is_exact_for_stochastic_samplers_in_closed_form(S, eta):
    c = path(eta, MENDED, make_timesteps("trailing", 1000, S))
    mean, _ = propagate(c, MENDED, 0.0, 1.0)
    assert mean == pytest.approx(MEAN, abs=1e-6)


@pytest.mark.parametrize("S", [7, 61])
def test_a_million_stochastic_samples_have_the_exact_mean_and_the_predicted_spread(S):
    x_T = np.random.default_rng(0).standard_normal((1, 2**20), np.float32)
    c = path(1.0, MENDED, make_timesteps("trailing", 1000, S))
    x = np.float64(draw(x_T - np.mean(x_T), MENDED, c, KEY))
    assert np.mean(x) == pytest.approx(MEAN, abs=1e-3)
    assert np.std(x) == pytest.approx(propagate(c, MENDED, 0.0, 1.0)[1], rel=5e-3)


@pytest.mark.parametrize(
    "schedule, spacing, S, mean",
    [
        (FLAWED, "leading", 50, 0.8812),
        (FLAWED, "leading", 5, 0.8723),
        (MENDED, "leading", 50, 0.8979),
        (MENDED, "leading", 5, 0.8815),
    ],
)
def test_a_flaw_in_schedule_or_steps_loses_the_mean(schedule, spacing, S, mean):
    c = path(0.0, schedule, make_timesteps(spacing, 1000, S))
    assert np.mean(draw(jnp.array([[-1.0, 1.0]]), schedule, c)) == pytest.approx(mean, abs=1e-4)


# Order.

NUM_LEVELS = 512  # of them and one more, evenly spaced in log(alpha / sigma) from 1 to -2
LOG_RATIO = np.linspace(1, -2, NUM_LEVELS + 1)
UNIFORM = schedules.from_alphas_cumprod(1 / (1 + np.exp(-2 * LOG_RATIO)))


def exact_std(level):
    return np.sqrt(np.float64(UNIFORM.alpha[level]) ** 2 * STD**2 + UNIFORM.sigma[level] ** 2)


def order(error_of):
    """The slope of the error of S steps against 1/S, both as logarithms."""
    steps = np.array([64, 128, 256, 512])
    errors = [
        abs(error_of(np.arange(NUM_LEVELS + 1, 1, -NUM_LEVELS // S, dtype=np.int32))) for S in steps
    ]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_the_order_of_the_deterministic_sampler_is_one():
    mean_T = np.float64(UNIFORM.alpha[-1]) * MEAN
    x_T = jnp.float32(mean_T + exact_std(-1) * np.array([[-1, 1]]))

    def error(levels):
        c = path(0.0, UNIFORM, levels, final_level=1)
        return np.std(np.float64(draw(x_T, UNIFORM, c))) - exact_std(1)

    assert order(error) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_weak_order_of_the_stochastic_sampler_is_one(eta):
    def error(levels):
        c = path(eta, UNIFORM, levels, final_level=1)
        mean_T = np.float64(UNIFORM.alpha[-1]) * MEAN
        return propagate(c, UNIFORM, mean_T, exact_std(-1))[1] - exact_std(1)

    assert order(error) == pytest.approx(1, abs=0.15)
