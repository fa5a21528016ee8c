"""3x3 convolutions, by what is fastest on the hardware a program is compiled for.

On GPUs and TPUs that is XLA's own. On CPUs, where there are many channels, 2x2 results at a time
are made by Winograd's minimal filtering, F(2x2, 3x3): the 4x4 pixels that they depend on, and the
3x3 weights, are transformed by sums, and then 16 products for a pair of channels do what 36 did.
The gradients are made likewise. Its rounding errors are those of the sum of 36, or little more.

Source: arXiv 1509.09308, section 4.1. `python -m experiments.benchmarks.layers` measures both ways,
and torch's.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from zsnr_jax.models.norm import Dtype

# Results = R ((P pixels P^T) * (W weights W^T)) R^T, the product * being number by number.
_PIXELS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_WEIGHTS = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32) / 2
_RESULTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
_TURNED = [3, 1, 2, 0]  # order of W's rows that is the transform of weights turned round

# Where it pays, by trials on two cores. A pixel's transforms cost as much as that many products:
_CHANNELS = 40  # C K / (C + K)
# XLA's kernel shares a product of [n, C] and [C, K] among cores only where C (n + K) is above this:
_SHARED = 90_000
_MOST = 2**25  # numbers in a transform of all pixels, which takes four times their memory


class Conv3x3(nn.Module):
    """A 3x3 convolution of stride 1 that pads by zeros; its parameters are those of nn.Conv."""

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Dtype | None = None  # of what is computed; None: the widest of what comes in
    doubles: bool = False  # repeat each pixel in a square of four before?

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, features], or [B, 2H, 2W, features]."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        apply = convolve_doubled if self.doubles else convolve
        return apply(x, kernel) + bias[None, None, None]


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, H, W, C], kernel [3, 3, C, K], of one dtype -> [B, H, W, K]."""
    if not _winograd_pays(x.shape, kernel.shape, x.dtype):
        return by_xla(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=winograd, default=by_xla)


def convolve_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same of x with each pixel repeated in a square of four -> [B, 2H, 2W, K]."""
    plain = lambda x, kernel: convolve(_doubled(x), kernel)  # noqa: E731
    if not _winograd_pays(jax.eval_shape(_doubled, x).shape, kernel.shape, x.dtype):
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=winograd_doubled, default=plain)


def _doubled(x: jax.Array) -> jax.Array:
    return repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)


# Not jitted: on CPUs, XLA has no quick kernels for gradients of convolutions inside a function.
def by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution as XLA has it."""
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)


def _winograd_pays(x: Sequence[int], kernel: Sequence[int], dtype: Any) -> bool:
    """Whether it does so on CPUs, for x and kernel of these shapes."""
    batch, height, width, _ = x
    few, many = sorted(kernel[2:])
    tiles = batch * height * width // 4
    return (
        dtype == jnp.float32
        and height % 2 == width % 2 == 0
        and few * many >= _CHANNELS * (few + many)
        and few * (tiles + many) > _SHARED
        and 16 * tiles * many <= _MOST
    )


# A network has many alike: traced once a shape, and so is the gradient.
@jax.custom_vjp
@jax.jit
def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution by 16 products for 2x2 results, in float32; H and W are even."""
    products = jnp.einsum("ijnc,ijck->ijnk", _of_pixels(x, _PIXELS), _apply(_WEIGHTS, kernel))
    return _results(products, _RESULTS, x.shape)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return winograd(x, kernel), (x, kernel)


@jax.jit
def _backward(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By x: g convolved with the weights turned round. By the weights: all transposed."""
    x, kernel = saved
    of_g, of_weights = _of_pixels(g, _PIXELS[_TURNED]), _apply(_WEIGHTS, kernel)
    products = jnp.einsum("ijnk,ijck->ijnc", of_g, of_weights)
    by_x = _results(products, _RESULTS[:, _TURNED], x.shape)

    by_products = _apply(_RESULTS.T, rearrange(g, "b (h p) (w q) k -> p q (b h w) k", p=2, q=2))
    of_kernel = jnp.einsum("ijnc,ijnk->ijck", _of_pixels(x, _PIXELS), by_products)
    return by_x, _apply(_WEIGHTS.T, of_kernel)


winograd.defvjp(_forward, _backward)


@jax.custom_vjp
@jax.jit
def winograd_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of x with each pixel repeated in a square of four, by 9 products for these.

    Of four pixels in line the middle two are one, and so their difference, P's third row, is 0.
    """
    rows = [0, 1, 3]
    products = jnp.einsum(
        "ijnc,ijck->ijnk", _of_doubled(x, _PIXELS[rows]), _apply(_WEIGHTS[rows], kernel)
    )
    batch, height, width, _ = x.shape
    return _results(products, _RESULTS[:, rows], (batch, 2 * height, 2 * width))


def _forward_doubled(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return winograd_doubled(x, kernel), (x, kernel)


def _backward_doubled(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    by_doubled, by_kernel = _backward((_doubled(x), kernel), g)
    return reduce(by_doubled, "b (h p) (w q) c -> b h w c", "sum", p=2, q=2), by_kernel


winograd_doubled.defvjp(_forward_doubled, _backward_doubled)


def _of_pixels(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """Transform the 4x4 pixels around each 2x2 results: [B, H, W, C] -> [4, 4, B H/2 W/2, C]."""
    _, height, width, _ = x.shape
    h, w = height // 2, width // 2
    halves = rearrange(_padded(x), "b (h p) (w q) c -> p q b h w c", p=2, q=2)
    around = [
        [halves[i % 2, j % 2, :, i // 2 : i // 2 + h, j // 2 : j // 2 + w] for j in range(4)]
        for i in range(4)
    ]
    return _transform(around, matrix)


def _of_doubled(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """The same of doubled pixels, by three rows of P, from x itself: -> [3, 3, B H W, C]."""
    _, height, width, _ = x.shape
    padded = _padded(x)
    around = [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    return _transform(
        around, np.stack([matrix[:, 0], matrix[:, 1] + matrix[:, 2], matrix[:, 3]], 1)
    )


def _padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _transform(around: Sequence[Sequence[jax.Array]], matrix: np.ndarray) -> jax.Array:
    """matrix around matrix^T, [n, n] of [B, h, w, C] -> [m, m, B h w, C].

    Each row is of two lines of pixels, which it takes alone; along a line all are multiplied, some
    by 0, for then XLA makes one loop of it, which is compiled in a third of the time.
    """
    rows = []
    for factors in matrix:
        line = [_combine(factors, column)[None] for column in zip(*around, strict=True)]
        rows.append(_combine(matrix.T[..., None, None, None, None], line))
    return rearrange(jnp.stack(rows), "i j b h w c -> i j (b h w) c")


def _combine(factors: Sequence[Any], arrays: Sequence[jax.Array]) -> jax.Array:
    """Sum of products with the factors, each a number or an array, that are not 0."""
    pairs = zip(factors, arrays, strict=True)
    return functools.reduce(operator.add, (f * x for f, x in pairs if np.any(f)))


def _results(products: jax.Array, matrix: np.ndarray, shape: Sequence[int]) -> jax.Array:
    """2x2 results of each n: [m, m, B H/2 W/2, K] -> [B, H, W, K]."""
    results, (height, width) = _apply(matrix, products), shape[1:3]
    h, w = height // 2, width // 2
    return rearrange(results, "p q (b h w) k -> b (h p) (w q) k", h=h, w=w)


def _apply(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """matrix x matrix^T, for each number of the later axes: [n, n, A, B] -> [m, m, A, B]."""
    rows, columns = matrix.shape
    flat = np.kron(matrix, matrix) @ x.reshape(columns**2, -1)
    return flat.reshape(rows, rows, *x.shape[2:])
