"""Where every random number comes from: its purpose, its step and its row, and nothing else.

    key = fold_in(fold_in(fold_in(seed, purpose), step), index)

`index` is the row's place in the global batch and travels with it, so the noise an example meets
does not depend on how many devices or hosts share the batch, nor on whether the run was resumed.
"""

import enum
import math
from typing import Any

import jax
import jax.numpy as jnp

_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio


class Purpose(enum.IntEnum):
    """The uses of randomness. The numbers are part of what a seed means: never renumber them."""

    INIT = 0  # parameters of the network
    TRAIN = 1  # noise and dropout of a training step
    START = 2  # the pure noise a sample starts from
    SAMPLE = 3  # the noise a stochastic sampler adds on the way
    PROBE = 4  # noise of the loss probes at chosen levels
    LEVEL = 5  # noise levels of a training step
    LEAK = 6  # the pictures that a signal-leak start adds to the pure noise


def purpose_key(seed: int, purpose: Purpose) -> jax.Array:
    """The key of one purpose of a run. Threefry, fixed, so that numbers do not move with JAX."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), int(purpose))


def row_keys(key: jax.Array, step: jax.typing.ArrayLike, index: jax.Array) -> jax.Array:
    """One key per row: [B] keys, for int32 [B] `index`, from a purpose's key and a step."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, step), index)


def row_normal(
    key: jax.Array, step: jax.typing.ArrayLike, index: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Standard normal float32 [B, *shape], each row from its own key."""
    return normal(row_keys(key, step, index), shape, jnp.float32)


def normal(keys: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Standard normal numbers [B, *shape], a row for each of [B] keys: `jax.random.normal`'s.

    Drawn along one axis and folded, they are the same bits; XLA counts along several axes in code
    that takes three times as long to compile on a CPU, and twice as long to run.
    """
    draw = lambda key: jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)  # noqa: E731
    return jax.vmap(draw)(keys)


def row_levels(
    key: jax.Array, step: jax.typing.ArrayLike, index: jax.Array, num_steps: int
) -> jax.Array:
    """A noise level in 1..T for each row, int32 [B] from int32 [B] `index`.

    Row i of a step takes the fraction u + i / golden ratio, mod 1, with one random u for the step:
    each row's level is uniform over 1..T, and those of a batch, of any size and however it is
    split, lie as evenly as can be. So the loss of a step wanders less than with independent draws.
    """
    offset = jax.random.bits(jax.random.fold_in(key, step), (), jnp.uint32)
    fraction = offset + index.astype(jnp.uint32) * jnp.uint32(_GOLDEN)  # of 2^32, and wraps there
    level = 1 + jnp.floor(fraction.astype(jnp.float32) * (num_steps / 2**32)).astype(jnp.int32)
    return jnp.minimum(level, num_steps)  # the largest fractions round up to 1
