"""3x3 convolutions: one result, whatever computes it, against the sum of products in float64."""

import functools

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from zsnr_jax.models import convolution, winograd
from zsnr_jax.models.convolution import Conv3x3

MANY = (8, 16, 24, 128, 160)  # B, H, W, C, K: enough for Winograd's
SHAPES = {
    "winograd": MANY,
    "one tile": (1, 2, 2, 3, 5),
    "one row of tiles": (3, 2, 6, 4, 2),
}


def _arrays(shape: tuple[int, ...], doubled: bool = False) -> tuple[np.ndarray, ...]:
    """x, a kernel, and weights of the results, float32."""
    batch, height, width, channels, features = shape
    times = 1 + doubled
    shapes = (
        (batch, height, width, channels),
        (3, 3, channels, features),
        (batch, times * height, times * width, features),
    )
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)


def _windows(x: np.ndarray) -> list[list[np.ndarray]]:
    """What each of 3x3 weights meets, in float64."""
    _, height, width, _ = x.shape
    padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    pairs = zip(sum(_windows(x), []), np.float64(kernel).reshape(9, *kernel.shape[2:]))
    return np.sum([window @ weights for window, weights in pairs], axis=0)


def _slopes(x: np.ndarray, kernel: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of sum(g * convolved), by x and by the kernel."""
    by_x = _convolved(g, kernel[::-1, ::-1].swapaxes(2, 3))
    by_kernel = [[np.einsum("bhwc,bhwk->ck", x, g) for x in row] for row in _windows(x)]
    return by_x, np.array(by_kernel)


def _rms(x: np.ndarray) -> float:
    return np.sqrt(np.mean(np.square(x)))


def _assert_near(found: jax.Array, wanted: np.ndarray, digits: float = 2e-6) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=digits * np.abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_winograds_is_the_convolution(shape) -> None:
    x, kernel, _ = _arrays(shape)
    _assert_near(winograd.convolve(x, kernel), _convolved(x, kernel))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_of_doubled_pixels_it_is_the_convolution_of_those(shape) -> None:
    x, kernel, _ = _arrays(shape)
    wanted = _convolved(x.repeat(2, axis=1).repeat(2, axis=2), kernel)
    _assert_near(winograd.convolve_doubled(x, kernel), wanted)


def test_it_is_about_as_exact_as_the_sum_of_products() -> None:
    x, kernel, _ = _arrays(MANY)
    wanted = _convolved(x, kernel)
    errors = [
        _rms(jax.jit(apply)(x, kernel) - wanted)
        for apply in (winograd.convolve, convolution.by_xla)
    ]
    assert errors[0] < 2.5 * errors[1] < 2.5e-6 * _rms(wanted)


def test_gradients_are_slopes_of_the_convolution() -> None:
    x, kernel, g = _arrays(MANY)
    found = jax.jit(lambda x, kernel: jax.vjp(convolution.convolve, x, kernel)[1](g))(x, kernel)
    for got, wanted in zip(found, _slopes(x, kernel, g)):
        _assert_near(got, wanted, 5e-5)  # XLA adds up some 10^4 products one after another


def test_of_doubled_pixels_gradients_are_slopes_too() -> None:
    x, kernel, g = _arrays(MANY, doubled=True)
    pull = lambda x, kernel: jax.vjp(convolution.convolve_doubled, x, kernel)[1](g)  # noqa: E731
    by_doubled, by_kernel = _slopes(x.repeat(2, axis=1).repeat(2, axis=2), kernel, g)
    by_x = einops.reduce(by_doubled, "b (h p) (w q) c -> b h w c", "sum", p=2, q=2)
    for got, wanted in zip(jax.jit(pull)(x, kernel), (by_x, by_kernel)):
        _assert_near(got, wanted, 5e-5)


def test_forward_mode_serves_too() -> None:
    x, kernel, _ = _arrays(MANY)
    along = np.random.default_rng(1).standard_normal(x.shape, np.float32)
    apply = functools.partial(convolution.convolve, kernel=jnp.asarray(kernel))
    slope = jax.jit(lambda x, along: jax.jvp(apply, (x,), (along,))[1])(x, along)
    _assert_near(slope, _convolved(along, kernel), 5e-6)  # it is linear


def _convolutions(apply, shape, dtype=jnp.float32, platform="cpu") -> int:
    """How many of XLA's convolutions a platform's program has."""
    batch, height, width, channels, features = shape
    x = jax.ShapeDtypeStruct((batch, height, width, channels), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, features), dtype)
    traced = jax.jit(apply).trace(x, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")


@pytest.mark.parametrize("apply", [convolution.convolve, convolution.convolve_doubled])
def test_winograds_is_for_cpus_alone(apply) -> None:
    found = {name: _convolutions(apply, MANY, platform=name) for name in ("cpu", "tpu", "cuda")}
    assert found == {"cpu": 0, "tpu": 1, "cuda": 1}


@pytest.mark.parametrize("apply", [convolution.convolve, convolution.convolve_doubled])
def test_where_a_gradient_is_taken_the_convolution_is_xlas(apply) -> None:
    loss = lambda x, kernel: (apply(x, kernel) ** 2).sum()  # noqa: E731
    for platform in ("cpu", "tpu"):  # itself, and its two gradients
        assert _convolutions(jax.grad(loss, (0, 1)), MANY, platform=platform) == 3


@pytest.mark.parametrize(
    "shape, dtype",
    [
        (MANY, jnp.bfloat16),
        ((8, 15, 24, 128, 160), jnp.float32),  # no 2x2 results
        ((8, 16, 24, 4, 160), jnp.float32),  # few channels
        ((1, 4, 4, 128, 160), jnp.float32),  # few pixels
        ((1, 512, 512, 128, 128), jnp.float32),  # so many that the transforms would fill the memory
    ],
)
def test_where_it_would_not_pay_the_convolution_is_xlas(shape, dtype) -> None:
    assert _convolutions(convolution.convolve, shape, dtype) == 1


@pytest.mark.parametrize("shape", [MANY, (1, 5, 4, 3, 2)])
@pytest.mark.parametrize("doubles", [False, True])
def test_the_layer_has_the_parameters_and_the_result_of_flaxs(shape, doubles) -> None:
    x, features = jnp.asarray(_arrays(shape)[0]), shape[-1]
    theirs = nn.Conv(features, (3, 3), bias_init=nn.initializers.normal())
    params = theirs.init(jax.random.key(0), x)
    layer = Conv3x3(features, doubles=doubles)
    ours = layer.init(jax.random.key(0), x)
    jax.tree.map(
        np.testing.assert_array_equal, ours["params"]["kernel"], params["params"]["kernel"]
    )
    doubled = x.repeat(2, axis=1).repeat(2, axis=2) if doubles else x
    wanted = jax.jit(theirs.apply)(params, doubled)
    np.testing.assert_allclose(jax.jit(layer.apply)(params, x), wanted, atol=2e-5)


def test_it_computes_in_its_dtype() -> None:
    layer = Conv3x3(4, dtype=jnp.bfloat16)
    output, params = jax.eval_shape(
        functools.partial(layer.init_with_output, jax.random.key(0)), jnp.zeros((1, 4, 4, 3))
    )
    assert output.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
