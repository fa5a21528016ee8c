"""The layers of the pixel UNet. NHWC; parameters float32; `dtype` is what is computed in."""

import zlib

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from zsnr_jax.models import norm
from zsnr_jax.models.attention import attention
from zsnr_jax.models.convolution import Conv3x3
from zsnr_jax.models.norm import Dtype


def timestep_embedding(timestep: jax.Array, dim: int, max_period: float = 10_000.0) -> jax.Array:
    """Sines and cosines of a timestep at geometrically spaced frequencies.

    Args: timestep int [B], 0..T-1 (the level less one); dim: even.
    Returns: float32 [B, dim]. The last timestep, SNR = 0, is a value like any other.
    Source: DDPM, arXiv 2006.11239, appendix B.
    """
    frequencies = max_period ** (-jnp.arange(dim // 2) / (dim // 2))
    angles = timestep.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class GroupNorm(nn.Module):
    """Group normalisation in groups of 8 channels, its statistics in float32 whatever the dtype."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> the same shape. Raises: ValueError where 8 does not divide C."""
        if x.shape[-1] % 8:
            raise ValueError(
                f"{x.shape[-1]} channels are not in groups of 8: take a multiple of 8."
            )
        return norm.GroupNorm(x.shape[-1] // 8, dtype=self.dtype, name="groups")(x)


class RowDropout(nn.Module):
    """Dropout whose mask for a row depends on the row's own key, not on its place on a device."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """x [B, ...], keys [B] or None -> x with a share `rate` zeroed and the rest scaled up."""
        if keys is None or self.rate == 0:
            return x
        keep = 1 - self.rate
        here = zlib.crc32("/".join(self.path).encode())  # every layer draws its own mask
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, here)
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys)
        return jnp.where(mask, x / keep, 0)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions around a skip, modulated by the embedding of t and label.

    The second convolution starts at zero, so that the block starts as its skip connection.
    """

    channels: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, embedding: jax.Array, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """x [B, H, W, C], embedding [B, E], keys [B] -> [B, H, W, channels]."""
        h = nn.silu(GroupNorm(self.dtype, name="norm_in")(x))
        h = Conv3x3(self.channels, dtype=self.dtype, name="conv_in")(h)
        modulation = nn.Dense(2 * self.channels, dtype=self.dtype, name="modulation")(embedding)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = nn.silu(GroupNorm(self.dtype, name="norm_out")(h) * (1 + scale) + shift)
        h = RowDropout(self.dropout)(h, dropout_keys)
        zeros = nn.initializers.zeros
        h = Conv3x3(self.channels, dtype=self.dtype, kernel_init=zeros, name="conv_out")(h)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
        return x + h


class SelfAttention(nn.Module):
    """Every position attends to every other; the output projection starts at zero."""

    head_dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, C]; `head_dim` divides C."""
        _, height, width, channels = x.shape
        tokens = rearrange(GroupNorm(self.dtype, name="norm")(x), "b h w c -> b (h w) c")
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(tokens)
        q, k, v = rearrange(qkv, "b n (three m d) -> three b n m d", three=3, d=self.head_dim)
        mixed = rearrange(attention(q, k, v), "b n m d -> b n (m d)")
        zeros = nn.initializers.zeros
        mixed = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(mixed)
        return x + rearrange(mixed, "b (h w) c -> b h w c", h=height, w=width)


class Downsample(nn.Module):
    """Halve height and width: each block of 2x2 positions becomes one, by a linear map.

    The same map as a 2x2 convolution of stride 2, and far quicker to differentiate on a CPU.
    """

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H/2, W/2, channels]."""
        blocks = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2)
        return nn.Dense(self.channels, dtype=self.dtype, name="blocks")(blocks)


class Upsample(nn.Module):
    """Double height and width: each position becomes a block of 2x2, by a linear map."""

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, 2H, 2W, channels]."""
        blocks = nn.Dense(4 * self.channels, dtype=self.dtype, name="blocks")(x)
        return rearrange(blocks, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
