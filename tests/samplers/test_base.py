"""The loop over time: what it refuses, what it compiles, and what a row depends on."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax import randomness, samplers, schedules
from zsnr_jax.errors import UsageError
from zsnr_jax.guidance import guide_network
from zsnr_jax.predictions import StatefulDenoise, make_denoise
from zsnr_jax.timesteps import SPACINGS, make_timesteps

MENDED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
LEVELS = make_timesteps("trailing", 1000, 4)
KEY = randomness.purpose_key(0, randomness.Purpose.SAMPLE)
ETAS = [0.0, 0.5, 1.0]


def network(x_t, timestep, condition=0.3):
    """Nonlinear, and different at each level and condition."""
    per_row = (-1, *(1 for _ in x_t.shape[1:]))
    shift = jnp.reshape(condition + timestep / 1000, per_row)
    return jnp.tanh(x_t + shift)


DENOISE = make_denoise(network, MENDED, "v")


def start(B=4) -> Any:
    return np.random.default_rng(1).normal(size=(B, 3, 3, 2)).astype(np.float32)


@jax.jit
def draw(x_T, coefficients, key=None, index=None):
    """One compiled sampler for every eta, schedule and list of levels of equal length."""
    return samplers.integrate(samplers.ddim(), DENOISE, x_T, coefficients, key, index)


def path(eta=0.0, levels=LEVELS, schedule=MENDED, final_level=0) -> Any:
    return samplers.coefficients(samplers.ddim(eta), schedule, levels, final_level)


@pytest.mark.parametrize(
    "levels, final_level",
    [
        ([1000, 500, 500], 0),
        ([500, 1000], 0),
        ([1001, 500], 0),
        ([1000, 0], 0),
        ([1000, -5], 0),
        ([1000, 500], 500),
        ([1000, 500], 700),
    ],
)
def test_levels_that_do_not_decrease_within_range_are_refused(levels, final_level):
    message = f"from at most T = 1000 to above final_level = {final_level}, and .* {levels[0]}, "
    with pytest.raises(UsageError, match=message):
        path(levels=np.array(levels), final_level=final_level)


@pytest.mark.parametrize("levels", [[], [[1000, 500]], [1000.0, 500.0]])
def test_levels_that_are_no_row_of_integers_are_refused(levels):
    with pytest.raises(UsageError, match="one non-empty row of integer levels"):
        path(levels=np.array(levels))


def test_a_long_list_is_shortened_when_refused():
    with pytest.raises(UsageError, match=r"are 1, 2, 3, \.\.\., 999, 1000: change"):
        path(levels=np.arange(1, 1001))


@pytest.mark.parametrize("eta", ETAS)
def test_coefficients_are_one_finite_entry_for_each_step(eta):
    c = path(eta)
    assert c.level.dtype == np.int32 and c.level.tolist() == LEVELS.tolist()
    for leaf in jax.tree.leaves((c.alpha_next, c.sigma_next, c.noise, c.rule)):
        assert leaf.dtype == np.float32 and leaf.shape == (4,) and np.all(np.isfinite(leaf))
    np.testing.assert_array_equal(c.alpha_next, MENDED.alpha[[*LEVELS[1:], 0]])
    np.testing.assert_array_equal(c.sigma_next, MENDED.sigma[[*LEVELS[1:], 0]])
    assert c.noise[-1] == 0 and np.all((c.noise[:-1] > 0) == (eta > 0))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_rule_is_finite_to_its_last_step(name):
    for levels in (LEVELS, LEVELS[:1]):
        c = samplers.coefficients(samplers.SAMPLERS[name](), MENDED, levels)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(c.rule))


def test_a_rule_that_is_not_finite_is_refused():
    """Beside a step that is taken it would make gradients nan, though not the sample."""
    rule = lambda path: (0 * path.alpha, np.append(0 * path.alpha[1:], np.inf))  # noqa: E731
    step = lambda now, memory, c, look: (now[0] * c.rule, memory)  # noqa: E731
    with pytest.raises(UsageError, match="the rule of mine is not finite .*also for the last"):
        samplers.coefficients(samplers.Sampler("mine", rule, step), MENDED, LEVELS)


@jax.jit
def watched(coefficients):
    """Run a sampler whose network says 0, so that only noise is carried; return nothing of it."""

    def denoise(x_t, level):
        jax.debug.callback(lambda *call: CALLS.append(call), level, x_t, ordered=True)
        return 0 * x_t, 0 * x_t

    samplers.integrate(samplers.ddim(), denoise, start(2), coefficients, KEY)


row_normal = jax.jit(randomness.row_normal, static_argnums=3)
CALLS = []  # of the network that is watched: (level, x_t)


def calls(coefficients):
    CALLS.clear()
    watched(coefficients)
    jax.effects_barrier()
    return CALLS


@pytest.mark.parametrize("levels, final_level", [(LEVELS, 0), ([800, 500, 20, 19], 10), ([700], 0)])
def test_the_network_is_called_once_at_each_listed_level(levels, final_level):
    seen = calls(path(levels=np.array(levels), final_level=final_level))
    assert [int(level) for level, _ in seen] == list(levels)


def test_every_step_adds_the_noise_of_its_own_level():
    c = path(1.0)
    for step, (_, x) in enumerate(calls(c)[1:]):
        z = row_normal(KEY, LEVELS[step], jnp.arange(2), (3, 3, 2))
        np.testing.assert_allclose(x, c.noise[step] * z, rtol=1e-6)


@pytest.mark.parametrize(
    "sampler", [samplers.ddim(0.5), samplers.euler_ancestral(), samplers.dpmpp_2m_sde()]
)
def test_a_stochastic_sampler_without_a_key_is_refused(sampler):
    c = samplers.coefficients(sampler, MENDED, LEVELS)
    for draw_without in (
        lambda: samplers.sample(sampler, DENOISE, start(), MENDED, LEVELS),
        lambda: samplers.trajectory(sampler, DENOISE, start(), c),
        lambda: jax.jit(lambda x_T, c: samplers.integrate(sampler, DENOISE, x_T, c))(start(), c),
    ):
        with pytest.raises(UsageError, match=".* adds noise and needs a key: pass key="):
            draw_without()


def test_a_denoise_made_for_another_schedule_is_refused():
    flawed = schedules.make_schedule("scaled_linear")
    with pytest.raises(UsageError, match="another schedule .*: pass the same to both"):
        samplers.sample(samplers.ddim(), DENOISE, start(), flawed, LEVELS)
    again = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)  # equal, not the same
    samplers.sample(samplers.ddim(), DENOISE, start(), again, np.array([1000]))


def test_equal_samplers_are_one_to_jit():
    for name, make in samplers.SAMPLERS.items():
        assert make() == make() and hash(make()) == hash(make()), name


@pytest.mark.parametrize("final_level", [-1, 1.5, "1", None])
def test_a_final_level_that_is_none_is_refused(final_level):
    with pytest.raises(UsageError, match="final_level must be an integer from 0 up, and it is"):
        path(final_level=final_level)


@pytest.mark.parametrize("final_level", [0, 10])
def test_one_step_needs_no_key_since_the_last_is_deterministic(final_level):
    x = samplers.sample(
        samplers.ddim(1.0), DENOISE, start(), MENDED, np.array([1000]), final_level=final_level
    )
    x0_hat, eps_hat = DENOISE(start(), jnp.int32(1000))
    alpha, sigma = MENDED.alpha[final_level], MENDED.sigma[final_level]
    np.testing.assert_allclose(x, alpha * x0_hat + sigma * eps_hat, rtol=1e-6)


def test_a_key_changes_nothing_without_noise():
    with_key = draw(start(), path(), KEY, jnp.arange(4))
    np.testing.assert_allclose(with_key, draw(start(), path()), rtol=1e-5)


def test_sample_is_coefficients_then_integrate_with_rows_numbered_from_0():
    whole = samplers.sample(samplers.ddim(1.0), DENOISE, start(), MENDED, LEVELS, KEY)
    parts = draw(start(), path(1.0), KEY, jnp.arange(4))
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eta", ETAS)
def test_a_batch_split_in_two_gives_the_same_rows(eta):
    x_T, index = start(), jnp.arange(4)
    whole = draw(x_T, path(eta), KEY, index)
    halves = [draw(x_T[half], path(eta), KEY, index[half]) for half in (slice(2), slice(2, 4))]
    np.testing.assert_allclose(jnp.concatenate(halves), whole, rtol=1e-6, atol=1e-6)


def test_a_row_has_the_noise_of_its_index_and_not_of_its_place():
    x_T = np.repeat(start(1), 4, axis=0)
    rows = draw(x_T, path(1.0), KEY, jnp.array([0, 1, 1, 7]))
    np.testing.assert_array_equal(rows[1], rows[2])
    assert np.all(rows[0] != rows[1]) and np.all(rows[0] != rows[3])


def test_samples_can_be_vmapped():
    one = lambda x_T, index, c: draw(x_T[None], c, KEY, index[None])[0]  # noqa: E731
    mapped = jax.vmap(one, in_axes=(0, 0, None))(start(), jnp.arange(4), path(1.0))
    whole = draw(start(), path(1.0), KEY, jnp.arange(4))
    np.testing.assert_allclose(mapped, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "prediction, dtype, key",
    [("v", jnp.float32, KEY), ("v", jnp.bfloat16, None), ("x0", jnp.float32, None)],
)
def test_a_gradient_through_a_sample_from_zero_snr_is_finite(prediction, dtype, key):
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(weight, x_T, c):
        net = lambda x, t: network(weight.astype(dtype) * x.astype(dtype), t)  # noqa: E731
        denoise = make_denoise(net, MENDED, prediction)
        return jnp.sum(samplers.integrate(samplers.ddim(), denoise, x_T, c, key) ** 2)

    for eta in (0.0, 1.0):
        value, gradients = total(jnp.float32(0.8), start(), path(eta))
        assert np.isfinite(value) and gradients[0] != 0
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_a_bfloat16_start_is_integrated_in_float32():
    assert draw(jnp.bfloat16(start()), path()).dtype == jnp.float32


def test_a_path_in_two_parts_is_the_whole_path():
    # Image-to-image starts below T, and final_level ends above 0: joined, nothing is lost.
    levels = np.array([1000, 700, 400, 100])
    half = draw(start(), path(levels=levels[:2], final_level=400))
    joined = draw(half, path(levels=levels[2:]))
    np.testing.assert_allclose(joined, draw(start(), path(levels=levels)), rtol=1e-5, atol=1e-6)


def test_integrate_is_traced_once_for_every_setting_of_equal_shape():
    traces = []

    @jax.jit
    def compiled(x_T, schedule, coefficients, scale, rescale):
        traces.append(None)
        guided = guide_network(network, jnp.full(2, 0.5), jnp.zeros(2), scale, rescale)
        denoise = make_denoise(guided, schedule, "v")
        return samplers.integrate(samplers.ddim(), denoise, x_T, coefficients, KEY)

    x_T, results = start(2), set()
    settings = itertools.product(schedules.SCHEDULES, (False, True), SPACINGS, (0.0, 1.0))
    for name, zero, spacing, eta in settings:
        schedule = schedules.make_schedule(name, zero_terminal_snr=zero)
        c = path(eta, make_timesteps(spacing, 1000, 5, schedule), schedule)
        for scale, rescale in ((1.0, 0.0), (7.5, 0.7)):
            results.add(float(compiled(x_T, schedule, c, scale, rescale).sum()))
    assert len(traces) == 1
    # All differ, but that leading never meets the last level, where alone the cosines differ.
    assert len(results) == 3 * 2 * len(SPACINGS) * 2 * 2 - 4 and np.all(np.isfinite(list(results)))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("plms", {}, "sampler 'plms' is unknown: choose one of .*ddim"),
        ("ddim", {"order": 2}, r"sampler ddim has no option order: it takes eta"),
        ("heun", {"eta": 0.5}, "sampler heun has no option eta: it takes none"),
        ("euler_ancestral", {"eta": 2.0}, r"eta must be in \[0, 1\], and it is 2.0"),
        ("ddim", {"eta": 1.5}, r"eta must be in \[0, 1\], and it is 1.5"),
        ("ddim", {"eta": -0.1}, r"eta must be in \[0, 1\], and it is -0.1"),
    ],
)
def test_make_sampler_refuses(name, options, message):
    with pytest.raises(UsageError, match=message):
        samplers.make_sampler(name, **options)


def test_make_sampler_passes_its_options_on():
    made = samplers.make_sampler("ddim", eta=0.5)
    assert made.name == samplers.ddim(0.5).name
    c = samplers.coefficients(made, MENDED, LEVELS)
    np.testing.assert_array_equal(c.noise, path(0.5).noise)


# What the network saw on the way.


@pytest.mark.parametrize("levels", [LEVELS, [1000]])
def test_a_trajectory_is_the_sample_and_the_estimate_at_every_level(levels):
    c = path(1.0, np.array(levels))
    x, estimates = samplers.trajectory(samplers.ddim(), DENOISE, start(), c, KEY)
    np.testing.assert_allclose(x, draw(start(), c, KEY), rtol=1e-5, atol=1e-6)
    assert estimates.shape == (len(levels), *start().shape)
    np.testing.assert_allclose(estimates[0], DENOISE(start(), jnp.int32(1000))[0], rtol=1e-6)
    np.testing.assert_array_equal(estimates[-1], x)  # the path ends at clean data


def test_a_watched_sampler_tells_the_host_of_every_level_and_changes_nothing():
    seen = {}
    watched = samplers.watch(DENOISE, lambda level, x0_hat: seen.update({level: x0_hat}))
    c = path()
    x = jax.jit(lambda x_T: samplers.integrate(samplers.ddim(), watched, x_T, c))(start())
    jax.effects_barrier()
    expected, estimates = samplers.trajectory(samplers.ddim(), DENOISE, start(), c)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
    assert seen.keys() == set(LEVELS.tolist())
    for level, x0_hat in zip(LEVELS, estimates):
        np.testing.assert_allclose(seen[level], x0_hat, rtol=1e-5, atol=1e-6)


def test_a_denoise_may_remember_from_level_to_level():
    """One that counts its calls: each level is told how many levels came before."""

    def count(x_t, level, before):
        return (jnp.full_like(x_t, before), jnp.zeros_like(x_t)), before + 1

    counting = StatefulDenoise(lambda x_T: 0, count)
    for sampler in (samplers.ddim(), samplers.heun()):
        c = samplers.coefficients(sampler, MENDED, LEVELS)
        _, estimates = samplers.trajectory(sampler, counting, start(), c)
        # Heun's second look at a level is not counted.
        np.testing.assert_array_equal(estimates[:, 0, 0, 0, 0], [0, 1, 2, 3])


def test_a_second_look_remembers_what_the_first_did():
    memory = StatefulDenoise(
        lambda x_T: 0, lambda x_t, level, before: ((jnp.full_like(x_t, before), x_t), before + 1)
    )
    c = samplers.coefficients(samplers.heun(), MENDED, np.array([1000, 500]), final_level=100)
    x = samplers.integrate(samplers.heun(), memory, start(), c)
    # Both looks of the first step say 0, so that there is nothing to correct; the last says 1.
    expected = c.alpha_next[1] * 1 + c.sigma_next[1] * c.sigma_next[0] * start()
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "denoise, returned",
    [
        (lambda x, level: (x[..., :1], x), r"\(4, 3, 3, 1\), \(4, 3, 3, 2\)"),
        (lambda x, level: (x, x[:1]), r"\(4, 3, 3, 2\), \(1, 3, 3, 2\)"),
        (lambda x, level: x, r"\[\(4, 3, 3, 2\)\]"),
        (lambda x, level: {"x0": x, "eps": x}, r"\(4, 3, 3, 2\), \(4, 3, 3, 2\)"),
        (lambda x, level: (x, x, x), r"\(4, 3, 3, 2\), \(4, 3, 3, 2\), \(4, 3, 3, 2\)"),
    ],
)
def test_a_denoise_that_returns_something_else_is_refused(denoise, returned):
    message = rf"pair \(x0_hat, eps_hat\), each of the shape \(4, 3, 3, 2\).*returned.*{returned}"
    with pytest.raises(UsageError, match=message):
        samplers.sample(samplers.ddim(), denoise, start(), MENDED, LEVELS)


def test_a_bfloat16_denoise_is_integrated_in_float32():
    def low(x_t, level):
        x0_hat, eps_hat = DENOISE(x_t, level)
        return x0_hat.astype(jnp.bfloat16), eps_hat.astype(jnp.bfloat16)

    for make in samplers.SAMPLERS.values():
        x = samplers.sample(make(), low, start(), MENDED, LEVELS, KEY)
        assert x.dtype == jnp.float32


@pytest.mark.parametrize(("name", "traces"), [("ddim", 1), ("dpmpp_2m", 1), ("heun", 3)])
def test_a_network_is_in_a_program_once_unless_the_solver_looks_ahead(name, traces):
    seen = []

    def denoise(x, level):
        seen.append(level)
        return DENOISE(x, level)

    sampler = samplers.make_sampler(name)
    c = samplers.coefficients(sampler, MENDED, LEVELS)
    jax.make_jaxpr(lambda x: samplers.integrate(sampler, denoise, x, c))(start())
    assert len(seen) == traces


def test_a_solver_that_looks_ahead_must_say_so():
    silent = samplers.make_sampler("heun")._replace(looks=False)
    c = samplers.coefficients(silent, MENDED, LEVELS)
    with pytest.raises(UsageError, match="looks=True"):
        samplers.integrate(silent, DENOISE, start(), c)
