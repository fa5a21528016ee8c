"""The text encoder of Stable Diffusion: CLIP's causal transformer over the tokens of a caption.

Architecture: CLIP, arXiv 2103.00020, in the arrangement of transformers' CLIPTextModel, whose names
its submodules and fields bear. Stable Diffusion 2.x holds 23 of the 24 layers of OpenCLIP's
ViT-H/14, so that the last layer here is the one before its last, with the final norm behind it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from zsnr_jax.errors import UsageError
from zsnr_jax.models import clip_layers, sd_layers
from zsnr_jax.models.layers import Dtype

# What keys of config.json must be, where the network knows one way only.
_IMPLEMENTED = {
    "model_type": ["clip_text_model"],
    "architectures": [["CLIPTextModel"]],
    "attention_dropout": [0.0],
}
_IGNORED = [
    *("bos_token_id", "eos_token_id", "pad_token_id", "projection_dim"),  # of the pooled output
    *("initializer_factor", "initializer_range", "transformers_version"),
    "dropout",  # of early versions, which never used it
    *("torch_dtype", "dtype"),  # of the weights' file; `dtype` here is the caller's choice
]


class TextEncoder(nn.Module):
    """Encode tokens as the UNet's cross-attention takes them: the last state, normed, unpooled.

    The fields are those of config.json, and default as they do in transformers.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048  # of the feed-forward layers
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"  # or gelu, the exact one
    layer_norm_eps: float = 1e-5
    remat: bool = False  # recompute layers in the backward pass instead of storing them
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32, remat: bool = False
    ) -> Self:
        """Build from a text_encoder/config.json. Raises: UsageError for what is not implemented."""
        fields = sd_layers.read_config(cls, config, _IMPLEMENTED, _IGNORED)
        model = cls(**fields, dtype=dtype, remat=remat)
        clip_layers.require_implemented(
            model, model.hidden_act, model.hidden_size, model.num_attention_heads
        )
        return model

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """Encode captions, padding included: Stable Diffusion masks only what comes later.

        Args: input_ids int [B, L], 0..vocab_size-1; L is max_position_embeddings at most.
        Returns: [B, L, hidden_size], float32 (float64 where that is computed in).
        """
        length = input_ids.shape[1]
        if length > self.max_position_embeddings:
            raise UsageError(
                f"{length} tokens in a row, for a text encoder of {self.max_position_embeddings}: "
                "cut them to that length."
            )
        embed = functools.partial(
            Embeddings, self.vocab_size, self.max_position_embeddings, self.hidden_size, self.dtype
        )
        layer = functools.partial(
            nn.remat(clip_layers.Layer) if self.remat else clip_layers.Layer,
            self.intermediate_size,
            self.num_attention_heads,
            clip_layers.ACTIVATIONS[self.hidden_act],
            self.layer_norm_eps,
            True,  # causal: no token sees a later one
            self.dtype,
        )
        encode = functools.partial(clip_layers.Encoder, layer, self.num_hidden_layers)
        norm = functools.partial(
            clip_layers.norm, self.layer_norm_eps, jnp.promote_types(self.dtype, jnp.float32)
        )
        return TextModel(embed, encode, norm, name="text_model")(input_ids)


class TextModel(nn.Module):
    """Embeddings, layers and a norm, under the name that they have in a file of weights."""

    embed: Callable[..., nn.Module]
    encode: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """input_ids [B, L] -> [B, L, D]."""
        x = self.embed(name="embeddings")(input_ids)
        x = self.encode(name="encoder")(x)
        return self.norm(name="final_layer_norm")(x)


class Embeddings(nn.Module):
    """A learnt vector for each token, and one for each place."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """input_ids [B, L] -> [B, L, D]."""
        token = nn.Embed(self.vocab_size, self.hidden_size, name="token_embedding")
        position = nn.Embed(
            self.max_position_embeddings, self.hidden_size, name="position_embedding"
        )
        # Rows are looked up in float32: to cast the whole table first would cost more than they do.
        x = token(input_ids) + position(jnp.arange(input_ids.shape[1]))[None]
        return x.astype(self.dtype)
