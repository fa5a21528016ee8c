"""AdamW with a clipped gradient, a warm-up and a decay.

The rule is optax's, and so is its state. It is written out here since what XLA makes of optax's
reads each old value in several kernels, before which every array of the state is copied: three
times the time on a CPU, and half the memory again. Here each array is read once, and overwritten.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zsnr_jax.errors import UsageError

DECAYS = ("cosine", "constant")
_EPSILON = 1e-8
_SHORT = 1024  # values: what fsdp leaves whole, too, so that nothing is moved to be joined
_FINAL_FRACTION = 0.05  # of the peak learning rate, at the last step of a cosine decay


def learning_rate_schedule(
    peak: float, num_steps: int, warmup_steps: int, decay: str
) -> optax.Schedule:
    """From 0 up to `peak` over the warm-up, then along half a cosine to a twentieth, or level.

    Raises: UsageError for an unknown decay, or a warm-up longer than the run.
    """
    if decay not in DECAYS:
        raise UsageError(f"optimizer.decay {decay!r} is unknown: choose {' or '.join(DECAYS)}.")
    if not 0 <= warmup_steps <= num_steps:
        raise UsageError(
            f"optimizer.warmup_steps={warmup_steps} must be from 0 to train.num_steps={num_steps}."
        )
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    after = optax.constant_schedule(peak)
    if decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(num_steps - warmup_steps, 1), _FINAL_FRACTION)
    return optax.join_schedules([warmup, after], [warmup_steps])


class Optimizer(NamedTuple):
    """How a gradient changes parameters, and what is kept between steps for it."""

    init: Callable[[optax.Params], optax.OptState]
    # (gradient, its norm, whether to apply it, state, parameters) -> (parameters, state). Where it
    # is not to be applied, both are returned as they are, whatever the gradient holds.
    update: Callable[
        [optax.Updates, jax.Array, jax.Array, optax.OptState, optax.Params],
        tuple[optax.Params, optax.OptState],
    ]

    @classmethod
    def of(cls, rule: "Optimizer | optax.GradientTransformation") -> "Optimizer":
        """One of optax's rules as this."""
        if isinstance(rule, Optimizer):
            return rule
        return cls(rule.init, functools.partial(_apply, rule))


def _apply(
    rule: optax.GradientTransformation,
    grads: optax.Updates,
    norm: jax.Array,
    applied: jax.Array,
    state: optax.OptState,
    params: optax.Params,
) -> tuple[optax.Params, optax.OptState]:
    """One update by any of optax's rules."""
    del norm  # a rule that clips takes its own
    updates, new_state = rule.update(grads, state, params)
    after, before = (optax.apply_updates(params, updates), new_state), (params, state)
    return jax.tree.map(lambda new, old: jnp.where(applied, new, old), after, before)


def make_optimizer(
    learning_rate: optax.Schedule, b1: float, b2: float, weight_decay: float, clip_norm: float
) -> Optimizer:
    """Clip the whole gradient to `clip_norm` (0: do not), then AdamW.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    p <- p - r (m / (1 - b1^n) / (sqrt(v / (1 - b2^n)) + 1e-8) + weight_decay p)

    after n updates, at the rate r of the update. Weight decay touches kernels and embeddings (two
    axes or more), not biases or norm scales. Source: arXiv 1711.05101, Algorithm 2, with the decay
    times the rate as in optax.
    """
    mask = _is_matrix if weight_decay else None
    rule = optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask)
    if clip_norm:
        rule = optax.chain(optax.clip_by_global_norm(clip_norm), rule)

    def update(
        grads: optax.Updates,
        norm: jax.Array,
        applied: jax.Array,
        state: optax.OptState,
        params: optax.Params,
    ) -> tuple[optax.Params, optax.OptState]:
        adam = optax.tree_utils.tree_get(state, "ScaleByAdamState")
        rate = learning_rate(adam.count)
        factors = factors_of(applied, norm, adam.count, rate, b1, b2, clip_norm)
        leaves, tree = jax.tree.flatten(params)
        others = map(tree.flatten_up_to, (grads, adam.mu, adam.nu))
        decays = [decay_of(p, weight_decay) for p in leaves]
        updated = map(functools.partial(update_array, factors), decays, leaves, *others)
        params, mu, nu = map(tree.unflatten, zip(*updated, strict=True))
        state = jax.tree_util.tree_map_with_path(functools.partial(_count, applied), state)
        return params, optax.tree_utils.tree_set(state, mu=mu, nu=nu)

    return Optimizer(rule.init, update)


def _count(applied: jax.Array, path: tuple[Any, ...], x: jax.Array) -> jax.Array:
    """Of a state's arrays, the counters of updates: each its own, so that each is overwritten."""
    return x + applied if path[-1] == jax.tree_util.GetAttrKey("count") else x


class Factors(NamedTuple):
    """The numbers of an update, scalars; such that they change nothing where it is not applied."""

    applied: jax.Array
    clip: jax.Array
    m_old: jax.Array
    m_new: jax.Array
    v_old: jax.Array
    v_new: jax.Array
    m_bias: jax.Array
    v_bias: jax.Array
    rate: jax.Array


def factors_of(
    applied: jax.Array,
    norm: jax.Array,
    count: jax.Array,
    rate: jax.typing.ArrayLike,
    b1: float,
    b2: float,
    clip_norm: float,
) -> Factors:
    """Those of the update after `count` others, at a learning rate, by a gradient of this norm."""
    nth = (count + 1).astype(float)
    return Factors(
        applied=applied,
        clip=jnp.minimum(1, clip_norm / norm) if clip_norm else jnp.ones(()),
        m_old=jnp.where(applied, b1, 1),
        m_new=jnp.where(applied, 1 - b1, 0),
        v_old=jnp.where(applied, b2, 1),
        v_new=jnp.where(applied, 1 - b2, 0),
        m_bias=1 - b1**nth,
        v_bias=1 - b2**nth,
        rate=jnp.where(applied, rate, 0),
    )


def decay_of(p: jax.Array, weight_decay: float) -> float:
    """The weight decay of an array."""
    return weight_decay if p.ndim > 1 else 0.0


def next_mean(factors: Factors, g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A gradient as it counts, clipped or not at all, and the mean of gradients after it."""
    g = jnp.where(factors.applied, g * factors.clip, 0)
    return g, (factors.m_old * m + factors.m_new * g).astype(m.dtype)


# Traced once a shape: a network has many arrays alike.
@jax.jit
def update_array(
    factors: Factors,
    decay: jax.typing.ArrayLike,
    p: jax.Array,
    g: jax.Array,
    m: jax.Array,
    v: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next parameter and moments, each of the old one and of what is new already."""
    g, m = next_mean(factors, g, m)
    v = (factors.v_old * v + factors.v_new * g * g).astype(v.dtype)
    step = (m / factors.m_bias) / (jnp.sqrt(v / factors.v_bias) + _EPSILON)
    return (p - factors.rate * (step + decay * p)).astype(p.dtype), m, v


def global_norm(tree: optax.Updates) -> jax.Array:
    """The 2-norm of all values of a pytree.

    Short arrays are one for this: a kernel for each would be a third of what an update compiles to.
    """
    leaves = jax.tree.leaves(tree)
    short = [x.ravel() for x in leaves if x.size <= _SHORT]
    joined = [jnp.concatenate(short)] if short else []
    long = [x for x in leaves if x.size > _SHORT]
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in joined + long))


def _is_matrix(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: p.ndim > 1, params)
