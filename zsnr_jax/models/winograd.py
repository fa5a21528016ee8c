"""Winograd's minimal filtering F(2x2, 3x3): 3x3 convolutions of stride 1 with fewer products.

2x2 results are made at a time. The 4x4 pixels that they depend on, and the 3x3 weights, are
transformed by sums, and then 16 products for a pair of channels do what 36 did; 9 where each pixel
stands in a square of four. Rounding errors are those of the sum of 36, or little more: the tests
hold them against float64.

    results = R ((P pixels P^T) * (W weights W^T)) R^T, with * number by number.

Source: arXiv 1509.09308, section 4.1.
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

_PIXELS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_WEIGHTS = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32) / 2
_RESULTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
# Of four pixels in line the middle two are one where pixels are doubled, and so P's third row,
# their difference, is 0.
_DOUBLED = [0, 1, 3]


def doubled(x: jax.Array) -> jax.Array:
    """Each pixel in a square of four: [B, H, W, C] -> [B, 2H, 2W, C]."""
    return repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)


# A network has many alike: traced once a shape.
@jax.jit
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, H, W, C], padded by zeros; kernel [3, 3, C, K] -> [B, H, W, K]; H and W are even."""
    products = jnp.einsum("ijnc,ijck->ijnk", _of_pixels(x), _apply(_WEIGHTS, kernel))
    return _results(products, _RESULTS, *x.shape[1:3])


@jax.jit
def convolve_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of `doubled` x: x [B, H, W, C], kernel [3, 3, C, K] -> [B, 2H, 2W, K]."""
    of_weights = _apply(_WEIGHTS[_DOUBLED], kernel)
    products = jnp.einsum("ijnc,ijck->ijnk", _of_doubled(x), of_weights)
    _, height, width, _ = x.shape
    return _results(products, _RESULTS[:, _DOUBLED], 2 * height, 2 * width)


def _of_pixels(x: jax.Array) -> jax.Array:
    """Transform the 4x4 pixels around each 2x2 results: [B, H, W, C] -> [4, 4, B H/2 W/2, C]."""
    _, height, width, _ = x.shape
    padded = _padded(x)
    around = [
        [padded[:, i : i + height : 2, j : j + width : 2] for j in range(4)] for i in range(4)
    ]
    return _transform(around, _PIXELS)


def _of_doubled(x: jax.Array) -> jax.Array:
    """The same of doubled pixels, from x itself: [B, H, W, C] -> [3, 3, B H W, C]."""
    _, height, width, _ = x.shape
    padded = _padded(x)
    around = [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    first, *middle, last = _PIXELS[_DOUBLED].T
    return _transform(around, np.stack([first, sum(middle), last], axis=1))


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


def _combine(factors: Iterable[Any], arrays: Iterable[jax.Array]) -> jax.Array:
    """Sum of products with the factors, each a number or an array, that are not 0."""
    pairs = zip(factors, arrays, strict=True)
    return functools.reduce(operator.add, [f * x for f, x in pairs if np.any(f)])


def _results(products: jax.Array, matrix: np.ndarray, height: int, width: int) -> jax.Array:
    """2x2 results of each n: [m, m, B H/2 W/2, K] -> [B, H, W, K]."""
    h, w = height // 2, width // 2
    return rearrange(_apply(matrix, products), "p q (b h w) k -> b (h p) (w q) k", h=h, w=w)


def _apply(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """matrix x matrix^T, for each number of the later axes: [n, n, A, B] -> [m, m, A, B]."""
    rows, columns = matrix.shape
    flat = jnp.asarray(np.kron(matrix, matrix)) @ x.reshape(columns**2, -1)
    return flat.reshape(rows, rows, *x.shape[2:])
