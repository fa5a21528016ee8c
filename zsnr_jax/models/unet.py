"""A UNet on pixels, or small blocks of them, conditioned on the noise level and a class label."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from zsnr_jax.models.convolution import Conv3x3
from zsnr_jax.models.layers import (
    Downsample,
    Dtype,
    GroupNorm,
    ResBlock,
    SelfAttention,
    Upsample,
    timestep_embedding,
)


class UNet(nn.Module):
    """Residual blocks at falling, then rising resolution, with a skip from each to its mirror.

    The output convolution starts at zero, so a fresh network predicts 0 everywhere.
    """

    num_classes: int  # labels 0..num_classes-1; label num_classes is the null class of guidance
    channels: tuple[int, ...] = (64, 128)  # one entry per resolution, finest first
    num_res_blocks: int = 2  # per resolution, on the way down and again on the way up
    attention: tuple[bool, ...] = (False, True)  # per resolution: attend after each block?
    head_dim: int = 32
    patch_size: int = 1  # pixels per side of the blocks the network works on
    dropout: float = 0.0
    label_scale: float = 1.0  # of a fresh label's embedding, whose length is this
    remat: bool = False  # recompute blocks in the backward pass instead of storing them
    dtype: Dtype = jnp.float32

    @property
    def null_label(self) -> int:
        """The label that stands for "any class" in classifier-free guidance."""
        return self.num_classes

    @nn.compact
    def __call__(
        self,
        x_t: jax.Array,
        timestep: jax.Array,
        label: jax.Array,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Predict v, x0 or eps, whichever the network is trained for.

        Args:
          x_t: float [B, H, W, C]; patch_size * 2^(resolutions - 1) divides H and W.
          timestep: int [B], 0..T-1. label: int [B], 0..num_classes.
          dropout_keys: [B], one key per row, in training; None: no dropout.
        Returns: at least float32, like x_t.
        """
        embedding = self._embed(timestep, label)
        p = self.patch_size
        h = rearrange(x_t, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p).astype(self.dtype)
        h = Conv3x3(self.channels[0], dtype=self.dtype, name="conv_in")(h)

        skips = []
        for i, channels in enumerate(self.channels):
            if i:
                h = Downsample(channels, self.dtype, name=f"downsample{i}")(h)
            for j in range(self.num_res_blocks):
                h = self._block(h, embedding, dropout_keys, i, f"down{i}_{j}")
                skips.append(h)

        h = self._block(h, embedding, dropout_keys, len(self.channels) - 1, "middle")

        for i in reversed(range(len(self.channels))):
            for j in range(self.num_res_blocks):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, embedding, dropout_keys, i, f"up{i}_{j}")
            if i:
                h = Upsample(self.channels[i - 1], self.dtype, name=f"upsample{i}")(h)

        h = nn.silu(GroupNorm(self.dtype, name="norm_out")(h))
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        zeros = nn.initializers.zeros
        h = Conv3x3(p * p * x_t.shape[-1], kernel_init=zeros, name="conv_out")(h)
        content = rearrange(h, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)
        # v and eps are a multiple of x_t plus a multiple of x0, both known from the level alone.
        # Two learnt gates spare the layers from carrying every pixel's noise through unharmed.
        gates = nn.Dense(2, kernel_init=zeros, name="gates")(embedding)
        through, scale = jnp.split(gates[:, :, None, None], 2, axis=1)
        return through * x_t + (1 + scale) * content

    def _embed(self, timestep: jax.Array, label: jax.Array) -> jax.Array:
        """Noise level and label as one vector, [B, 4 * channels[0]]."""
        width = 4 * self.channels[0]
        time = timestep_embedding(timestep, self.channels[0]).astype(self.dtype)
        time = nn.Dense(width, dtype=self.dtype, name="time_in")(time)
        time = nn.Dense(width, dtype=self.dtype, name="time_out")(nn.silu(time))
        of_length = nn.initializers.normal(self.label_scale / width**0.5)
        labels = nn.Embed(
            self.num_classes + 1, width, self.dtype, embedding_init=of_length, name="label"
        )
        kind = labels(label)
        return nn.silu(time + kind)

    def _block(
        self,
        h: jax.Array,
        embedding: jax.Array,
        dropout_keys: jax.Array | None,
        resolution: int,
        name: str,
    ) -> jax.Array:
        """A residual block, then attention where this resolution has it."""
        block = nn.remat(ResBlock) if self.remat else ResBlock
        channels = self.channels[resolution]
        h = block(channels, self.dropout, self.dtype, name=name)(h, embedding, dropout_keys)
        if self.attention[resolution]:
            h = SelfAttention(self.head_dim, self.dtype, name=f"{name}_attention")(h)
        return h
