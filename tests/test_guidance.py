"""Classifier-free guidance and its rescale against Algorithm 2 of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from zsnr_jax import samplers, schedules
from zsnr_jax.guidance import guide, guide_network, guide_within, sharing_input
from zsnr_jax.predictions import StatefulDenoise
from zsnr_jax.timesteps import make_timesteps

SHAPES = [(3, 5), (3, 4, 4, 2), (2, 3, 4, 4, 2)]
compiled = jax.jit(guide)


def outputs(shape, seed=0):
    """Two outputs whose spread and mean differ from example to example."""
    rng = np.random.default_rng(seed)
    per_example = (2, shape[0], *(1 for _ in shape[1:]))
    x = rng.normal(size=(2, *shape)) * rng.uniform(0.2, 3, per_example)
    return jnp.asarray(x + rng.normal(size=per_example), jnp.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale, rescale", [(7.5, 0.7), (7.5, 0), (2, 1), (0, 0.5), (-1, 0.3)])
def test_guidance_is_algorithm_2_for_each_example(shape, scale, rescale):
    cond, uncond = outputs(shape)
    truth = [oracles.guided(c, u, scale, rescale) for c, u in zip(cond, uncond, strict=True)]
    result = compiled(cond, uncond, scale, rescale)
    np.testing.assert_allclose(result, np.stack(truth), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_one_is_the_conditional_output(shape):
    cond, uncond = outputs(shape)
    np.testing.assert_array_equal(compiled(cond, uncond, 1.0), cond)
    np.testing.assert_allclose(compiled(cond, uncond, 1.0, 0.7), cond, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_rescale_zero_leaves_the_guided_output_bit_for_bit(shape):
    cond, uncond = outputs(shape)
    np.testing.assert_array_equal(guide(cond, uncond, 7.5, 0.0), cond + 6.5 * (cond - uncond))


@pytest.mark.parametrize("shape", SHAPES)
def test_rescale_one_gives_each_example_the_spread_of_its_conditional_output(shape):
    cond, uncond = outputs(shape)
    axes = tuple(range(1, len(shape)))
    spread = np.std(compiled(cond, uncond, 7.5, 1.0), axes)
    np.testing.assert_allclose(spread, np.std(cond, axes), rtol=1e-5)


def test_an_example_does_not_depend_on_its_batch():
    cond, uncond = outputs((3, 4, 4, 2))
    rows = [compiled(cond[b : b + 1], uncond[b : b + 1], 7.5, 0.7)[0] for b in range(3)]
    np.testing.assert_allclose(compiled(cond, uncond, 7.5, 0.7), jnp.stack(rows), rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.1, 1 / 3, -0.7])
@pytest.mark.parametrize("constant", ["cond", "both", "guided"])
def test_the_factor_is_one_where_an_output_is_constant(constant, level):
    cond, uncond = outputs((2, 5, 7, 3))
    if constant != "guided":
        cond = jnp.full_like(cond, level)
    if constant == "both":
        uncond = jnp.full_like(cond, 0.2)
    if constant == "guided":  # cond + (2 - 1)(cond - uncond) = 0
        uncond = 2 * cond
    scale = 2.0 if constant == "guided" else 7.5
    expected = cond + (scale - 1) * (cond - uncond)
    np.testing.assert_allclose(compiled(cond, uncond, scale, 1.0), expected, rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.1])
def test_gradients_are_finite_where_outputs_are_constant(level):
    @functools.partial(jax.grad, argnums=(0, 1, 2, 3))
    def gradient(cond, uncond, scale, rescale):
        return jnp.sum(guide(cond, uncond, scale, rescale) ** 2)

    cond, uncond = jnp.full((2, 5, 7, 3), level), jnp.zeros((2, 5, 7, 3))
    gradients = jax.jit(gradient)(cond, uncond, 7.5, 0.7)
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_statistics_are_float32_for_bfloat16_outputs():
    cond, uncond = outputs((2, 16, 16, 4)).astype(jnp.bfloat16)
    result = compiled(cond, uncond, 7.5, 0.7)
    assert result.dtype == jnp.float32
    truth = [oracles.guided(c, u, 7.5, 0.7) for c, u in zip(cond, uncond, strict=True)]
    np.testing.assert_allclose(result, np.stack(truth), rtol=1e-5, atol=1e-5)


def test_scale_and_rescale_may_be_traced():
    traces = []

    @jax.jit
    def traced(cond, uncond, scale, rescale):
        traces.append(None)
        return guide(cond, uncond, scale, rescale)

    cond, uncond = outputs((3, 4, 4, 2))
    for scale, rescale in [(7.5, 0.7), (1.0, 0.0), (3.0, 1.0)]:
        result = traced(cond, uncond, scale, rescale)
        expected = guide(cond, uncond, scale, rescale)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


def network(x_t, timestep, condition):
    """A toy that tells examples, timesteps and conditions apart."""
    label = condition["label"][:, None, None, None]
    bias = condition["bias"][:, None, None, :]
    return jnp.sin(x_t * (1 + label)) + bias + 0.01 * timestep[:, None, None, None]


CONDITION = {"label": jnp.arange(3), "bias": jnp.linspace(-1, 1, 6).reshape(3, 2)}
NULL = {"label": jnp.full(3, 7), "bias": jnp.zeros((3, 2))}
TIMESTEP = jnp.array([3, 500, 999])


def test_a_guided_network_is_two_calls_and_guidance():
    x_t = outputs((3, 4, 4, 2))[0]
    result = jax.jit(guide_network(network, CONDITION, NULL, 7.5, 0.7))(x_t, TIMESTEP)
    cond, uncond = (network(x_t, TIMESTEP, c) for c in (CONDITION, NULL))
    np.testing.assert_allclose(result, guide(cond, uncond, 7.5, 0.7), rtol=1e-5, atol=1e-6)


def test_a_guided_network_calls_once_with_each_examples_rows_side_by_side():
    seen = []

    def spy(x_t, timestep, condition):
        seen.append((x_t, timestep, condition["label"]))
        return network(x_t, timestep, condition)

    x_t = outputs((3, 4, 4, 2))[0]
    guide_network(spy, CONDITION, NULL, 7.5)(x_t, TIMESTEP)
    ((rows, timesteps, labels),) = seen
    np.testing.assert_array_equal(rows, np.repeat(x_t, 2, axis=0))
    assert timesteps.tolist() == [3, 3, 500, 500, 999, 999]
    assert labels.tolist() == [0, 7, 1, 7, 2, 7]


def test_a_network_may_take_both_conditions_to_one_row_of_input():
    def sharing(x_t, timestep, condition):
        assert len(x_t) == len(timestep) == 3
        return network(jnp.repeat(x_t, 2, axis=0), jnp.repeat(timestep, 2), condition)

    x_t = outputs((3, 4, 4, 2))[0]
    found, wanted = (
        guide_network(of_pairs, CONDITION, NULL, 7.5, 0.7)(x_t, TIMESTEP)
        for of_pairs in (sharing_input(sharing), network)
    )
    np.testing.assert_array_equal(found, wanted)


# Guidance in an interval of levels.

MENDED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
LEVELS = make_timesteps("trailing", 1000, 10)


def says(value):
    """A denoise of one answer, and a list of the levels it was really called at."""
    calls = []

    def denoise(x_t, level):
        jax.debug.callback(lambda level: calls.append(int(level)), level)
        return jnp.full_like(x_t, value), x_t

    return denoise, calls


def test_guidance_acts_within_its_interval_and_calls_nothing_outside():
    (guided, inside), (unguided, outside) = says(1.0), says(-1.0)
    c = samplers.coefficients(samplers.ddim(), MENDED, LEVELS)
    traces = []

    @jax.jit
    def estimates(lowest, highest):
        traces.append(None)
        denoise = guide_within(guided, unguided, lowest, highest)
        return samplers.trajectory(samplers.ddim(), denoise, jnp.ones((1, 2)), c)[1]

    for lowest, highest in [(300, 800), (1, 1000), (1000, 1000), (450, 460)]:
        inside.clear()
        outside.clear()
        values = estimates(lowest, highest)[:, 0, 0]
        jax.effects_barrier()
        within = [level for level in LEVELS.tolist() if lowest <= level <= highest]
        assert sorted(inside, reverse=True) == within
        assert sorted(inside + outside, reverse=True) == LEVELS.tolist()
        np.testing.assert_array_equal(values, np.where(np.isin(LEVELS, within), 1, -1))
    assert len(traces) == 1


def test_a_memory_rests_outside_the_interval():
    counting = StatefulDenoise(
        lambda x_T: 5, lambda x, level, n: ((jnp.full_like(x, n), jnp.zeros_like(x)), n + 1)
    )
    denoise = guide_within(counting, says(-1.0)[0], 300, 800)
    c = samplers.coefficients(samplers.ddim(), MENDED, LEVELS)
    _, estimates = samplers.trajectory(samplers.ddim(), denoise, jnp.ones((1, 2)), c)
    assert estimates[:, 0, 0].tolist() == [-1, -1, 5, 6, 7, 8, 9, 10, -1, -1]
