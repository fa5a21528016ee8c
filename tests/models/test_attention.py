"""Attention: one result, whatever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax.models import attention as attention_lib
from zsnr_jax.models.attention import attention

SHAPES = {  # N, M
    "few tokens": (5, 7),
    "of text": (32, 77),
    "in lanes": (16, 48),
    "head by head": (400, 416),
    "keys in blocks": (1600, 672),
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


@pytest.fixture
def cudnn(monkeypatch):
    """A host that has cuDNN, as far as tracing can tell. JAX keeps what it has traced."""
    found = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(found, lambda: 91000)
    jax.clear_caches()
    yield
    jax.clear_caches()


def _slope(*inputs: jax.Array) -> tuple[jax.Array, ...]:
    loss = lambda *inputs: attention(*inputs).astype(jnp.float32).sum()  # noqa: E731
    return jax.grad(loss, argnums=(0, 1, 2))(*inputs)


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu", "cpu"])
@pytest.mark.parametrize(
    "dtype, n, m, head_dim, serves",
    [
        ("bfloat16", 64, 64, 64, True),
        ("bfloat16", 64, 77, 64, True),  # a text's tokens
        ("float16", 64, 64, 128, True),
        ("float32", 64, 64, 64, False),
        ("bfloat16", 64, 64, 160, False),
        ("bfloat16", 64, 64, 12, False),
        ("bfloat16", 25, 64, 64, False),
    ],
)
def test_cudnn_computes_it_on_cuda_where_it_serves(
    cudnn, platform: str, dtype: str, n: int, m: int, head_dim: int, serves: bool
) -> None:
    q, k = (jax.ShapeDtypeStruct((2, tokens, 3, head_dim), dtype) for tokens in (n, m))
    traced = jax.jit(_slope).trace(q, k, k)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    calls = ["__cudnn$fmhaSoftmax(" in program, "__cudnn$fmhaSoftmaxBackward(" in program]
    assert calls == [serves and platform == "cuda"] * 2


def test_without_cudnn_it_is_left_alone() -> None:
    """Here JAX finds none, or the fixture would not be needed."""
    x = jax.ShapeDtypeStruct((2, 64, 3, 64), jnp.bfloat16)
    program = jax.jit(_slope).trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
    assert ("__cudnn" in program) == (jax.default_backend() == "gpu")


@pytest.mark.parametrize("m", [48, 77])
def test_keys_made_even_in_number_change_nothing(monkeypatch, m: int) -> None:
    """By XLA, which takes the same lengths as cuDNN."""
    by_jax = jax.nn.dot_product_attention
    by_xla = lambda *inputs, **options: by_jax(*inputs, **options | {"implementation": "xla"})  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    q, k, v, _ = _inputs(32, m)
    np.testing.assert_allclose(
        attention_lib._by_cudnn(*map(jnp.asarray, (q, k, v))), _mix(q, k, v), atol=2e-5
    )
