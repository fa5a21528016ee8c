"""One training step, as a pure function of state, batch and seed.

Nothing here knows on how many devices it runs: the gradient is a mean over rows, and the axis name
says over which devices the mean goes on. Randomness is drawn per row (`zsnr_jax.randomness`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zsnr_jax import losses, offset_noise, randomness
from zsnr_jax.predictions import add_noise
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train.state import Params, TrainState, update_ema

Batch = Mapping[str, jax.Array]  # image [B, H, W, C] in [-1, 1], label int32 [B], index int32 [B]
Metrics = dict[str, jax.Array]

# (params, x_t, timestep, label, dropout_keys or None) -> output like x_t
TrainNetwork = Callable[..., Any]

NUM_LEVEL_BINS = 10  # equal widths of 1..T, in which the loss is reported


class Objective(NamedTuple):
    """What is learnt, all of it static: the network, the process and the loss."""

    network: TrainNetwork
    process: DiffusionProcess
    null_label: int
    weight: losses.LossWeight = losses.snr_plus_one
    label_dropout: float = 0.1
    offset_noise: float = 0.0  # strength


def loss_fn(
    objective: Objective, params: Params, batch: Batch, level: jax.Array, row_keys: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The mean loss of a batch at given levels.

    Args: batch: rows of `Batch`; level: int32 [B] in 1..T; row_keys: one key per row, [B].
    Returns: the scalar loss, and its sums and counts by bin of level, float32 [NUM_LEVEL_BINS].
    """
    noise_keys, label_keys, dropout_keys = jax.vmap(
        lambda key: jax.random.split(key, 3), out_axes=1
    )(row_keys)
    hidden = jax.vmap(lambda key: jax.random.bernoulli(key, objective.label_dropout))(label_keys)
    label = jnp.where(hidden, objective.null_label, batch["label"])
    per_row = loss_at_level(
        objective, params, batch["image"], label, level, noise_keys, dropout_keys
    )
    bin_number = (level - 1) * NUM_LEVEL_BINS // objective.process.num_steps
    bins = jax.nn.one_hot(bin_number, NUM_LEVEL_BINS)
    by_level = {"level_loss_sum": per_row @ bins, "level_count": bins.sum(axis=0)}
    return per_row.mean(), by_level


def loss_at_level(
    objective: Objective,
    params: Params,
    image: jax.Array,
    label: jax.Array,
    level: jax.Array,
    noise_keys: jax.Array,
    dropout_keys: jax.Array | None = None,
) -> jax.Array:
    """The loss of each row at its level, float32 [B]. At SNR = 0 the network sees only noise."""
    process, schedule = objective.process, objective.process.noise_schedule
    alpha, sigma = (jnp.asarray(coefficients)[level] for coefficients in schedule)
    eps = jax.vmap(lambda key: jax.random.normal(key, image.shape[1:], image.dtype))(noise_keys)
    eps = offset_noise.add_offset(eps, noise_keys, objective.offset_noise)
    x_t = add_noise(image, eps, alpha, sigma)
    output = objective.network(params, x_t, level - 1, label, dropout_keys)
    return losses.per_example_loss(
        output, image, eps, alpha, sigma, process.prediction, objective.weight
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    seed: int,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Bind what does not change: (state, batch) -> (next state, metrics).

    Args: axis_name: of the devices that share the batch; None for one device.
    Metrics: loss, grad_norm, level_loss_sum and level_count, reduced over all devices.
    """
    key = randomness.purpose_key(seed, randomness.Purpose.TRAIN)
    level_key = randomness.purpose_key(seed, randomness.Purpose.LEVEL)
    T = objective.process.num_steps

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        level = randomness.row_levels(level_key, state.step, batch["index"], T)
        row_keys = randomness.row_keys(key, state.step, batch["index"])
        loss_and_grads = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
        (loss, by_level), grads = loss_and_grads(objective, state.params, batch, level, row_keys)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
            by_level = jax.lax.psum(by_level, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        next_state = TrainState(
            step=state.step + 1,
            updates=state.updates + 1,
            params=params,
            opt_state=opt_state,
            ema_params=update_ema(state.ema_params, params, state.updates, ema_decay),
        )
        return next_state, {"loss": loss, "grad_norm": optax.global_norm(grads), **by_level}

    return train_step


def make_probe(
    objective: Objective, seed: int, axis_name: str | None = None
) -> Callable[[TrainState, Batch], jax.Array]:
    """The mean loss of a batch if every row were at t = T, the level the fixes add.

    Uniform levels meet T once in T rows: without the probe nobody would see it learnt. Labels are
    never hidden; the noise is the probe's own, the same at every call of a step.
    """
    key = randomness.purpose_key(seed, randomness.Purpose.PROBE)

    def probe(state: TrainState, batch: Batch) -> jax.Array:
        row_keys = randomness.row_keys(key, state.step, batch["index"])
        level = jnp.full(batch["label"].shape, objective.process.num_steps)
        per_row = loss_at_level(
            objective, state.params, batch["image"], batch["label"], level, row_keys
        )
        return per_row.mean() if axis_name is None else jax.lax.pmean(per_row.mean(), axis_name)

    return probe


def repeat_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]], count: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Several steps in one call: batches [count, B, ...] in, metrics [count] out."""

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        if count > 1:
            return jax.lax.scan(step, state, batches)
        # Not a loop of one: XLA differentiates convolutions in a loop 12 times slower on CPUs
        # (0.15 s a step without, 1.85 s with; github.com/jax-ml/jax/issues/12868).
        state, metrics = step(state, jax.tree.map(lambda rows: rows[0], batches))
        return state, jax.tree.map(lambda value: value[None], metrics)

    return steps
