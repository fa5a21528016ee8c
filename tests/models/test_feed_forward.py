"""The feed-forward network: one result, whatever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from zsnr_jax.models.blocks import rows_at_once
from zsnr_jax.models.feed_forward import FeedForward, feed_forward

SHAPES = {"all at once": (2, 5, 8), "in blocks": (3, 1400, 64)}  # B, N, C


def _elsewhere(params: dict, x: jax.Array) -> jax.Array:
    """As platforms other than CPUs compute it."""
    wide, narrow = params["net_0"]["proj"], params["net_2"]
    return feed_forward(x, (wide["kernel"], wide["bias"]), (narrow["kernel"], narrow["bias"]))


def _here(params: dict, x: jax.Array) -> jax.Array:
    return jnp.asarray(FeedForward().apply({"params": params}, x))


EVERYWHERE = pytest.mark.parametrize("apply", [_here, _elsewhere])


def _weights(channels: int) -> dict:
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.standard_normal(shape) / 8).astype(np.float32)  # noqa: E731
    wide = {"kernel": draw(channels, 8 * channels), "bias": draw(8 * channels)}
    narrow = {"kernel": draw(4 * channels, channels), "bias": draw(channels)}
    return {"net_0": {"proj": wide}, "net_2": narrow}


def _mapped(x: np.ndarray, params: dict) -> np.ndarray:
    """The definition, in float64."""
    (wide, bias), (narrow, last) = (
        (np.float64(of["kernel"]), np.float64(of["bias"]))
        for of in (params["net_0"]["proj"], params["net_2"])
    )
    h, gate = np.split(x @ wide + bias, 2, axis=-1)
    return (h * gate * (1 + erf(gate / np.sqrt(2))) / 2) @ narrow + last


@EVERYWHERE
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_a_linear_map_times_the_gelu_of_another_and_a_third(shape, apply) -> None:
    x, params = np.random.default_rng(1).standard_normal(shape), _weights(shape[-1])
    found = jax.jit(apply)(params, x.astype(np.float32))
    np.testing.assert_allclose(found, _mapped(x, params), atol=2e-5)


@EVERYWHERE
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_its_gradient_is_the_slope(shape, apply) -> None:
    """Against central differences of the definition, along a direction of input and weights."""
    rng = np.random.default_rng(1)
    x, weight, params = rng.standard_normal(shape), rng.standard_normal(shape), _weights(shape[-1])
    draw = lambda like: 0.1 * rng.standard_normal(np.shape(like))  # noqa: E731
    along = jax.tree.map(draw, (x, params))

    def loss(x: jax.Array, params: dict) -> jax.Array:
        return (apply(params, x) * weight).sum()

    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(x.astype(np.float32), params)
    slope = sum(np.sum(np.float64(a) * b) for a, b in zip(*map(jax.tree.leaves, (found, along))))
    high, low = (
        (_mapped(*jax.tree.map(lambda at, to, h=h: at + h * to, (x, params), along)) * weight).sum()
        for h in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-3)


def test_other_platforms_take_it_plain() -> None:
    x, params = jnp.zeros(SHAPES["in blocks"]), _weights(64)
    traced = jax.jit(_here).trace(params, x)
    loops = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")
        for platform in ("cpu", "tpu", "cuda")
    }
    assert loops == {"cpu": 1, "tpu": 0, "cuda": 0}


def test_halves_are_computed_in_halves_but_for_the_gate() -> None:
    x, params = np.random.default_rng(1).standard_normal((2, 5, 8)), _weights(8)
    found = jnp.asarray(FeedForward(jnp.bfloat16).apply({"params": params}, x))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), _mapped(x, params), atol=0.05)


@pytest.mark.parametrize(
    "rows, numbers, expected",
    [
        (8192, 512, 1024),
        (4200, 512, 840),
        (7, 1, 7),
        (6, 2**20, 1),
        (2309, 2309, 2309),  # a prime number
        (82**2, 82**2, 41),
        (83**2, 83**2, 83**2),  # one row would fit, of 76
    ],
)
def test_rows_are_cut_evenly_into_what_a_cache_holds(rows, numbers, expected) -> None:
    assert rows_at_once(rows, numbers) == expected
