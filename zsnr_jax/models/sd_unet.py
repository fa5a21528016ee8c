"""The UNet of Stable Diffusion 1.x and 2.x, on latents, conditioned on the noise level and a text.

Architecture: latent diffusion, arXiv 2112.10752, in the arrangement of diffusers'
UNet2DConditionModel, whose names its submodules and fields bear.
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
from zsnr_jax.models.feed_forward import FeedForward
from zsnr_jax.models.layers import Dtype, timestep_embedding
from zsnr_jax.models.norm import GroupNorm
from zsnr_jax.models.sd_layers import Downsample, Factory, ResnetBlock, Upsample, repeat_rows

# An encoded text, float [B, tokens, D]; or of each attention to it the keys and values, as
# `project_context` gives them.
Context = jax.Array | Mapping[str, Any]
KeysAndValues = tuple[jax.Array, jax.Array]  # [B, tokens, C] each

_ATTENDING = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
# What keys of config.json must be, where the network knows one way only. (Of lists: the entries.)
_IMPLEMENTED = {
    "_class_name": ["UNet2DConditionModel"],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": ["UNetMidBlock2DCrossAttn"],
    "center_input_sample": [False],
    "flip_sin_to_cos": [True],
    "freq_shift": [0],
    "only_cross_attention": [False],
    "mid_block_only_cross_attention": [None, False],
    "dual_cross_attention": [False],
    "transformer_layers_per_block": [1],
    "downsample_padding": [1],
    "mid_block_scale_factor": [1],
    "dropout": [0],
    "act_fn": ["silu", "swish"],
    "resnet_time_scale_shift": ["default"],
    "resnet_skip_time_act": [False],
    "resnet_out_scale_factor": [1],
    "time_embedding_type": ["positional"],
    "conv_in_kernel": [3],
    "conv_out_kernel": [3],
    "attention_type": ["default"],
    "class_embeddings_concat": [False],
}
# Sizes of inputs, settings of parts that are refused anyway, and upcast_attention: logits and
# softmax are float32 here whatever the dtype.
_IGNORED = ["sample_size", "upcast_attention", "addition_embed_type_num_heads"]


class UNet2DCondition(nn.Module):
    """Residual blocks and transformers at falling, then rising resolution, with skips between.

    The fields are those of config.json, and default as they do in diffusers. `attention_head_dim`
    is the number of heads, for all resolutions or for each: a misnomer that diffusers has kept. The
    output convolution starts at zero, so a fresh network predicts 0 everywhere.
    """

    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)  # per resolution, finest first
    layers_per_block: int = 2  # on the way down; one more on the way up
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False  # of the transformers' ends; otherwise 1x1 convolutions
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    remat: bool = False  # recompute blocks in the backward pass instead of storing them
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32, remat: bool = False
    ) -> Self:
        """Build from a unet/config.json. Raises: UsageError for what is not implemented."""
        fields = sd_layers.read_config(cls, config, _IMPLEMENTED, _IGNORED)
        model = cls(**fields, dtype=dtype, remat=remat)
        per_resolution = ("down_block_types", "up_block_types", "attention_head_dim")
        sd_layers.require_per_resolution(model, *per_resolution)
        for key in ("layers_per_block", "cross_attention_dim", "norm_num_groups"):
            if not isinstance(value := getattr(model, key), int):
                sd_layers.refuse(cls, key, value, "one whole number")
        return model

    @nn.compact
    def __call__(self, x_t: jax.Array, timestep: jax.Array, context: Context) -> jax.Array:
        """Predict v, x0 or eps, whichever the network is trained for.

        Args:
          x_t: float [B, H, W, in_channels]; 2^(resolutions - 1) divides H and W.
          timestep: int [B], 0..T-1; the last is SNR = 0, a value like any other.
          context: float [B, tokens, cross_attention_dim], the encoded text, or `project_context`
            of it. Of n B rows: the first n meet the first row of x_t, and so on; what comes before
            the first attention to the text is computed once for them.
        Returns: float32 [B or n B, H, W, out_channels].
        """
        sizes, last = self.block_out_channels, len(self.block_out_channels) - 1
        embedding = timestep_embedding(timestep, sizes[0])
        embedding = TimeEmbedding(4 * sizes[0], self.dtype, name="time_embedding")(embedding)

        h = Conv3x3(sizes[0], dtype=self.dtype, name="conv_in")(x_t)
        skips = [h]
        for i, kind in enumerate(self.down_block_types):
            parts = (*self._layers(i), kind in _ATTENDING, self.layers_per_block, i < last)
            block = DownBlock(*parts, self.dtype, name=f"down_blocks_{i}")
            h, passed = block(h, embedding, _of(context, block))
            skips += passed
        middle = MidBlock(*self._layers(last), name="mid_block")
        h = middle(h, embedding, _of(context, middle))
        for i, kind in enumerate(self.up_block_types):
            parts = (*self._layers(last - i), kind in _ATTENDING, i < last)
            taken = [skips.pop() for _ in range(self.layers_per_block + 1)]
            block = UpBlock(*parts, self.dtype, name=f"up_blocks_{i}")
            h = block(h, taken, embedding, _of(context, block))

        norm = GroupNorm(self.norm_num_groups, self.norm_eps, name="conv_norm_out")
        h = nn.silu(norm(h.astype(jnp.float32)))
        zeros = nn.initializers.zeros
        return Conv3x3(self.out_channels, kernel_init=zeros, name="conv_out")(h)

    def _layers(self, resolution: int) -> tuple[Factory, Factory]:
        """What blocks at a resolution are made of: residual blocks and transformers."""
        remat = nn.remat if self.remat else lambda layer: layer
        channels, heads = self.block_out_channels[resolution], self.attention_head_dim
        heads = heads if isinstance(heads, int) else heads[resolution]
        groups, linear = self.norm_num_groups, self.use_linear_projection
        resnet = functools.partial(remat(ResnetBlock), channels, groups, self.norm_eps, self.dtype)
        return resnet, functools.partial(remat(Transformer), heads, groups, linear, self.dtype)


class TimeEmbedding(nn.Module):
    """Two dense layers on the sines and cosines of the timestep."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, waves: jax.Array) -> jax.Array:
        """waves [B, C] -> [B, width]."""
        h = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="linear_1")(waves))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(h)


class DownBlock(nn.Module):
    """Layers at one resolution, then half of it. All they make is passed across to the way up."""

    resnet: Factory
    transformer: Factory
    attends: bool  # has it transformers?
    num_layers: int
    downsample: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, h: jax.Array, embedding: jax.Array, context: Context
    ) -> tuple[jax.Array, list[jax.Array]]:
        """h [B, H, W, C], embedding [B, E], context [B, M, D] -> the next h, and the skips."""
        skips = []
        for j in range(self.num_layers):
            h = self.resnet(name=f"resnets_{j}")(h, embedding)
            if self.attends:
                transformer = self.transformer(name=f"attentions_{j}")
                h = transformer(h, _of(context, transformer))
            skips.append(h)
        if self.downsample:
            h = Downsample(((1, 1), (1, 1)), self.dtype, name="downsamplers_0")(h)
            skips.append(h)
        return h, skips


class MidBlock(nn.Module):
    """A transformer between two residual blocks, at the coarsest resolution."""

    resnet: Factory
    transformer: Factory

    @nn.compact
    def __call__(self, h: jax.Array, embedding: jax.Array, context: Context) -> jax.Array:
        """h [B, H, W, C], embedding [B, E], context [B, M, D] -> [B, H, W, C]."""
        h = self.resnet(name="resnets_0")(h, embedding)
        transformer = self.transformer(name="attentions_0")
        h = transformer(h, _of(context, transformer))
        return self.resnet(name="resnets_1")(h, embedding)


class UpBlock(nn.Module):
    """Layers at one resolution, each of which takes in a skip, then twice the resolution."""

    resnet: Factory
    transformer: Factory
    attends: bool  # has it transformers?
    upsample: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, h: jax.Array, skips: list[jax.Array], embedding: jax.Array, context: Context
    ) -> jax.Array:
        """h and each skip [B, H, W, any C], embedding [B, E], context [B, M, D] -> the next h."""
        for j, skip in enumerate(skips):
            h = jnp.concatenate([h, repeat_rows(skip, h)], axis=-1)
            h = self.resnet(name=f"resnets_{j}")(h, embedding)
            if self.attends:
                transformer = self.transformer(name=f"attentions_{j}")
                h = transformer(h, _of(context, transformer))
        return Upsample(self.dtype, name="upsamplers_0")(h) if self.upsample else h


class Transformer(nn.Module):
    """Positions as tokens: one transformer block between two projections, around a skip."""

    heads: int
    groups: int
    use_linear_projection: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """x [B, H, W, C], context [B, M, D] -> [B, H, W, C]; `heads` divides C."""
        _, height, width, channels = x.shape
        # The same map either way; torch stores the kernels in different shapes.
        linear = functools.partial(nn.Dense, channels, dtype=self.dtype)
        conv = functools.partial(nn.Conv, channels, (1, 1), dtype=self.dtype)
        project = linear if self.use_linear_projection else conv
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        h = rearrange(project(name="proj_in")(h), "b h w c -> b (h w) c")
        block = TransformerBlock(self.heads, self.dtype, name="transformer_blocks_0")
        h = block(h, _of(context, block))
        h = rearrange(h, "b (h w) c -> b h w c", h=height, w=width)
        return repeat_rows(x, h) + project(name="proj_out")(h)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, and a feed-forward network, each around a skip."""

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """x [B, N, C], context [B, M, D] -> [B, N, C]."""
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        h = norm(name="norm1")(x)
        x = x + Attention(self.heads, self.dtype, name="attn1")(h, h)
        x = repeat_rows(x, jax.tree.leaves(context)[0])
        h = norm(name="norm2")(x)
        to_text = Attention(self.heads, self.dtype, name="attn2")
        x = x + to_text(h, _of(context, to_text))
        return x + FeedForward(self.dtype, name="ff")(norm(name="norm3")(x))


class Attention(nn.Module):
    """Each token takes a mixture of the context's."""

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | KeysAndValues) -> jax.Array:
        """x [B, N, C], context [B, M, D] or its keys and values -> [B, N, C]; `heads` divides C."""
        dense = functools.partial(nn.Dense, x.shape[-1], dtype=self.dtype)
        linear = functools.partial(dense, use_bias=False)
        if isinstance(context, tuple):
            k, v = context
        else:
            k, v = linear(name="to_k")(context), linear(name="to_v")(context)
        qkv = (linear(name="to_q")(x), k, v)
        q, k, v = (rearrange(h, "b n (m d) -> b n m d", m=self.heads) for h in qkv)
        mixed = rearrange(attention(q, k, v), "b n m d -> b n (m d)")
        return dense(name="to_out_0")(mixed)


def project_context(
    params: Mapping[str, Any], context: jax.Array, dtype: Dtype = jnp.float32
) -> Mapping[str, Any]:
    """Keys and values of an encoded text, for each attention to it.

    They do not depend on x_t or the level, so that a sampler computes them once for all its steps.

    Args: params: of a `UNet2DCondition`; context: [B, tokens, D]; dtype: the network's.
    Returns: what the network takes for its context: a pytree of arrays [B, tokens, C].
    """
    found: dict[str, Any] = {}
    for name, below in params.items():
        if name == "attn2":
            found[name] = tuple(
                context.astype(dtype) @ below[kind]["kernel"].astype(dtype)
                for kind in ("to_k", "to_v")
            )
        elif isinstance(below, Mapping) and (deeper := project_context(below, context, dtype)):
            found[name] = deeper
    return found


def _of(context: Context | KeysAndValues, module: nn.Module) -> Any:
    """What a module below is given: its own keys and values, or the text, which is for all."""
    return context.get(str(module.name)) if isinstance(context, Mapping) else context
