"""The pure training step, against what it should compute by the paper's formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsnr_jax import losses
from zsnr_jax.predictions import add_noise
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train import step as step_lib
from zsnr_jax.train.state import init_state, update_ema

PROCESS = DiffusionProcess("scaled_linear", 1000, zero_terminal_snr=True, prediction="v")
BATCH = {
    "image": np.random.default_rng(0).uniform(-1, 1, (8, 4, 4, 1)).astype(np.float32),
    "label": np.arange(8, dtype=np.int32) % 3,
    "index": np.arange(8, dtype=np.int32),
}


def _linear(params, x_t, timestep, label, dropout_keys):
    """A network with a constant to learn for each label: enough to see every path."""
    del x_t, timestep, dropout_keys
    return jnp.broadcast_to(params[label][:, None, None, None], (len(label), 4, 4, 1))


def _objective(network=_linear, **options) -> step_lib.Objective:
    return step_lib.Objective(network, PROCESS, null_condition=3, **options)


@functools.cache
def _step(decay: float = 0.9):
    return jax.jit(step_lib.make_train_step(_objective(), optax.sgd(0.1), decay, seed=0))


def _state():
    return init_state(jnp.zeros(4), optax.sgd(0.1))


def test_a_step_moves_params_average_and_counters() -> None:
    state, metrics = _step()(_state(), BATCH)
    assert (int(state.step), int(state.updates)) == (1, 1)
    assert np.any(state.params != 0)
    np.testing.assert_allclose(state.ema_params, 0.9 * state.params, rtol=1e-6)  # d = 1/10
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(value, accumulate: int) -> None:
    optimizer = optax.adam(0.1)
    make = functools.partial(step_lib.make_train_step, _objective(), optimizer, 0.9, 0)
    step = jax.jit(make(accumulate=accumulate))
    start, _ = step(init_state(jnp.zeros(4), optimizer), BATCH)
    image = BATCH["image"].copy()
    image[3, 0, 0, 0] = value  # one pixel of one row, in one microbatch
    state, metrics = step(start, BATCH | {"image": image})
    assert not metrics["finite"] and not np.isfinite(metrics["loss"])
    assert (int(state.step), int(state.updates)) == (2, 1)
    jax.tree.map(np.testing.assert_array_equal, state, start.replace(step=state.step))
    after, metrics = step(state, BATCH)
    assert metrics["finite"] and int(after.updates) == 2 and np.isfinite(after.params).all()


@pytest.mark.parametrize("updates, expected", [(0, 0.1), (10, 0.55), (10_000, 0.9)])
def test_the_average_warms_up(updates: int, expected: float) -> None:
    averaged = update_ema(jnp.ones(1), jnp.zeros(1), jnp.int32(updates), decay=0.9)
    np.testing.assert_allclose(averaged, expected, rtol=1e-6)


def test_the_loss_is_told_by_level() -> None:
    def network(params, x_t, timestep, label, dropout_keys):
        return jnp.zeros_like(x_t)

    n = 1_000
    batch = {
        "image": np.zeros((n, 1, 1, 1), np.float32),
        "label": np.zeros(n, np.int32),
        "index": np.arange(n),
    }
    keys = jax.random.split(jax.random.key(0), n)
    level = jnp.arange(1, n + 1)
    loss, by_level = step_lib.loss_fn(_objective(network), None, batch, level, keys)
    np.testing.assert_array_equal(by_level["level_count"], np.full(10, 100))
    np.testing.assert_allclose(by_level["level_loss_sum"].sum() / n, loss, rtol=1e-4)
    # Nothing predicted, and data 0: the loss is E[alpha^2 eps^2], which falls with the level.
    alpha = np.asarray(PROCESS.noise_schedule.alpha, np.float64)[1:].reshape(10, 100)
    np.testing.assert_allclose(by_level["level_loss_sum"] / 100, (alpha**2).mean(1), atol=0.35)
    assert by_level["level_loss_sum"][0] > by_level["level_loss_sum"][-1]


def test_labels_are_hidden_at_the_rate_asked_for() -> None:
    seen = []

    def network(params, x_t, timestep, label, dropout_keys):
        seen.append(label)
        return jnp.zeros_like(x_t)

    n = 10_000
    batch = {
        "image": np.zeros((n, 1, 1, 1), np.float32),
        "label": np.zeros(n, np.int32),
        "index": np.arange(n),
    }
    keys = jax.random.split(jax.random.key(0), n)
    level = jnp.full(n, 500)
    step_lib.loss_fn(_objective(network, label_dropout=0.3), None, batch, level, keys)
    assert abs(np.mean(np.asarray(seen[0]) == 3) - 0.3) < 0.02


def test_the_probe_is_the_loss_at_T_where_the_target_is_minus_x0() -> None:
    probe = step_lib.make_probe(_objective(), seed=0)
    state = _state().replace(params=jnp.array([0.1, 0.2, 0.3, 9.0]))
    guess = np.array([0.1, 0.2, 0.3])[BATCH["label"]][:, None, None, None]
    expected = np.mean((guess.astype(np.float64) + BATCH["image"]) ** 2)
    np.testing.assert_allclose(probe(state, BATCH), expected, rtol=1e-6)


def test_the_network_sees_pure_noise_at_T() -> None:
    seen = []

    def network(params, x_t, timestep, label, dropout_keys):
        seen.append((x_t, timestep))
        return jnp.zeros_like(x_t)

    keys = jax.random.split(jax.random.key(0), 8)
    level = jnp.full(8, 1000)
    for image in (BATCH["image"], np.zeros_like(BATCH["image"])):
        step_lib.loss_at_level(_objective(network), None, image, BATCH["label"], level, keys)
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    np.testing.assert_array_equal(seen[0][1], 999)


def _loss_and_what_was_seen(level: int, **options):
    """The loss at a level of a network that returns 0, the keys' own white noise, and x_t."""
    seen = []

    def network(params, x_t, timestep, label, dropout_keys):
        seen.append(x_t)
        return jnp.zeros_like(x_t)

    keys = jax.random.split(jax.random.key(0), 8)
    eps = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(keys)
    loss = step_lib.loss_at_level(
        _objective(network, **options), None, BATCH["image"], BATCH["label"],
        jnp.full(8, level), keys,
    )  # fmt: skip
    alpha, sigma = (x[level] for x in PROCESS.noise_schedule)
    return loss, eps, np.asarray(seen[0]), alpha, sigma


@pytest.mark.parametrize("level", [1, 500, 1000])
def test_without_offset_noise_the_noise_is_that_of_the_rows_keys_bit_for_bit(level: int) -> None:
    _, eps, x_t, alpha, sigma = _loss_and_what_was_seen(level)
    np.testing.assert_array_equal(x_t, add_noise(BATCH["image"], eps, alpha, sigma))


@pytest.mark.parametrize("level", [500, 1000])
def test_offset_noise_is_in_the_input_and_in_the_target(level: int) -> None:
    loss, eps, x_t, alpha, sigma = _loss_and_what_was_seen(level, offset_noise=0.1)
    shifted = (x_t - alpha * BATCH["image"]) / sigma
    offset = shifted - eps
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1, :1], offset.shape), atol=1e-5)
    assert np.all(offset != 0)
    target = alpha * shifted - sigma * BATCH["image"]  # v; at T it is -x0, offset or not
    np.testing.assert_allclose(loss, np.mean(target**2, axis=(1, 2, 3)), rtol=1e-5)


def test_a_step_with_offset_noise_is_another_step_and_finite_at_T() -> None:
    objective = _objective(offset_noise=0.1)
    step = jax.jit(step_lib.make_train_step(objective, optax.sgd(0.1), 0.9, seed=0))
    state, metrics = step(_state(), BATCH)
    assert np.isfinite(metrics["loss"]) and np.all(np.isfinite(state.params))
    assert metrics["loss"] != _step()(_state(), BATCH)[1]["loss"]
    assert np.isfinite(step_lib.make_probe(objective, seed=0)(state, BATCH))


def test_the_objectives_weight_weighs() -> None:
    plain, *_, alpha, sigma = _loss_and_what_was_seen(250)
    capped, *_ = _loss_and_what_was_seen(
        250, weight=losses.make_weight("min_snr_plus_one", gamma=1)
    )
    snr = np.float64(alpha) ** 2 / np.float64(sigma) ** 2
    assert snr > 1
    np.testing.assert_allclose(capped, plain * 2 / (snr + 1), rtol=1e-5)


def test_randomness_follows_the_row_and_the_step() -> None:
    shuffled = {name: values[::-1] for name, values in BATCH.items()}
    state, metrics = _step()(_state(), BATCH)
    same, _ = _step()(_state(), shuffled)
    np.testing.assert_allclose(state.params, same.params, rtol=1e-5)
    later, later_metrics = _step()(_state().replace(step=jnp.int32(1)), BATCH)
    assert metrics["loss"] != later_metrics["loss"]


def test_one_batch_can_be_learnt_by_heart() -> None:
    def network(params, x_t, timestep, label, dropout_keys):
        del timestep, dropout_keys
        row = jax.nn.one_hot(label, 9)[:, :8] @ params  # what the row's own label stands for
        return row.reshape(x_t.shape)

    batch = BATCH | {"label": np.arange(8, dtype=np.int32)}
    process = DiffusionProcess("scaled_linear", 1000, prediction="x0")
    objective = step_lib.Objective(network, process, null_condition=8, label_dropout=0.0)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 300))
    step = jax.jit(step_lib.make_train_step(objective, optimizer, 0.9, seed=0))
    state, first = step(init_state(jnp.zeros((8, 16)), optimizer), batch)
    for _ in range(300):
        state, last = step(state, batch)
    assert last["loss"] < 1e-2 * first["loss"]
    np.testing.assert_allclose(state.params, batch["image"].reshape(8, 16), atol=0.1)
    np.testing.assert_allclose(state.ema_params, state.params, atol=0.1)


def test_microbatches_add_up_to_the_batch() -> None:
    step = step_lib.make_train_step(_objective(), optax.sgd(0.1), 0.9, seed=0, accumulate=4)
    parts, in_parts = jax.jit(step)(_state(), BATCH)
    whole, in_whole = _step()(_state(), BATCH)
    np.testing.assert_allclose(parts.params, whole.params, rtol=1e-5)
    for name in in_whole:
        np.testing.assert_allclose(in_parts[name], in_whole[name], rtol=1e-5, err_msg=name)


def test_a_condition_is_encoded_with_what_is_frozen_and_hidden_by_the_null_one() -> None:
    seen = []

    def network(params, x_t, timestep, condition, dropout_keys):
        seen.append(condition)
        return jnp.zeros_like(x_t)

    n, null = 1_000, np.array([7, 8])
    batch = {
        "moments": np.zeros((n, 1, 1, 2), np.float32),
        "ids": np.broadcast_to([1, 2], (n, 2)),
        "index": np.arange(n),
    }
    objective = step_lib.Objective(
        network,
        PROCESS,
        null_condition=null,
        clean=lambda batch, keys: batch["moments"][..., :1],
        condition="ids",
        encode=lambda frozen, ids: ids * frozen[None],
        label_dropout=0.3,
    )
    keys = jax.random.split(jax.random.key(0), n)
    step_lib.loss_fn(objective, None, batch, jnp.full(n, 500), keys, jnp.array([10, 100]))
    rows, counts = np.unique(np.asarray(seen[0]), axis=0, return_counts=True)
    np.testing.assert_array_equal(rows, [[10, 200], [70, 800]])
    assert abs(counts[1] / n - 0.3) < 0.05


def test_several_steps_in_one_call_equal_single_ones() -> None:
    batches = {name: np.stack([values, values]) for name, values in BATCH.items()}
    many, metrics = jax.jit(step_lib.repeat_step(_step(), 2))(_state(), batches)
    one, first = _step()(_state(), BATCH)
    two, second = _step()(one, BATCH)
    np.testing.assert_allclose(metrics["loss"], [first["loss"], second["loss"]], rtol=1e-6)
    np.testing.assert_allclose(many.params, two.params, rtol=1e-6)
    assert int(many.step) == 2
