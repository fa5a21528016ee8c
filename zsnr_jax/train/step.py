"""One training step, as a pure function of state, batch and seed.

Nothing here knows on how many devices it runs: the gradient is a mean over rows, and the axis name
says over which devices the mean goes on. Randomness is drawn per row (`zsnr_jax.randomness`), so
that neither devices nor microbatches change what is learnt.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from zsnr_jax import losses, offset_noise, randomness
from zsnr_jax.predictions import add_noise
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train.optimizer import Optimizer, global_norm
from zsnr_jax.train.state import Params, TrainState, update_ema

# index int32 [B], and what the objective reads: image [B, H, W, C] in [-1, 1] and label int32 [B]
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

# (params, x_t, timestep, condition, dropout_keys or None) -> output like x_t
TrainNetwork = Callable[..., Any]


def images(batch: Batch, keys: jax.Array) -> jax.Array:
    """x0 where it is in the batch."""
    del keys
    return batch["image"]


NUM_LEVEL_BINS = 10  # equal widths of 1..T, in which the loss is reported


class Objective(NamedTuple):
    """What is learnt, all of it static: the network, the process and the loss.

    The defaults are those of labelled images. Of captioned latents, `clean` draws the latents, and
    `encode` is a text encoder, whose weights are the state's `frozen`.
    """

    network: TrainNetwork
    process: DiffusionProcess
    null_condition: Any  # what a hidden condition reads as: a label, or the ids of an empty caption
    clean: Callable[[Batch, jax.Array], jax.Array] = images  # (batch, keys [B]) -> x0
    condition: str = "label"  # its name in a batch
    encode: Callable[[Params, Any], Any] = lambda frozen, condition: condition
    weight: losses.LossWeight = losses.snr_plus_one
    label_dropout: float = 0.1
    offset_noise: float = 0.0  # strength


def loss_fn(
    objective: Objective,
    params: Params,
    batch: Batch,
    level: jax.Array,
    row_keys: jax.Array,
    frozen: Params = (),
) -> tuple[jax.Array, Metrics]:
    """The mean loss of a batch at given levels.

    Args: batch: rows of `Batch`; level: int32 [B] in 1..T; row_keys: one key per row, [B].
    Returns: the scalar loss, and its sums and counts by bin of level, float32 [NUM_LEVEL_BINS].
    """
    noise_keys, hiding_keys, dropout_keys, clean_keys = jax.vmap(
        lambda key: jax.random.split(key, 4), out_axes=1
    )(row_keys)
    hidden = jax.vmap(lambda key: jax.random.bernoulli(key, objective.label_dropout))(hiding_keys)
    shown = batch[objective.condition]
    hidden = hidden.reshape(hidden.shape + (1,) * (shown.ndim - 1))
    null = jnp.broadcast_to(jnp.asarray(objective.null_condition), shown.shape[1:])[None]
    condition = objective.encode(frozen, jnp.where(hidden, null, shown))
    x0 = objective.clean(batch, clean_keys)
    per_row = loss_at_level(objective, params, x0, condition, level, noise_keys, dropout_keys)
    bin_number = (level - 1) * NUM_LEVEL_BINS // objective.process.num_steps
    bins = jax.nn.one_hot(bin_number, NUM_LEVEL_BINS)
    by_level = {"level_loss_sum": per_row @ bins, "level_count": bins.sum(axis=0)}
    return per_row.mean(), by_level


def loss_at_level(
    objective: Objective,
    params: Params,
    x0: jax.Array,
    condition: Any,
    level: jax.Array,
    noise_keys: jax.Array,
    dropout_keys: jax.Array | None = None,
) -> jax.Array:
    """The loss of each row at its level, float32 [B]. At SNR = 0 the network sees only noise."""
    process, schedule = objective.process, objective.process.noise_schedule
    alpha, sigma = (jnp.asarray(coefficients)[level] for coefficients in schedule)
    eps = randomness.normal(noise_keys, x0.shape[1:], x0.dtype)
    eps = offset_noise.add_offset(eps, noise_keys, objective.offset_noise)
    x_t = add_noise(x0, eps, alpha, sigma)
    output = objective.network(params, x_t, level - 1, condition, dropout_keys)
    return losses.per_example_loss(
        output, x0, eps, alpha, sigma, process.prediction, objective.weight
    )


def make_train_step(
    objective: Objective,
    optimizer: Optimizer | optax.GradientTransformation,
    ema_decay: float,
    seed: int,
    axis_name: str | None = None,
    accumulate: int = 1,
    gather: Callable[[Any], Any] = lambda tree: tree,
    scatter: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Bind what does not change: (state, batch) -> (next state, metrics).

    Args:
      axis_name: of the devices that share the batch by pmap; None where they do not.
      gather, scatter: of weights before they are used, and of gradients after, where devices hold
        slices of the state.
      accumulate: microbatches that a batch is taken in, one after another, to save memory; it
        divides the rows that a device has, and changes no number but by rounding.
    Metrics: loss, grad_norm, finite, level_loss_sum and level_count, reduced over all devices.

    Where the loss or the gradient's norm is not finite, over all rows of all devices, the step
    changes nothing but `step`: the next batch is another one, and `updates`, which drives the
    learning rate and the average, does not count it.
    """
    key = randomness.purpose_key(seed, randomness.Purpose.TRAIN)
    level_key = randomness.purpose_key(seed, randomness.Purpose.LEVEL)
    T = objective.process.num_steps
    rule = Optimizer.of(optimizer)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        level = randomness.row_levels(level_key, state.step, batch["index"], T)
        row_keys = randomness.row_keys(key, state.step, batch["index"])
        rows = (batch, level, row_keys)
        params, frozen = gather((state.params, state.frozen))
        (loss, by_level), grads = loss_and_grads(objective, params, frozen, rows, accumulate)
        grads = scatter(grads)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
            by_level = jax.lax.psum(by_level, axis_name)
        grad_norm = global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        state = _update(state, grads, grad_norm, rule, ema_decay, finite)
        return state, {"loss": loss, "grad_norm": grad_norm, "finite": finite, **by_level}

    return train_step


def _update(
    state: TrainState,
    grads: Params,
    norm: jax.Array,
    optimizer: Optimizer,
    ema_decay: float,
    finite: jax.Array,
) -> TrainState:
    """The state after one gradient, or after none where it is not finite."""
    params, opt_state = optimizer.update(grads, norm, finite, state.opt_state, state.params)
    return state.replace(
        step=state.step + 1,
        updates=state.updates + finite,
        params=params,
        opt_state=opt_state,
        ema_params=update_ema(state.ema_params, params, state.updates, ema_decay, finite),
    )


def loss_and_grads(
    objective: Objective,
    params: Params,
    frozen: Params,
    rows: tuple[Batch, jax.Array, Any],
    accumulate: int,
) -> tuple[tuple[jax.Array, Metrics], Params]:
    """The loss of `loss_fn` with its sums, and its gradient, in so many microbatches.

    Args: rows: batch, level and row_keys, of all rows.
    """

    def one(rows: tuple[Batch, jax.Array, Any]) -> tuple[tuple[jax.Array, Metrics], Params]:
        value_and_grad = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
        return value_and_grad(objective, params, *rows, frozen)

    if accumulate == 1:
        return one(rows)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, rows))
    add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)  # noqa: E731
    (((loss, by_level), grads), _) = jax.lax.scan(add, zeros, microbatches(rows, accumulate))
    mean = lambda total: jax.tree.map(lambda x: x / accumulate, total)  # noqa: E731
    return (mean(loss), by_level), mean(grads)


def make_probe(
    objective: Objective,
    seed: int,
    axis_name: str | None = None,
    accumulate: int = 1,
    gather: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[[TrainState, Batch], jax.Array]:
    """The mean loss of a batch if every row were at t = T, the level the fixes add.

    Uniform levels meet T once in T rows: without the probe nobody would see it learnt. Conditions
    are never hidden; the noise is the probe's own, the same at every call of a step.

    Args: axis_name, accumulate, gather: as of `make_train_step`.
    """
    key = randomness.purpose_key(seed, randomness.Purpose.PROBE)

    def probe(state: TrainState, batch: Batch) -> jax.Array:
        params, frozen = gather((state.params, state.frozen))

        def one(rows: tuple[Batch, Any]) -> jax.Array:
            batch, row_keys = rows
            level = jnp.full(batch["index"].shape, objective.process.num_steps)
            condition = objective.encode(frozen, batch[objective.condition])
            x0 = objective.clean(batch, jax.vmap(lambda key: jax.random.split(key)[1])(row_keys))
            return loss_at_level(objective, params, x0, condition, level, row_keys).mean()

        rows = (batch, randomness.row_keys(key, state.step, batch["index"]))
        if accumulate == 1:
            loss = one(rows)
        else:
            loss = jax.lax.map(one, microbatches(rows, accumulate)).mean()
        return loss if axis_name is None else jax.lax.pmean(loss, axis_name)

    return probe


def microbatches(rows: Any, count: int) -> Any:
    """[B, ...] -> [count, B / count, ...], on every leaf.

    Every so-manyth row, not neighbours: rows that lie on a device then stay there.
    """
    return jax.tree.map(lambda x: rearrange(x, "(b k) ... -> k b ...", k=count), rows)


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
