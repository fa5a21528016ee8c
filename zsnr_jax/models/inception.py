"""Inception-v3 as the Frechet inception distance uses it: "inception-2015-12-05". NHWC, float32.

Architecture: arXiv 1512.00567, in the form of the TensorFlow graph of that date, which differs from
later ones: its average pools do not count padding, its last block takes a maximum instead, and it
tells 1008 classes. It is never trained here: batch norms are frozen at their running statistics.

Submodules bear the names that torch's have in pytorch-fid's file of converted weights.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

SIZE = 299  # height and width of the images that it was trained on
NUM_FEATURES = 2048
NUM_CLASSES = 1008
_EPS = 1e-3  # of the batch norms

_ROW, _COLUMN, _SQUARE = (1, 7), (7, 1), (3, 3)
Step = tuple[str, int, int | tuple[int, int]]  # a convolution: its name, channels and kernel


class Features(NamedTuple):
    """What the network makes of images, float32."""

    pool: jax.Array  # [B, 2048], the last features, averaged over the image
    logits: jax.Array  # [B, 1008]


def prepare(images: jax.Array) -> jax.Array:
    """Resize images to 299 x 299 where they are not, bilinearly and without antialiasing.

    Args: images: [B, H, W, 3], uint8 in 0..255 or floats in [-1, 1].
    Returns: float32 [B, 299, 299, 3] in [-1, 1].
    """
    x = images.astype(jnp.float32)
    x = x / 127.5 - 1 if images.dtype == jnp.uint8 else x
    # Half-pixel centres: what torch calls align_corners=False.
    return jax.image.resize(x, (len(x), SIZE, SIZE, 3), "linear", antialias=False)


class InceptionV3(nn.Module):
    """Features and logits of images."""

    @nn.compact
    def __call__(self, images: jax.Array) -> Features:
        """`prepare` and run.

        Args: images: [B, H, W, 3], uint8 in 0..255 or floats in [-1, 1].
        """
        x = prepare(images)
        x = _halve(x, ("Conv2d_1a_3x3", 32, 3))
        x = _convolve(x, ("Conv2d_2a_3x3", 32, 3), padding="VALID")
        x = _convolve(x, ("Conv2d_2b_3x3", 64, 3))
        x = _max_pool(x)
        x = _convolve(x, ("Conv2d_3b_1x1", 80, 1))
        x = _convolve(x, ("Conv2d_4a_3x3", 192, 3), padding="VALID")
        x = _max_pool(x)
        for name, pool_channels in {"Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64}.items():
            x = Mixed5(pool_channels, name=name)(x)
        x = Mixed6a(name="Mixed_6a")(x)
        widths = {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}
        for name, channels in widths.items():
            x = Mixed6(channels, name=name)(x)
        x = Mixed7a(name="Mixed_7a")(x)
        x = Mixed7(takes_maximum=False, name="Mixed_7b")(x)
        x = Mixed7(takes_maximum=True, name="Mixed_7c")(x)
        pool = jnp.mean(x, axis=(1, 2))
        return Features(pool, nn.Dense(NUM_CLASSES, name="fc")(pool))


class Mixed5(nn.Module):
    """Kernels of 1, 5 and twice 3, and a pool, side by side."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, 224 + pool_channels]."""
        point = _convolve(x, ("branch1x1", 64, 1))
        wide = _convolve(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))
        double = _convolve(
            x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)
        )
        pooled = _convolve(_average(x), ("branch_pool", self.pool_channels, 1))
        return jnp.concatenate([point, wide, double, pooled], axis=-1)


class Mixed6a(nn.Module):
    """Halve height and width by a kernel of 3, by two of them, and by a maximum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, (H-1)/2, (W-1)/2, 480 + C]."""
        single = _halve(x, ("branch3x3", 384, 3))
        double = _convolve(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
        double = _halve(double, ("branch3x3dbl_3", 96, 3))
        return jnp.concatenate([single, double, _max_pool(x)], axis=-1)


class Mixed6(nn.Module):
    """Kernels of 7 x 7 as rows and columns, once and twice, and a pool."""

    channels: int  # between the rows and columns

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, 768]."""
        c = self.channels
        point = _convolve(x, ("branch1x1", 192, 1))
        once = _convolve(
            x, ("branch7x7_1", c, 1), ("branch7x7_2", c, _ROW), ("branch7x7_3", 192, _COLUMN)
        )
        twice = _convolve(
            x,
            ("branch7x7dbl_1", c, 1),
            ("branch7x7dbl_2", c, _COLUMN),
            ("branch7x7dbl_3", c, _ROW),
            ("branch7x7dbl_4", c, _COLUMN),
            ("branch7x7dbl_5", 192, _ROW),
        )
        pooled = _convolve(_average(x), ("branch_pool", 192, 1))
        return jnp.concatenate([point, once, twice, pooled], axis=-1)


class Mixed7a(nn.Module):
    """Halve height and width by a kernel of 3, by one after 7 x 7, and by a maximum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, (H-1)/2, (W-1)/2, 512 + C]."""
        single = _halve(_convolve(x, ("branch3x3_1", 192, 1)), ("branch3x3_2", 320, 3))
        wide = _convolve(
            x,
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, _ROW),
            ("branch7x7x3_3", 192, _COLUMN),
        )
        wide = _halve(wide, ("branch7x7x3_4", 192, 3))
        return jnp.concatenate([single, wide, _max_pool(x)], axis=-1)


class Mixed7(nn.Module):
    """Kernels that part into a row and a column, and a pool."""

    takes_maximum: bool  # in its pool; an average otherwise

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, 2048]."""
        point = _convolve(x, ("branch1x1", 320, 1))
        single = _convolve(x, ("branch3x3_1", 384, 1))
        double = _convolve(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        pooled = _max_pool(x, strides=1, padding="SAME") if self.takes_maximum else _average(x)
        return jnp.concatenate(
            [
                point,
                _convolve(single, ("branch3x3_2a", 384, (1, 3))),
                _convolve(single, ("branch3x3_2b", 384, (3, 1))),
                _convolve(double, ("branch3x3dbl_3a", 384, (1, 3))),
                _convolve(double, ("branch3x3dbl_3b", 384, (3, 1))),
                _convolve(pooled, ("branch_pool", 192, 1)),
            ],
            axis=-1,
        )


class Convolution(nn.Module):
    """A convolution without bias, a frozen batch norm, and what is positive of it."""

    channels: int
    kernel: tuple[int, int]
    strides: int
    padding: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H', W', channels]."""
        x = nn.Conv(
            self.channels, self.kernel, self.strides, self.padding, use_bias=False, name="conv"
        )(x)
        return nn.relu(FrozenBatchNorm(name="bn")(x))


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by the statistics of a training that is over."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., C] -> the same shape."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("running_mean", nn.initializers.zeros, shape)
        variance = self.param("running_var", nn.initializers.ones, shape)
        slope = scale / jnp.sqrt(variance + _EPS)
        slope, offset = (
            jnp.expand_dims(c, range(x.ndim - 1)) for c in (slope, bias - mean * slope)
        )
        return x * slope + offset


def _convolve(x: jax.Array, *steps: Step, strides: int = 1, padding: str = "SAME") -> jax.Array:
    """One convolution after another."""
    for name, channels, kernel in steps:
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        x = Convolution(channels, sides, strides, padding, name=name)(x)
    return x


_halve = functools.partial(_convolve, strides=2, padding="VALID")


def _max_pool(x: jax.Array, strides: int = 2, padding: str = "VALID") -> jax.Array:
    return nn.max_pool(x, _SQUARE, (strides, strides), padding)


def _average(x: jax.Array) -> jax.Array:
    """Mean of the 3 x 3 around each place, padding not counted."""
    return nn.avg_pool(x, _SQUARE, padding="SAME", count_include_pad=False)
