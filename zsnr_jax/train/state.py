"""What a training step reads and returns, and a checkpoint holds."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

Params = Any


class Rule(Protocol):
    """What knows the state that it starts from: an `Optimizer`, or one of optax's."""

    @property
    def init(self) -> Any: ...  # (params) -> optax.OptState


class TrainState(struct.PyTreeNode):
    """No axis for devices anywhere: one checkpoint serves any number of them."""

    step: jax.Array  # int32, batches consumed: addresses data and randomness
    updates: jax.Array  # int32, updates applied: drives the warm-up of the average
    params: Params  # float32
    opt_state: optax.OptState
    ema_params: Params  # float32, the exponential moving average that is sampled
    # Weights that are read and never trained, such as a text encoder's. Checkpoints go without.
    frozen: Params = ()


def init_state(params: Params, optimizer: Rule, frozen: Params = ()) -> TrainState:
    """The state before the first step; the average starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        updates=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),  # a donated buffer must not be given twice
        frozen=frozen,
    )


def update_ema(
    ema_params: Params,
    params: Params,
    updates: jax.Array,
    decay: float,
    applied: jax.typing.ArrayLike = True,
) -> Params:
    """Move the average towards the parameters: ema <- d ema + (1 - d) params.

    d = min(decay, (1 + n)/(10 + n)) after n updates, so that the first, bad parameters are
    forgotten soon. Where no update was applied, the average stays, too.
    """
    d = jnp.minimum(decay, (1 + updates) / (10 + updates))
    moved = optax.incremental_update(params, ema_params, jnp.where(applied, 1 - d, 0))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, ema_params)
