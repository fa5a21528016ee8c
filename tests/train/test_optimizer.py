"""Learning rate and update rule."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsnr_jax.errors import UsageError
from zsnr_jax.train.muon import make_muon
from zsnr_jax.train.optimizer import (
    Optimizer,
    global_norm,
    learning_rate_schedule,
    make_optimizer,
)
from zsnr_jax.train.state import init_state, update_ema

TRUE = jnp.asarray(True)


def test_the_rate_rises_then_falls_along_half_a_cosine_to_a_twentieth() -> None:
    schedule = learning_rate_schedule(1e-3, num_steps=110, warmup_steps=10, decay="cosine")
    np.testing.assert_allclose(schedule(5), 0.5e-3, rtol=1e-6)
    np.testing.assert_allclose(schedule(10), 1e-3, rtol=1e-6)
    np.testing.assert_allclose(schedule(60), 1e-3 * (0.05 + 0.95 / 2), rtol=1e-5)
    np.testing.assert_allclose(schedule(110), 0.05e-3, rtol=1e-5)


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    schedule = learning_rate_schedule(1e-3, num_steps=100, warmup_steps=0, decay="constant")
    np.testing.assert_allclose(schedule(0), 1e-3, rtol=1e-6)
    np.testing.assert_allclose(schedule(99), 1e-3, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps, decay", [(11, "cosine"), (-1, "constant"), (0, "step")])
def test_an_impossible_schedule_is_refused(warmup_steps: int, decay: str) -> None:
    with pytest.raises(UsageError, match=r"optimizer\."):
        learning_rate_schedule(1e-3, num_steps=10, warmup_steps=warmup_steps, decay=decay)


PARAMS = {"kernel": jnp.full((2, 2), 1.5), "bias": jnp.array([1.0, -2.0])}
GRADS = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 4.0)}
OPTIONS: dict[str, Any] = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "clip_norm": 0.0}


def _first_update(**options) -> Any:
    """What the first update adds to parameters, and the state after it."""
    optimizer = make_optimizer(optax.constant_schedule(0.1), **OPTIONS | options)
    start = optimizer.init(PARAMS)
    params, state = optimizer.update(GRADS, global_norm(GRADS), TRUE, start, PARAMS)
    return jax.tree.map(jnp.subtract, params, PARAMS), state


def test_the_first_adam_update_is_the_rate_against_the_gradients_sign() -> None:
    updates, _ = _first_update()
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-5)


def test_weight_decay_touches_kernels_only() -> None:
    updates, _ = _first_update(weight_decay=0.5)
    np.testing.assert_allclose(updates["kernel"], -0.1 - 0.1 * 0.5 * 1.5, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-5)


def test_clipping_bounds_the_whole_gradient() -> None:
    _, state = _first_update(clip_norm=1e-3)
    first_moment, norm = optax.tree_utils.tree_get(state, "mu"), np.sqrt(4 * 3**2 + 2 * 4**2)
    np.testing.assert_allclose(first_moment["kernel"], 0.1 * 3 / norm * 1e-3, rtol=1e-5)
    np.testing.assert_allclose(first_moment["bias"], 0.1 * 4 / norm * 1e-3, rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_five_updates_are_those_of_optax(clip_norm: float, weight_decay: float) -> None:
    schedule = learning_rate_schedule(0.1, 10, 3, "cosine")
    adamw = optax.adamw(
        schedule, 0.9, 0.99, weight_decay=weight_decay,
        mask=(lambda params: jax.tree.map(lambda p: p.ndim > 1, params)) if weight_decay else None,
    )  # fmt: skip
    rule = optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw
    options = OPTIONS | {"clip_norm": clip_norm, "weight_decay": weight_decay}
    ours, theirs = make_optimizer(schedule, **options), Optimizer.of(rule)
    assert jax.tree.structure(ours.init(PARAMS)) == jax.tree.structure(theirs.init(PARAMS))

    found, expected = (PARAMS, ours.init(PARAMS)), (PARAMS, theirs.init(PARAMS))
    rng = np.random.default_rng(0)
    for _ in range(5):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), PARAMS)
        norm = optax.global_norm(grads)
        found = ours.update(grads, norm, TRUE, found[1], found[0])
        expected = theirs.update(grads, norm, TRUE, expected[1], expected[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), found, expected)


@pytest.mark.parametrize("make", [make_optimizer, make_muon])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_state_keeps_its_dtypes(make: Any, dtype: Any) -> None:
    optimizer = make(optax.constant_schedule(0.1), **OPTIONS)
    params = {"conv": jnp.ones((3, 3, 2, 2), dtype), "dense": jnp.ones((2, 2), dtype)}
    state = init_state(params, optimizer)
    after, kept = optimizer.update(params, global_norm(params), TRUE, state.opt_state, params)
    mean = update_ema(params, after, state.updates, 0.9)
    dtypes = lambda tree: jax.tree.map(lambda x: x.dtype, tree)  # noqa: E731
    assert dtypes((after, kept, mean)) == dtypes((params, state.opt_state, params))


def test_in_float64_updates_are_those_of_optax() -> None:
    with jax.enable_x64(True):
        params, grads = (
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree) for tree in (PARAMS, GRADS)
        )
        rule = Optimizer.of(optax.adamw(0.1, 0.9, 0.999, weight_decay=0.0))
        ours = make_optimizer(optax.constant_schedule(0.1), **OPTIONS | {"b2": 0.999})
        found, wanted = (
            optimizer.update(grads, global_norm(grads), TRUE, optimizer.init(params), params)[0]
            for optimizer in (ours, rule)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_applied_changes_no_bit(value: float) -> None:
    optimizer = make_optimizer(optax.constant_schedule(0.1), **OPTIONS | {"clip_norm": 1.0})
    fresh = (PARAMS, optimizer.init(PARAMS))
    after_one = optimizer.update(GRADS, global_norm(GRADS), TRUE, fresh[1], fresh[0])
    broken = GRADS | {"bias": jnp.array([value, 1.0])}
    for params, state in (fresh, after_one):
        left = optimizer.update(broken, global_norm(broken), ~TRUE, state, params)
        jax.tree.map(np.testing.assert_array_equal, left, (params, state))


def test_an_update_copies_no_array_of_the_state() -> None:
    optimizer = make_optimizer(optax.constant_schedule(0.1), **OPTIONS | {"weight_decay": 0.1})
    shapes = [jax.ShapeDtypeStruct((64, 64), jnp.float32)]

    def update(params: Any, state: Any, grads: Any) -> Any:
        norm = global_norm(grads)
        return optimizer.update(grads, norm, jnp.isfinite(norm), state, params)

    state = jax.eval_shape(optimizer.init, shapes)
    program = jax.jit(update, donate_argnums=(0, 1)).lower(shapes, state, shapes).compile()
    assert not re.findall(r"f32\[64,64\]\S* copy\(", program.as_text() or "")


def test_the_norm_is_of_short_and_long_arrays_alike() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in [(3,), (2, 5), (70, 80), ()]]
    expected = np.sqrt(sum(np.square(x.astype(np.float64)).sum() for x in arrays))
    np.testing.assert_allclose(global_norm(arrays), expected, rtol=1e-6)
    np.testing.assert_allclose(global_norm(arrays[2:3]), np.linalg.norm(arrays[2]), rtol=1e-6)
