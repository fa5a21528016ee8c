"""Adaptive projected guidance against its algorithm, at both ends of the schedule."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from zsnr_jax import samplers, schedules
from zsnr_jax.apg import make_apg_denoise, project
from zsnr_jax.guidance import guide_network
from zsnr_jax.predictions import make_denoise
from zsnr_jax.timesteps import make_timesteps

MENDED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
FLAWED = schedules.make_schedule("scaled_linear")
CONDITION, NEGATIVE = jnp.array([0.5, -0.2, 1.0]), jnp.zeros(3)
SHAPE = (3, 4, 4, 2)


def network(x_t, timestep, condition):
    shift = (condition + timestep / 1000)[:, None, None, None]
    return jnp.tanh(x_t * (1 + shift) + shift)


def start():
    return jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)


def apg(scale, schedule=MENDED, prediction="v", **options):
    return make_apg_denoise(network, schedule, prediction, CONDITION, NEGATIVE, scale, **options)


def estimates(condition, level, schedule=MENDED, prediction="v"):
    """x0_hat and eps_hat of one condition alone."""
    denoise = make_denoise(lambda x, t: network(x, t, condition), schedule, prediction)
    return jax.jit(denoise)(start(), level)


@pytest.mark.parametrize("level", [1000, 400, 1])
@pytest.mark.parametrize("eta, threshold", [(0.0, np.inf), (0.0, 2.0), (0.4, 2.0), (1.0, 1.0)])
def test_an_estimate_is_the_algorithms(level, eta, threshold):
    _, estimate = apg(7.5, eta=eta, norm_threshold=threshold)
    (x0_hat, _), _ = jax.jit(estimate)(start(), level, jnp.zeros(SHAPE))
    (cond, _), (negative, _) = estimates(CONDITION, level), estimates(NEGATIVE, level)
    for b in range(3):
        delta = np.float64(cond[b]) - np.float64(negative[b])
        expected = oracles.projected(cond[b], delta, 7.5, eta, threshold)
        np.testing.assert_allclose(x0_hat[b].ravel(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "schedule, prediction", [(MENDED, "v"), (MENDED, "x0"), (FLAWED, "eps"), (FLAWED, "v")]
)
@pytest.mark.parametrize("level", [1000, 300])
def test_both_estimates_still_make_up_the_input(schedule, prediction, level):
    _, estimate = apg(7.5, schedule, prediction)
    (x0_hat, eps_hat), _ = jax.jit(estimate)(start(), level, jnp.zeros(SHAPE))
    x_t = schedule.alpha[level] * x0_hat + schedule.sigma[level] * eps_hat
    np.testing.assert_allclose(x_t, start(), rtol=1e-4, atol=1e-4)
    if schedule.alpha[level] == 0:
        np.testing.assert_array_equal(eps_hat, start())


@pytest.mark.parametrize("prediction, schedule", [("v", MENDED), ("eps", FLAWED)])
def test_with_all_of_the_parallel_part_and_no_memory_it_is_plain_guidance(prediction, schedule):
    x_T, c = (
        start(),
        samplers.coefficients(samplers.ddim(), schedule, make_timesteps("trailing", 1000, 4)),
    )
    draw = jax.jit(lambda denoise: samplers.integrate(samplers.ddim(), denoise, x_T, c),
                   static_argnums=0)  # fmt: skip
    plain = guide_network(network, CONDITION, NEGATIVE, 3.0)
    expected = draw(make_denoise(plain, schedule, prediction))
    result = draw(apg(3.0, schedule, prediction, eta=1.0, momentum=0.0))
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_momentum_carries_the_last_levels_difference():
    levels = make_timesteps("trailing", 1000, 4)
    start_memory, estimate = apg(7.5, momentum=-0.6)
    x, delta = start(), start_memory(start())
    assert not np.any(delta)
    for level in levels.tolist():
        difference = estimates(CONDITION, level)[0] - estimates(NEGATIVE, level)[0]
        _, after = estimate(x, level, delta)
        np.testing.assert_allclose(after, difference - 0.6 * delta, rtol=1e-4, atol=1e-5)
        delta = after


def test_values_and_gradients_are_finite_where_a_network_says_nothing():
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(cond, delta, threshold):
        return jnp.sum(project(delta, cond, 0.0, threshold) ** 2)

    something = start()
    for threshold in (1.0, np.inf):
        for cond, delta in itertools.product((jnp.zeros(SHAPE), something), repeat=2):
            value, gradients = total(cond, delta, threshold)
            assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_values_and_gradients_from_zero_snr_are_finite(name):
    sampler = samplers.make_sampler(name)
    c = samplers.coefficients(sampler, MENDED, make_timesteps("trailing", 1000, 4))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(x_T, scale):
        return jnp.sum(samplers.integrate(sampler, apg(scale), x_T, c) ** 2)

    value, gradients = total(start(), 7.5)
    assert np.isfinite(value) and gradients[1] != 0
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_its_memory_is_sharded_as_the_samples_are():
    rows = jax.sharding.PartitionSpec("rows")
    c = samplers.coefficients(samplers.ddim(), MENDED, make_timesteps("trailing", 1000, 3))

    def draw(x_T, condition):
        args = (network, MENDED, "v", condition, jnp.zeros_like(condition), 7.5)
        return samplers.integrate(samplers.ddim(), make_apg_denoise(*args), x_T, c)

    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=rows, out_specs=rows))
    expected = jax.jit(draw)(start(), CONDITION)
    np.testing.assert_allclose(sharded(start(), CONDITION), expected, rtol=1e-5, atol=1e-5)
