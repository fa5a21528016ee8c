"""Muon, against singular values in float64 and against optax's rule."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsnr_jax.train.muon import make_muon, orthogonal
from zsnr_jax.train.optimizer import Optimizer, global_norm, learning_rate_schedule, make_optimizer

TRUE = jnp.asarray(True)
SHAPES = {
    "conv": {"kernel": (3, 3, 8, 16), "bias": (16,)},
    "wide": {"kernel": (1, 1, 4, 12)},
    "dense": {"kernel": (4, 12)},
}


def _values(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {name: {k: draw(shape) for k, shape in of.items()} for name, of in SHAPES.items()}


def _quintic(values: np.ndarray) -> np.ndarray:
    """Singular values after five times 3.4445 x - 4.775 x^3 + 2.0315 x^5."""
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return values


@pytest.mark.parametrize("shape", [(72, 16), (16, 72), (9, 9), (384, 2)])
def test_singular_values_become_those_of_the_polynomial(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    wanted = u * _quintic(s / np.linalg.norm(s)) @ v
    found = orthogonal(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    of_found = np.linalg.svd(np.asarray(found, np.float64), compute_uv=False)
    assert 0.3 < of_found.min() < of_found.max() < 1.3


def test_a_matrix_of_zeros_stays_one() -> None:
    np.testing.assert_array_equal(orthogonal(jnp.zeros((8, 4))), 0)


def _after_five(optimizer: Optimizer) -> Any:
    params = _values(0)
    state = optimizer.init(params)
    for i in range(1, 6):
        grads = _values(i)
        params, state = optimizer.update(grads, optax.global_norm(grads), TRUE, state, params)
    return params


SCHEDULE = learning_rate_schedule(0.01, 10, 3, "cosine")


@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_five_updates_of_convolutions_are_those_of_optax(
    clip_norm: float, weight_decay: float
) -> None:
    def matrices(params: Any) -> Any:
        columns = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
        return jax.tree.map(lambda x: columns if x.ndim == 4 else None, params)

    rule = optax.contrib.muon(
        SCHEDULE, beta=0.9, weight_decay=weight_decay, consistent_rms=0.2,
        muon_weight_dimension_numbers=matrices,
    )  # fmt: skip
    rule = optax.chain(optax.clip_by_global_norm(clip_norm), rule) if clip_norm else rule
    found = _after_five(make_muon(SCHEDULE, 0.9, 0.99, weight_decay, clip_norm))
    wanted, before = _after_five(Optimizer.of(rule)), _values(0)
    for name in ("conv", "wide"):
        moved = wanted[name]["kernel"] - before[name]["kernel"]
        gap = found[name]["kernel"] - wanted[name]["kernel"]
        assert np.abs(gap).max() < 1e-4 * np.abs(moved).max()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_all_else_is_by_adamw(weight_decay: float) -> None:
    options = (SCHEDULE, 0.9, 0.99, weight_decay, 1.0)
    found, wanted = _after_five(make_muon(*options)), _after_five(make_optimizer(*options))
    for name, kind in (("conv", "bias"), ("dense", "kernel")):
        np.testing.assert_array_equal(found[name][kind], wanted[name][kind])


def test_no_squares_are_kept_of_kernels() -> None:
    state: Any = make_muon(SCHEDULE, 0.9, 0.99, 0.0, 0.0).init(_values(0))
    assert sum(x.size for x in jax.tree.leaves(state.nu)) == 16 + 4 * 12


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_applied_changes_no_bit(value: float) -> None:
    optimizer = make_muon(optax.constant_schedule(0.1), 0.9, 0.99, 0.1, 1.0)
    params, grads = _values(0), _values(1)
    fresh = (params, optimizer.init(params))
    after_one = optimizer.update(grads, global_norm(grads), TRUE, fresh[1], fresh[0])
    grads["conv"]["kernel"] = grads["conv"]["kernel"].at[0].set(value)
    for params, state in (fresh, after_one):
        left = optimizer.update(grads, global_norm(grads), ~TRUE, state, params)
        jax.tree.map(np.testing.assert_array_equal, left, (params, state))
