"""What every solver must do: start at SNR = 0 exactly, keep the mean, and have its order."""

import functools

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from gaussian import MEAN, STD

from zsnr_jax import randomness, samplers, schedules
from zsnr_jax.predictions import make_denoise
from zsnr_jax.timesteps import SPACINGS, make_timesteps

MENDED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
FLAWED = schedules.make_schedule("scaled_linear")
KEY = randomness.purpose_key(0, randomness.Purpose.SAMPLE)
STEPS = [5, 7, 10, 15, 25, 30, 50, 60, 61]
SOLVERS = {
    name: make() for name, make in samplers.SAMPLERS.items() if name not in ("euler", "ddpm")
} | {"ddim(0.5)": samplers.ddim(0.5)}
ORDERS = {"heun": 2, "dpmpp_2m": 2, "dpmpp_2m_sde": 2}  # of the others: 1
STOCHASTIC = ["ddim(0.5)", "euler_ancestral", "dpmpp_2m_sde"]
every_solver = pytest.mark.parametrize("name", SOLVERS)


def law(name, schedule, levels):
    levels = np.append(levels, 0)
    return gaussian.law(SOLVERS[name], schedule.alpha[levels], schedule.sigma[levels])


@functools.cache
def compiled(name, schedule_is_mended, denoise):
    schedule = MENDED if schedule_is_mended else FLAWED

    def network(x_t, timestep):
        level = timestep.reshape(-1, *[1] * (x_t.ndim - 1)) + 1
        alpha, sigma = jnp.asarray(schedule.alpha)[level], jnp.asarray(schedule.sigma)[level]
        return (alpha * x_t - denoise(x_t, alpha, sigma)) / sigma

    bound = make_denoise(network, schedule, "v")
    return jax.jit(lambda x_T, c, key=None: samplers.integrate(SOLVERS[name], bound, x_T, c, key))


def draw(name, schedule, levels, x_T, denoise, key=None, final_level=0):
    """Samples by the exact denoiser, given as a v-prediction."""
    c = samplers.coefficients(SOLVERS[name], schedule, levels, final_level)
    return np.float64(compiled(name, schedule is MENDED, denoise)(x_T, c, key))


def gaussian_denoise(x_t, alpha, sigma):
    return oracles.gaussian_x0(x_t, alpha, sigma, MEAN, STD)


def two_point_denoise(x_t, alpha, sigma):
    """E[x0 | x_t] where x0 is 1 with probability 0.7, else -1."""
    return jnp.tanh(alpha * x_t / sigma**2 + np.log(0.7 / 0.3) / 2)


# The first step, from SNR = 0.


def second_x0(y):
    """What the network takes the picture for at the second level."""
    return 0.3 * y + 0.1


@functools.cache
def compiled_first_step(name):
    """The state at level 800, of two, from what the last step makes of it at level 300."""
    alpha, sigma = MENDED.alpha[800], MENDED.sigma[800]
    alpha_next, sigma_next = MENDED.alpha[300], MENDED.sigma[300]

    def first_step(x_T, v, c):
        def network(x_t, timestep):
            second = (alpha * x_t - second_x0(x_t)) / sigma
            return jnp.where(timestep[0] == 999, v, second)

        denoise = make_denoise(network, MENDED, "v")
        end = samplers.integrate(SOLVERS[name], denoise, x_T, c, KEY)
        of_x, of_1 = (second_x0(1.0) - second_x0(0.0)), second_x0(0.0)
        kept = sigma_next / sigma
        moved = alpha_next - kept * alpha
        return (end - moved * of_1) / (moved * of_x + kept)

    return jax.jit(first_step)


@every_solver
def test_the_first_step_from_zero_snr_is_its_closed_form(name):
    x_T, v = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    c = samplers.coefficients(SOLVERS[name], MENDED, np.array([1000, 800]), final_level=300)
    z = jax.jit(randomness.row_normal, static_argnums=3)(KEY, 1000, jnp.arange(3), (8,))
    abar = oracles.alphas_cumprod("scaled_linear", zero_terminal_snr=True)[800 - 1]
    alpha, sigma, D = np.sqrt(abar), np.sqrt(1 - abar), -v
    ddim = alpha * D + sigma * x_T
    expected = {
        "ddim": ddim,
        "ddim(0.5)": alpha * D + sigma * (np.sqrt(0.75) * x_T + 0.5 * z),
        "euler_ancestral": alpha * D + sigma * z,
        "heun": alpha * (D + second_x0(ddim)) / 2 + sigma * x_T,
        "dpmpp_2m": ddim,
        "dpmpp_2m_sde": alpha * D + sigma * z,
    }[name]
    x_s = compiled_first_step(name)(x_T, v, c)
    np.testing.assert_allclose(x_s, expected, rtol=2e-6, atol=2e-6)


@every_solver
def test_one_step_from_zero_snr_returns_the_conditional_mean_whatever_the_noise(name):
    x_T = np.linspace(-5, 5, 64, dtype=np.float32)[None]
    x = draw(name, MENDED, make_timesteps("trailing", 1000, 1), x_T, gaussian_denoise)
    np.testing.assert_array_equal(x, np.full((1, 64), np.float32(MEAN)))


@every_solver
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_from_zero_snr_are_finite(name, dtype):
    c = samplers.coefficients(SOLVERS[name], MENDED, make_timesteps("trailing", 1000, 4))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(weight, x_T):
        def network(x_t, timestep):
            assert x_t.dtype == jnp.float32
            return jnp.tanh(weight.astype(dtype) * x_t.astype(dtype) + timestep[0] / 1000)

        denoise = make_denoise(network, MENDED, "v")
        return jnp.sum(samplers.integrate(SOLVERS[name], denoise, x_T, c, KEY) ** 2)

    value, gradients = total(jnp.float32(0.8), jnp.ones((1, 5)))
    assert np.isfinite(value) and gradients[0] != 0
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@every_solver
@pytest.mark.parametrize("schedule", [MENDED, FLAWED], ids=["mended", "flawed"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("S", [1, 2, 3, 50, 1000])
def test_coefficients_are_finite_at_every_step(name, schedule, spacing, S):
    c = samplers.coefficients(SOLVERS[name], schedule, make_timesteps(spacing, 1000, S, schedule))
    for leaf in jax.tree.leaves(c):
        assert leaf.shape == (S,) and np.all(np.isfinite(leaf))


# The mean: data N(0.9, 0.3^2) come out at 0.9, however few the steps.


@every_solver
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "karras", "uniform_logsnr"])
def test_the_mean_is_exact_at_every_number_of_steps_in_closed_form(name, spacing):
    for S in STEPS:
        mean, _ = law(name, MENDED, make_timesteps(spacing, 1000, S, MENDED))
        assert mean == pytest.approx(MEAN, abs=1e-6), S


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in STOCHASTIC])
@pytest.mark.parametrize("S", STEPS)
def test_samples_have_the_exact_mean_and_the_predicted_spread(name, S):
    levels = make_timesteps("trailing", 1000, S)
    # The sampler is affine in x_T, so two opposite starts have the mean of all of them.
    x = draw(name, MENDED, levels, jnp.array([[-1.0, 1.0]]), gaussian_denoise)
    assert np.mean(x) == pytest.approx(MEAN, abs=1e-4)
    assert np.std(x) == pytest.approx(law(name, MENDED, levels)[1], rel=1e-4)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("S", [7, 30])
def test_a_million_stochastic_samples_have_the_exact_mean_and_the_predicted_spread(name, S):
    x_T = np.random.default_rng(0).standard_normal((1, 2**20), np.float32)
    levels = make_timesteps("trailing", 1000, S)
    x = draw(name, MENDED, levels, x_T - np.mean(x_T), gaussian_denoise, KEY)
    assert np.mean(x) == pytest.approx(MEAN, abs=1e-3)
    assert np.std(x) == pytest.approx(law(name, MENDED, levels)[1], rel=5e-3)


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
    levels = make_timesteps(spacing, 1000, S)
    x = draw("ddim", schedule, levels, jnp.array([[-1.0, 1.0]]), gaussian_denoise)
    assert np.mean(x) == pytest.approx(mean, abs=1e-4)


# Any list of levels, and any prediction.


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in STOCHASTIC])
@pytest.mark.parametrize(
    "levels, final_level", [([600, 333, 47], 12), ([999, 998, 2], 0), ([3], 2)]
)
def test_a_list_that_starts_below_T_has_the_law_of_its_own_levels(name, levels, final_level):
    path = [*levels, final_level]
    law = gaussian.law(SOLVERS[name], MENDED.alpha[path], MENDED.sigma[path], (0.4, 0.7))
    x = draw(name, MENDED, np.array(levels), jnp.array([[-0.3, 1.1]]), gaussian_denoise,
             final_level=final_level)  # fmt: skip
    assert (np.mean(x), np.std(x)) == pytest.approx(law, rel=1e-4)


@every_solver
@pytest.mark.parametrize("schedule", [MENDED, FLAWED], ids=["mended", "flawed"])
def test_one_denoiser_gives_one_sample_whatever_the_network_predicts(name, schedule):
    alphas, sigmas = jnp.asarray(schedule.alpha), jnp.asarray(schedule.sigma)
    c = samplers.coefficients(SOLVERS[name], schedule, make_timesteps("trailing", 1000, 5))
    predictions = ("v", "x0") if schedule is MENDED else ("v", "x0", "eps")

    @jax.jit
    def draw_all(x_T):
        def network(prediction, x_t, timestep):
            alpha, sigma = alphas[timestep[0] + 1], sigmas[timestep[0] + 1]
            x0_hat = two_point_denoise(x_t, alpha, sigma)
            eps_hat = (x_t - alpha * x0_hat) / sigma
            return {"v": alpha * eps_hat - sigma * x0_hat, "x0": x0_hat, "eps": eps_hat}[prediction]

        networks = [functools.partial(network, prediction) for prediction in predictions]
        denoises = [make_denoise(n, schedule, p) for n, p in zip(networks, predictions)]
        return [samplers.integrate(SOLVERS[name], d, x_T, c, KEY) for d in denoises]

    first, *others = draw_all(jnp.linspace(-2, 2, 8).reshape(2, 4))
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3, atol=1e-4)


# A mixture: not affine, so that no Gaussian algebra helps.


@every_solver
def test_two_points_are_both_found_with_their_frequencies(name):
    quantiles = (np.arange(2**14) + 0.5) / 2**14
    x_T = jax.scipy.stats.norm.ppf(quantiles).astype(np.float32)[None]
    x = draw(name, MENDED, make_timesteps("trailing", 1000, 50), x_T, two_point_denoise, KEY)
    assert np.mean(np.abs(np.abs(x) - 1) < 0.01) > 0.995
    assert np.mean(x > 0) == pytest.approx(0.7, abs=0.01)


# Order.


@every_solver
def test_the_order_within_a_path(name):
    """From the exact law at log(alpha / sigma) = -2 to that at 1; for z, the weak order."""

    def error(S):
        alpha, sigma = gaussian.uniform_path(S)
        start = (alpha[0] * MEAN, gaussian.data_std(alpha[0], sigma[0]))
        _, std = gaussian.law(SOLVERS[name], alpha, sigma, start)
        return std - gaussian.data_std(alpha[-1], sigma[-1])

    assert gaussian.order(error) == pytest.approx(ORDERS.get(name, 1), abs=0.15)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m"])
def test_the_last_jump_makes_a_whole_trailing_path_first_order(name):
    """The jump from level T/S to clean data loses what the network cannot see at that level.

    Its x0_hat has the deviation STD / sqrt(1 + sigma^2 / (alpha STD)^2), and sigma^2 is
    proportional to the level near 0. That is most of a second-order solver's error.
    """
    betas = oracles.table_1_betas("scaled_linear", 4096) * 1000 / 4096
    schedule = schedules.rescale_zero_terminal_snr(schedules.from_betas(betas))

    def error(S):
        levels = np.append(make_timesteps("trailing", 4096, S), 0)
        _, std = gaussian.law(SOLVERS[name], schedule.alpha[levels], schedule.sigma[levels])
        return std - STD

    def jump(S):
        alpha, sigma = (np.float64(side[4096 // S]) for side in schedule)
        return STD / np.sqrt(1 + (sigma / (alpha * STD)) ** 2) - STD

    assert gaussian.order(error) == pytest.approx(1, abs=0.15)
    assert error(512) == pytest.approx(jump(512), rel=0.2)
