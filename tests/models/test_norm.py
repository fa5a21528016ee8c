"""Group normalisation: one result, whatever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from zsnr_jax.models import layers
from zsnr_jax.models.norm import GroupNorm, normalise


def _normalise(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, groups: int) -> np.ndarray:
    """The definition, in float64."""
    rows = x.astype(np.float64).reshape(len(x), -1, groups, x.shape[-1] // groups)
    axes = (1, 3)
    normal = (rows - rows.mean(axes, keepdims=True)) / np.sqrt(rows.var(axes, keepdims=True) + 1e-6)
    return normal.reshape(x.shape) * scale + bias


def _inputs(*shape: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    x, scale, bias = (rng.standard_normal(s) for s in (shape, shape[-1:], shape[-1:]))
    return [value.astype(np.float32) for value in (x + 30, scale, bias)]  # a mean far from 0


@pytest.mark.parametrize("shape", [(2, 4, 6, 12), (3, 10, 12)], ids=["positions", "tokens"])
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_groups_are_normalised(shape: tuple[int, ...], groups: int) -> None:
    x, scale, bias = _inputs(*shape)
    found = jax.jit(GroupNorm(groups).apply)({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(found, _normalise(x, scale, bias, groups), atol=5e-5)


def test_its_gradient_is_the_slope() -> None:
    """Against central differences of the definition."""
    inputs, weight = _inputs(2, 4, 6, 12), np.random.default_rng(1).standard_normal((2, 4, 6, 12))
    loss = lambda x, scale, bias: (normalise(x, scale, bias, 3, 1e-6) * weight).sum()  # noqa: E731
    for i, gradient in enumerate(jax.grad(loss, argnums=(0, 1, 2))(*map(jnp.asarray, inputs))):
        along = np.random.default_rng(2 + i).standard_normal(inputs[i].shape)
        at = [[*inputs[:i], inputs[i] + h * along, *inputs[i + 1 :]] for h in (1e-5, -1e-5)]
        high, low = ((_normalise(x, s, b, 3) * weight).sum() for x, s, b in at)
        np.testing.assert_allclose((gradient * along).sum(), (high - low) / 2e-5, rtol=1e-3)


def test_it_stands_in_for_that_of_flax() -> None:
    """The same parameters, by the same names; its own function where the platform is no CPU."""
    x = jnp.ones((1, 2, 2, 6))
    ours, theirs = (norm.init(jax.random.key(0), x) for norm in (GroupNorm(3), nn.GroupNorm(3)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    texts = [
        jax.jit(norm.apply).trace(ours, x).lower(lowering_platforms=("tpu",)).as_text()
        for norm in (GroupNorm(3), nn.GroupNorm(3))
    ]
    assert texts[0].count("stablehlo.reduce") == texts[1].count("stablehlo.reduce")


def test_flaxs_which_other_platforms_run_is_the_same() -> None:
    x, scale, bias = map(jnp.asarray, _inputs(2, 4, 6, 12))
    theirs = jnp.asarray(nn.GroupNorm(3).apply({"params": {"scale": scale, "bias": bias}}, x - 30))
    np.testing.assert_allclose(normalise(x - 30, scale, bias, 3, 1e-6), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "norm, told",
    [
        (GroupNorm(3), "4 channels do not make 3 equal groups: take a multiple"),
        (layers.GroupNorm(), "4 channels are not in groups of 8: take a multiple of 8"),
    ],
)
def test_channels_that_make_no_groups_are_refused(norm: nn.Module, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        norm.init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))


def test_the_dtype_is_that_of_the_result_alone() -> None:
    x, scale, bias = _inputs(2, 4, 6, 12)
    params = {"params": {"scale": scale, "bias": bias}}
    half = jnp.asarray(GroupNorm(3, dtype=jnp.bfloat16).apply(params, x))
    assert half.dtype == jnp.bfloat16
    full = np.asarray(GroupNorm(3).apply(params, x))
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))  # statistics of float32
