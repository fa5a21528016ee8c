"""DDIM, under all its names, against the textbook and against its limit at SNR = 0."""

from typing import Any

import jax
import numpy as np
import oracles
import pytest

from zsnr_jax import samplers, schedules
from zsnr_jax.timesteps import make_timesteps

MENDED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
FLAWED = schedules.make_schedule("scaled_linear")
ETAS = [0.0, 0.5, 1.0]


def path(eta, schedule, levels, final_level=0) -> Any:
    return samplers.coefficients(samplers.ddim(eta), schedule, levels, final_level)


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


# Its other names.


@pytest.mark.parametrize(
    "named, eta",
    [
        (samplers.ddpm(), 1.0),
        (samplers.euler(), 0.0),
        (samplers.euler_ancestral(), 1.0),
        (samplers.euler_ancestral(0.5), 0.5),
    ],
)
def test_a_named_constructor_is_ddim_with_its_eta(named, eta):
    c = samplers.coefficients(named, MENDED, make_timesteps("trailing", 1000, 25))
    jax.tree.map(np.testing.assert_array_equal, c, path(eta, MENDED, c.level))


@pytest.mark.parametrize("eta", ETAS)
def test_euler_ancestral_is_the_textbooks_in_sigma_over_alpha(eta):
    levels = make_timesteps("trailing", 1000, 25)
    abar = np.append(1.0, oracles.alphas_cumprod("scaled_linear", zero_terminal_snr=False))
    up, down = oracles.euler_ancestral_sigmas(abar[levels[:-1]], abar[levels[1:]], eta)
    c = samplers.coefficients(samplers.euler_ancestral(eta), FLAWED, levels)
    alpha_next = np.sqrt(abar[levels[1:]])
    np.testing.assert_allclose(c.noise[:-1], alpha_next * up, rtol=1e-5)
    np.testing.assert_allclose(c.rule[:-1], alpha_next * down, rtol=1e-5)
