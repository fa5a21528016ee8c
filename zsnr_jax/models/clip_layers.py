"""The transformer that CLIP's towers share, for text and for images: arXiv 2103.00020.

Submodules bear the names that they have in transformers' CLIPModel.
"""

import functools
from collections.abc import Callable

import jax
from einops import rearrange
from flax import linen as nn

from zsnr_jax.models import sd_layers
from zsnr_jax.models.attention import attention
from zsnr_jax.models.layers import Dtype

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": functools.partial(nn.gelu, approximate=False),  # OpenCLIP, so Stable Diffusion 2.x
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's own CLIP, so 1.x
}


def require_implemented(model: nn.Module, hidden_act: str, hidden_size: int, heads: int) -> None:
    """Refuse a tower whose activation is unknown, or whose heads do not divide its width."""
    if hidden_act not in ACTIVATIONS:
        known = " or ".join(map(repr, ACTIVATIONS))
        sd_layers.refuse(type(model), "hidden_act", hidden_act, known)
    if hidden_size % heads:
        divisor = f"a divisor of hidden_size={hidden_size}"
        sd_layers.refuse(type(model), "num_attention_heads", heads, divisor)


def norm(eps: float, dtype: Dtype, name: str) -> nn.LayerNorm:
    """A layer norm that stays exact where a channel is far larger than the rest."""
    # The mean square less the squared mean loses digits there, as some channels of CLIP are: the
    # variance is taken about the mean instead.
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


class Encoder(nn.Module):
    """Layers, one after another."""

    layer: Callable[..., nn.Module]
    num_hidden_layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, L, D] -> [B, L, D]."""
        for i in range(self.num_hidden_layers):
            x = self.layer(name=f"layers_{i}")(x)
        return x


class Layer(nn.Module):
    """Attention, then a feed-forward layer, each normed at its entry and added to what it got."""

    intermediate_size: int
    num_attention_heads: int
    activation: Activation
    eps: float  # of the norms
    is_causal: bool  # every token attends to itself and those before it, or to all
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, L, D] -> [B, L, D]."""
        attend = SelfAttention(
            self.num_attention_heads, self.is_causal, self.dtype, name="self_attn"
        )
        mlp = MLP(self.intermediate_size, self.activation, self.dtype, name="mlp")
        x = x + attend(norm(self.eps, self.dtype, "layer_norm1")(x))
        return x + mlp(norm(self.eps, self.dtype, "layer_norm2")(x))


class SelfAttention(nn.Module):
    """Every token attends to all, or to itself and to those before it."""

    num_attention_heads: int
    is_causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, L, D] -> [B, L, D]; `num_attention_heads` divides D."""
        dense = functools.partial(nn.Dense, x.shape[-1], dtype=self.dtype)
        q, k, v = (
            rearrange(
                dense(name=f"{part}_proj")(x), "b l (m d) -> b l m d", m=self.num_attention_heads
            )
            for part in "qkv"
        )
        mixed = attention(q, k, v, is_causal=self.is_causal)
        return dense(name="out_proj")(rearrange(mixed, "b l m d -> b l (m d)"))


class MLP(nn.Module):
    """Two dense layers, wide between them."""

    intermediate_size: int
    activation: Activation
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, L, D] -> [B, L, D]."""
        h = nn.Dense(self.intermediate_size, dtype=self.dtype, name="fc1")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(self.activation(h))
