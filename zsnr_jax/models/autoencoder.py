"""The autoencoder of Stable Diffusion: images to Gaussians over latents, and latents to images.

Architecture: latent diffusion, arXiv 2112.10752, in the arrangement of diffusers' AutoencoderKL,
whose names its submodules and fields bear.
"""

import functools
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from zsnr_jax.models import sd_layers
from zsnr_jax.models.attention import attention
from zsnr_jax.models.convolution import Conv3x3
from zsnr_jax.models.layers import Dtype
from zsnr_jax.models.norm import GroupNorm
from zsnr_jax.models.sd_layers import Downsample, Factory, ResnetBlock, Upsample

_EPS = 1e-6  # of all norms here
_LOGVAR = (-30.0, 20.0)  # bounds of the log variance
# What keys of config.json must be, where the network knows one way only. (Of lists: the entries.)
_IMPLEMENTED = {
    "_class_name": ["AutoencoderKL"],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "act_fn": ["silu", "swish"],
    "use_quant_conv": [True],
    "use_post_quant_conv": [True],
    "mid_block_add_attention": [True],
}
_IGNORED = ["sample_size", "force_upcast"]  # the caller's choice, as is `dtype`


class AutoencoderKL(nn.Module):
    """Encode images to the moments of latents, and decode latents.

    The fields are those of config.json, and default as they do in diffusers.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)  # per resolution, finest first
    layers_per_block: int = 1  # of the encoder; the decoder has one more
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # 1 / the latents' standard deviation
    remat: bool = False  # recompute blocks in the backward pass instead of storing them
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32, remat: bool = False
    ) -> Self:
        """Build from a vae/config.json. Raises: UsageError for what is not implemented."""
        fields = sd_layers.read_config(cls, config, _IMPLEMENTED, _IGNORED)
        model = cls(**fields, dtype=dtype, remat=remat)
        sd_layers.require_per_resolution(model, "down_block_types", "up_block_types")
        return model

    def setup(self) -> None:
        sizes, layers, groups = self.block_out_channels, self.layers_per_block, self.norm_num_groups
        compute = (self.remat, self.dtype)
        self.encoder = Encoder(sizes, layers, groups, 2 * self.latent_channels, *compute)
        self.decoder = Decoder(sizes, layers + 1, groups, self.out_channels, *compute)
        self.quant_conv = nn.Conv(2 * self.latent_channels, (1, 1))
        self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encode, and decode the means: images -> images. Touches every parameter, for `init`."""
        means, _ = jnp.split(self.encode(images), 2, axis=-1)
        return self.decode(means * self.scaling_factor)

    def encode(self, images: jax.Array) -> jax.Array:
        """Give the moments of the latents' Gaussians: see `sample_latents`.

        Args: images [B, H, W, in_channels] in [-1, 1]; 2^(resolutions - 1) divides H and W.
        Returns: float32 [B, h, w, 2 * latent_channels]: the means, then the log variances, clipped
          to [-30, 20]. Not scaled.
        """
        means, logvar = jnp.split(self.quant_conv(self.encoder(images)), 2, axis=-1)
        return jnp.concatenate([means, jnp.clip(logvar, *_LOGVAR)], axis=-1)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Give the images of scaled latents, as `sample_latents` and the diffusion model make them.

        Args: latents [B, h, w, latent_channels], of standard deviation about 1.
        Returns: float32 [B, H, W, out_channels], about [-1, 1], not clipped.
        """
        return self.decoder(self.post_quant_conv(latents / self.scaling_factor))


def sample_latents(moments: jax.Array, keys: jax.Array, scaling_factor: float) -> jax.Array:
    """Draw scaled latents: scaling_factor * (mean + exp(log variance / 2) * eps).

    Args: moments [B, h, w, 2C], as `AutoencoderKL.encode` gives them; keys [B], one for each row.
    Returns: float32 [B, h, w, C].
    """
    means, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    eps = jax.vmap(lambda key: jax.random.normal(key, means.shape[1:], jnp.float32))(keys)
    return scaling_factor * (means + jnp.exp(logvar / 2) * eps)


class Encoder(nn.Module):
    """Residual blocks at falling resolution, and attention at the last."""

    sizes: tuple[int, ...]  # channels per resolution, finest first
    num_layers: int
    groups: int
    out_channels: int
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, any C] -> float32 [B, h, w, out_channels]."""
        resnet = _resnet(self.groups, self.remat, self.dtype)
        # Padded below and to the right only, unlike the UNet's.
        halve = functools.partial(Downsample, ((0, 1), (0, 1)), self.dtype, name="downsamplers_0")
        h = Conv3x3(self.sizes[0], dtype=self.dtype, name="conv_in")(x)
        for i, channels in enumerate(self.sizes):
            resize = halve if i < len(self.sizes) - 1 else None
            block = Block(resnet, channels, self.num_layers, resize, name=f"down_blocks_{i}")
            h = block(h)
        h = MidBlock(resnet, self.groups, self.dtype, name="mid_block")(h)
        return _output(h, self.groups, self.out_channels)


class Decoder(nn.Module):
    """Attention at the coarsest resolution, then residual blocks at rising resolution."""

    sizes: tuple[int, ...]  # channels per resolution, finest first
    num_layers: int
    groups: int
    out_channels: int
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, h, w, any C] -> float32 [B, H, W, out_channels]."""
        resnet = _resnet(self.groups, self.remat, self.dtype)
        double = functools.partial(Upsample, self.dtype, name="upsamplers_0")
        h = Conv3x3(self.sizes[-1], dtype=self.dtype, name="conv_in")(x)
        h = MidBlock(resnet, self.groups, self.dtype, name="mid_block")(h)
        for i, channels in enumerate(reversed(self.sizes)):
            resize = double if i < len(self.sizes) - 1 else None
            block = Block(resnet, channels, self.num_layers, resize, name=f"up_blocks_{i}")
            h = block(h)
        return _output(h, self.groups, self.out_channels)


class Block(nn.Module):
    """Residual blocks at one resolution, then half or twice of it, or neither."""

    resnet: Factory
    channels: int
    num_layers: int
    resize: Factory | None

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """h [B, H, W, any C] -> [B, H, W, channels], before it is resized."""
        for j in range(self.num_layers):
            h = self.resnet(self.channels, name=f"resnets_{j}")(h)
        return self.resize()(h) if self.resize else h


class MidBlock(nn.Module):
    """Attention between two residual blocks, at the coarsest resolution."""

    resnet: Factory
    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """h [B, H, W, C] -> [B, H, W, C]."""
        channels = h.shape[-1]
        h = self.resnet(channels, name="resnets_0")(h)
        h = SelfAttention(self.groups, self.dtype, name="attentions_0")(h)
        return self.resnet(channels, name="resnets_1")(h)


class SelfAttention(nn.Module):
    """Every position attends to every other, with one head, around a skip."""

    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, C]."""
        dense = functools.partial(nn.Dense, x.shape[-1], dtype=self.dtype)
        norm = GroupNorm(self.groups, _EPS, self.dtype, name="group_norm")
        tokens = rearrange(norm(x), "b h w c -> b (h w) 1 c")
        q, k, v = (dense(name=f"to_{part}")(tokens) for part in "qkv")
        mixed = dense(name="to_out_0")(attention(q, k, v))
        return x + rearrange(mixed, "b (h w) 1 c -> b h w c", h=x.shape[1])


def _resnet(groups: int, remat: bool, dtype: Dtype) -> Factory:
    """Make residual blocks, of which the channels and the name are still to be given."""
    block = nn.remat(ResnetBlock) if remat else ResnetBlock
    return functools.partial(block, groups=groups, eps=_EPS, dtype=dtype)


def _output(h: jax.Array, groups: int, channels: int) -> jax.Array:
    """End a network in float32. A part of the compact method that calls it."""
    norm = GroupNorm(groups, _EPS, name="conv_norm_out")
    return Conv3x3(channels, name="conv_out")(nn.silu(norm(h.astype(jnp.float32))))
