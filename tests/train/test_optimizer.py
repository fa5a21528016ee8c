"""Learning rate and update rule."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsnr_jax.errors import UsageError
from zsnr_jax.train.optimizer import learning_rate_schedule, make_optimizer


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


def _first_update(grads, **options) -> Any:
    defaults = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "clip_norm": 0.0}
    optimizer = make_optimizer(optax.constant_schedule(0.1), **defaults | options)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return updates


GRADS = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 4.0)}


def test_the_first_adam_update_is_the_rate_against_the_gradients_sign() -> None:
    updates = _first_update(GRADS)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-5)


def test_weight_decay_touches_kernels_only() -> None:
    updates = _first_update(GRADS, weight_decay=0.5)
    np.testing.assert_allclose(updates["kernel"], -0.1 - 0.1 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-5)


def test_clipping_bounds_the_whole_gradient() -> None:
    optimizer = make_optimizer(optax.constant_schedule(1.0), 0.9, 0.99, 0.0, clip_norm=1e-3)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state = optimizer.init(params)
    _, state = optimizer.update({"a": jnp.full(1, 3.0), "b": jnp.full(1, 4.0)}, state, params)
    first_moment = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose(first_moment["a"], 0.1 * 3 / 5 * 1e-3, rtol=1e-5)
    np.testing.assert_allclose(first_moment["b"], 0.1 * 4 / 5 * 1e-3, rtol=1e-5)
