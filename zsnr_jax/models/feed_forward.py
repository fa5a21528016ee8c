"""The feed-forward network of a transformer, by what is fastest where a program is compiled for.

Between its two linear maps a token has eight times its channels. On CPUs all tokens' would go to
memory and back several times, and again for the gradient: there, some tokens are taken at a time,
and the gradient computes them anew.
`python -m experiments.benchmarks.layers` measures both ways, and torch's.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from zsnr_jax.models.blocks import AT_ONCE, rows_at_once
from zsnr_jax.models.norm import Dtype

Linear = tuple[jax.Array, jax.Array]  # kernel [C, D] and bias [D]
_MANY = 4  # blocks; where there are fewer, all at once is as fast


class FeedForward(nn.Module):
    """A gated linear unit four times as wide, and back. Source: arXiv 2002.05202, GEGLU."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, N, C] -> [B, N, C]."""
        channels = x.shape[-1]
        wide = _Gated(name="net_0")(channels)
        narrow = _Weights(channels, name="net_2")(4 * channels)
        return _by_platform(*jax.tree.map(lambda x: x.astype(self.dtype), (x, wide, narrow)))


class _Weights(nn.Module):
    """Those of a linear map, as nn.Dense has them."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> Linear:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class _Gated(nn.Module):
    """Weights of the way up, by the names that diffusers has for them."""

    @nn.compact
    def __call__(self, channels: int) -> Linear:
        return _Weights(8 * channels, name="proj")(channels)


# A network has many alike: traced and differentiated once a shape.
@jax.jit
def _by_platform(x: jax.Array, wide: Linear, narrow: Linear) -> jax.Array:
    return jax.lax.platform_dependent(x, wide, narrow, cpu=_in_blocks, default=feed_forward)


def feed_forward(x: jax.Array, wide: Linear, narrow: Linear) -> jax.Array:
    """A linear map times the exact GELU of another, and a third: x [..., C] -> [..., C].

    Args: wide: to the one and the gate, [C, 8C]; narrow: [4C, C].
    """
    h, gate = jnp.split(_apply(wide, x), 2, axis=-1)
    return _apply(narrow, h * nn.gelu(gate, approximate=False))


def _on_cpu(x: jax.Array, wide: Linear, narrow: Linear) -> jax.Array:
    """The same by two products of half the kernel: of one, the cut would copy what it made."""
    halves = (jnp.split(weights, 2, axis=-1) for weights in wide)
    h, gate = (_apply(half, x) for half in zip(*halves, strict=True))
    return _apply(narrow, h * _gelu(gate))


def _in_blocks(x: jax.Array, wide: Linear, narrow: Linear) -> jax.Array:
    tokens = rearrange(x, "b n c -> (b n) c")
    width = wide[0].shape[1]
    if tokens.shape[0] * width < _MANY * AT_ONCE:
        return _on_cpu(x, wide, narrow)
    blocks = rearrange(tokens, "(k n) c -> k n c", n=rows_at_once(len(tokens), width))
    # Nothing of a block is kept for the gradient: to compute it anew is quicker than to read it.
    apply = jax.checkpoint(lambda block: _on_cpu(block, wide, narrow))
    return jax.lax.map(apply, blocks).reshape(x.shape)


def _gelu(x: jax.Array) -> jax.Array:
    """By erf, in float32 as torch does; JAX's is by erfc, so that halves keep their digits.

    On CPUs this is quicker; on TPUs float32 would take memory.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * (1 + jax.lax.erf(wide * 2**-0.5)) / 2).astype(x.dtype)


def _apply(linear: Linear, x: jax.Array) -> jax.Array:
    kernel, bias = linear
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))
