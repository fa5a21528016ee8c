"""Heun and DPM-Solver++(2M) against the textbook, in its own variables, in float64."""

import gaussian
import numpy as np
import oracles
import pytest

from zsnr_jax import samplers, schedules
from zsnr_jax.timesteps import make_timesteps

MENDED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
Z = np.random.default_rng(0).normal(size=(12, 5))
X_T = np.linspace(-2, 2, 5)
ALPHA, SIGMA = gaussian.uniform_path(12, -2, 1.5)


def denoise(x, abar):
    return np.tanh(2 * x * np.sqrt(abar) / (1 - abar) + 0.4)


def ours(sampler):
    return gaussian.run(sampler, ALPHA, SIGMA, X_T, lambda x, i: denoise(x, ALPHA[i] ** 2), Z)


@pytest.mark.parametrize(
    "sampler, expected",
    [
        (samplers.heun(), oracles.heun(X_T, denoise, ALPHA**2)),
        (samplers.dpmpp_2m(), oracles.dpmpp_2m(X_T, denoise, ALPHA**2)),
        (samplers.dpmpp_2m_sde(), oracles.dpmpp_2m(X_T, denoise, ALPHA**2, Z)),
    ],
    ids=["heun", "dpmpp_2m", "dpmpp_2m_sde"],
)
def test_a_path_is_the_textbooks(sampler, expected):
    np.testing.assert_allclose(ours(sampler), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [samplers.dpmpp_2m(), samplers.dpmpp_2m_sde()])
def test_extrapolation_begins_at_the_third_step_from_zero_snr(sampler):
    c = samplers.coefficients(sampler, MENDED, make_timesteps("trailing", 1000, 5))
    assert np.all(c.rule.correction[:2] == 0)  # no last estimate; the last step was infinite
    assert np.all(c.rule.correction[2:4] > 0)


def test_extrapolation_begins_at_the_second_step_from_a_finite_level():
    c = samplers.coefficients(samplers.dpmpp_2m(), MENDED, np.array([800, 600, 400, 200]))
    assert c.rule.correction[0] == 0 and np.all(c.rule.correction[1:3] > 0)


def test_heun_calls_the_network_twice_a_step_but_for_the_last():
    calls = []

    def counted(x, place):
        calls.append(place)
        return denoise(x, ALPHA[place] ** 2)

    gaussian.run(samplers.heun(), ALPHA, SIGMA, X_T, counted, Z)
    assert len(calls) == 2 * 12 - 1
    assert calls[:4] == [0, 1, 1, 2] and calls[-1] == 11
