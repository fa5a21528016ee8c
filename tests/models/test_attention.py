"""Attention: one result, whatever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax.models.attention import attention

SHAPES = {  # N, M
    "few tokens": (5, 7),
    "of text": (32, 77),
    "in lanes": (16, 48),
    "head by head": (400, 416),
}


def _inputs(n: int, m: int, dtype: type = np.float32) -> list[np.ndarray]:
    shapes = [(2, n, 3, 4), (2, m, 3, 4), (2, m, 3, 4), (2, n, 3, 4)]
    rng = np.random.default_rng(0)
    return [3 * rng.standard_normal(shape).astype(dtype) for shape in shapes]


def _mix(*inputs: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """The definition, in float64."""
    q, k, v = (x.astype(np.float64) for x in inputs)
    weights = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1]))
    weights *= 1 if seen is None else seen
    return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("n, m", SHAPES.values(), ids=SHAPES)
def test_it_mixes_by_softmax(n: int, m: int) -> None:
    q, k, v, _ = _inputs(n, m)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v), _mix(q, k, v), atol=2e-5)


@pytest.mark.parametrize("n, m", SHAPES.values(), ids=SHAPES)
def test_its_gradient_is_the_slope(n: int, m: int) -> None:
    """Against central differences of the definition, each input along a direction of its own."""
    *inputs, weight = _inputs(n, m)
    loss = lambda *inputs: (attention(*inputs) * weight).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)
    for i, gradient in enumerate(gradients):
        along = np.random.default_rng(2 + i).standard_normal(inputs[i].shape)
        at = [[*inputs[:i], inputs[i] + h * along, *inputs[i + 1 :]] for h in (1e-5, -1e-5)]
        high, low = ((_mix(*moved) * weight).sum() for moved in at)
        np.testing.assert_allclose((gradient * along).sum(), (high - low) / 2e-5, rtol=1e-3)


def test_a_token_does_not_see_what_is_to_come() -> None:
    q, k, v, _ = _inputs(5, 5)
    mixed = attention(*map(jnp.asarray, (q, k, v)), is_causal=True)
    np.testing.assert_allclose(mixed, _mix(q, k, v, seen=np.tril(np.ones((5, 5)))), atol=2e-5)


def test_logits_beyond_all_exponents_do_no_harm() -> None:
    q, k, v, _ = _inputs(5, 48)
    mixed, slope = jax.value_and_grad(lambda *inputs: attention(*inputs).sum())(1e4 * q, k, v)
    assert np.isfinite(mixed) and np.isfinite(slope).all()


def test_the_scores_of_halves_are_of_float32_and_those_of_doubles_of_float64() -> None:
    q, k, v, _ = _inputs(16, 48)
    half = attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)))
    assert half.dtype == jnp.bfloat16
    rounded = _mix(*(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (q, k, v)))
    np.testing.assert_allclose(np.asarray(half, np.float32), rounded, atol=0.02)  # of 2 digits
    with jax.enable_x64(True):
        double = attention(*(jnp.asarray(x, jnp.float64) for x in (q, k, v)))
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, _mix(q, k, v), atol=1e-13)


def test_the_choice_is_that_of_the_platform_a_program_is_compiled_for() -> None:
    """So that a program for a TPU can be compiled on a host without one."""
    traced = jax.jit(attention).trace(*_inputs(400, 400)[:3])
    loops = {
        platform: "stablehlo.while" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert loops == {"cpu": True, "tpu": False, "cuda": False}


@pytest.mark.parametrize(
    "backend, dtype, head_dim, implementation",
    [
        ("gpu", "bfloat16", 64, "cudnn"),
        ("gpu", "float16", 128, "cudnn"),
        ("gpu", "float32", 64, None),
        ("gpu", "bfloat16", 160, None),
        ("gpu", "bfloat16", 12, None),
        ("cpu", "bfloat16", 64, None),
        ("tpu", "bfloat16", 64, None),
    ],
)
def test_it_asks_for_cudnn_where_that_serves(
    monkeypatch, backend, dtype, head_dim, implementation
) -> None:
    asked = []

    def by_jax(query: jax.Array, *_: jax.Array, **options: object) -> jax.Array:
        asked.append(options)
        return query

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_jax)
    x = jnp.zeros((1, 2, 1, head_dim), dtype)
    jax.clear_caches()  # JAX keeps what it has traced, here and afterwards
    jax.eval_shape(attention, x, x, x)
    jax.clear_caches()
    assert asked == [{"is_causal": False, "implementation": implementation}]
