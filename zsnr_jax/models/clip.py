"""CLIP, which tells how well an image and a caption go together: arXiv 2103.00020. NHWC.

Two towers, one for text and one for images, each ending in a vector of the same length. Names and
fields are those of transformers' CLIPModel and of its config.json.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from zsnr_jax.models import clip_layers, sd_layers
from zsnr_jax.models.layers import Dtype
from zsnr_jax.models.text_encoder import TextEncoder

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the images that CLIP was trained on, in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)

_IMPLEMENTED = {"model_type": ["clip"], "architectures": [["CLIPModel"]]}
_IN_VISION = {"model_type": ["clip_vision_model"], "attention_dropout": [0.0]}
_IGNORED = [
    *("initializer_factor", "initializer_range", "transformers_version", "projection_dim"),
    *("dropout", "torch_dtype", "dtype", "logit_scale_init_value"),
]
# What transformers 4 wrote into every config: how to generate text and classify, which CLIP does
# not do.
_OF_OTHERS = [
    *("add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward"),
    *("cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample"),
    *("early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
    *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "label2id"),
    *("is_decoder", "is_encoder_decoder", "length_penalty", "max_length", "min_length"),
    *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences"),
    *("output_attentions", "output_hidden_states", "output_scores", "prefix", "problem_type"),
    *("pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict"),
    *("return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params"),
    *("temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings"),
    *("tokenizer_class", "top_k", "top_p", "torchscript", "typical_p", "use_bfloat16"),
]
_EARLY_END = 2  # an eos_token_id that early configs gave in error; the end token is the last then


class CLIP(nn.Module):
    """Embed images and captions as vectors of length 1; their inner product is the cosine."""

    text: TextEncoder
    vision: "VisionEncoder"
    end_id: int  # the token at which a caption ends, and where its vector is taken
    projection_dim: int = 512

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32) -> Self:
        """Build from a config.json. Raises: UsageError for what is not implemented."""
        parts = {name: _part(cls, config, name) for name in ("text", "vision")}
        rest = {
            k: x for k, x in config.items() if not k.startswith(("text_config", "vision_config"))
        }
        fields = sd_layers.read_config(cls, rest, _IMPLEMENTED, [*_IGNORED, *_OF_OTHERS])
        text = TextEncoder.from_config(parts["text"], dtype)
        end = parts["text"].get("eos_token_id", text.vocab_size - 1)
        if type(end) is not int or not 0 <= end < text.vocab_size:
            sd_layers.refuse(cls, "eos_token_id", end, f"a token, 0 to {text.vocab_size - 1}")
        return cls(
            text,
            VisionEncoder.from_config(parts["vision"], dtype),
            end_id=text.vocab_size - 1 if end == _EARLY_END else end,
            **fields,
        )

    def setup(self) -> None:
        """Put both towers' parameters at the top, where a file of weights has them."""
        nn.share_scope(self, self.text)
        nn.share_scope(self, self.vision)
        self.text_projection = nn.Dense(self.projection_dim, use_bias=False)
        self.visual_projection = nn.Dense(self.projection_dim, use_bias=False)

    def __call__(self, images: jax.Array, input_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embed images and captions: their vectors, [B, projection_dim] each.

        Args: images: [B, S, S, 3], uint8, or floats in [0, 1]; S is vision.image_size.
          input_ids: int [B, L], each row with the end token in it.
        """
        return self.embed_images(images), self.embed_text(input_ids)

    def embed_images(self, images: jax.Array) -> jax.Array:
        """images as `__call__` takes them -> [B, projection_dim]."""
        x = images.astype(jnp.float32)
        x = x / 255 if images.dtype == jnp.uint8 else x
        mean, std = (jnp.asarray(c, jnp.float32).reshape(1, 1, 1, 3) for c in (MEAN, STD))
        return _normalize(self.visual_projection(self.vision((x - mean) / std)))

    def embed_text(self, input_ids: jax.Array) -> jax.Array:
        """input_ids as `__call__` takes them -> [B, projection_dim]."""
        ends = jnp.argmax(input_ids == self.end_id, axis=1)  # the first: padding may be the same
        states = self.text(input_ids)
        return _normalize(self.text_projection(states[jnp.arange(len(ends)), ends]))


class VisionEncoder(nn.Module):
    """The tower of images. The fields are those of config.json's vision_config."""

    hidden_size: int = 768
    intermediate_size: int = 3072  # of the feed-forward layers
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"  # or gelu, the exact one
    layer_norm_eps: float = 1e-5
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32) -> Self:
        """Build from a vision_config. Raises: UsageError for what is not implemented."""
        model = cls(**sd_layers.read_config(cls, config, _IN_VISION, _IGNORED), dtype=dtype)
        clip_layers.require_implemented(
            model, model.hidden_act, model.hidden_size, model.num_attention_heads
        )
        return model

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [B, S, S, 3] -> the state of the class token, [B, hidden_size]."""
        layer = functools.partial(
            clip_layers.Layer,
            self.intermediate_size,
            self.num_attention_heads,
            clip_layers.ACTIVATIONS[self.hidden_act],
            self.layer_norm_eps,
            False,  # all patches see each other
            self.dtype,
        )
        embed = functools.partial(PatchEmbeddings, self.hidden_size, self.patch_size, self.dtype)
        encode = functools.partial(clip_layers.Encoder, layer, self.num_hidden_layers)
        norm = functools.partial(clip_layers.norm, self.layer_norm_eps)
        return VisionModel(embed, encode, norm, self.dtype, name="vision_model")(pixels)


class VisionModel(nn.Module):
    """Embeddings, layers and norms, under the names that they have in a file of weights."""

    embed: Callable[..., nn.Module]
    encode: Callable[..., nn.Module]
    norm: Callable[[Dtype, str], nn.LayerNorm]
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels [B, S, S, 3] -> [B, D]."""
        x = self.embed(name="embeddings")(pixels)
        x = self.norm(self.dtype, "pre_layrnorm")(x)  # spelt so in every file
        x = self.encode(name="encoder")(x)
        return self.norm(jnp.promote_types(self.dtype, jnp.float32), "post_layernorm")(x[:, 0])


class PatchEmbeddings(nn.Module):
    """A token for the class and one for each patch, and a learnt vector for each place."""

    hidden_size: int
    patch_size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels [B, S, S, 3] -> [B, 1 + (S / patch_size)^2, hidden_size]."""
        sides = (self.patch_size, self.patch_size)
        patches = nn.Conv(
            self.hidden_size, sides, sides, "VALID", use_bias=False, dtype=self.dtype,
            name="patch_embedding",
        )(pixels)  # fmt: skip
        patches = rearrange(patches, "b h w d -> b (h w) d")
        start = self.param("class_embedding", nn.initializers.normal(), (self.hidden_size,))
        start = jnp.broadcast_to(start[None, None], (len(patches), 1, self.hidden_size))
        x = jnp.concatenate([start.astype(patches.dtype), patches], axis=1)
        position = nn.Embed(x.shape[1], self.hidden_size, name="position_embedding")
        return x + position(jnp.arange(x.shape[1]))[None].astype(x.dtype)


def _part(model: type[nn.Module], config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tower's settings. Where a config has them twice, transformers takes text_config_dict's."""
    part = config.get(f"{name}_config_dict")
    part = config.get(f"{name}_config") if part is None else part
    if not isinstance(part, Mapping):
        sd_layers.refuse(model, f"{name}_config", part, "the settings of that tower")
    return {key: x for key, x in part.items() if x is not None and key not in _OF_OTHERS}


def _normalize(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
