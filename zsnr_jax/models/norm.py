"""Group normalisation, by what is fastest on the hardware a program is compiled for.

On GPUs and TPUs that is Flax's own. On CPUs XLA sums a group's few channels one number after
another; here each channel is summed over the positions, which takes many channels at a time, and
then the sums. That is also more exact: Flax takes the variance as E[x^2] - E[x]^2.

`python -m experiments.benchmarks.layers` measures both ways, and torch's.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import linen as nn

Dtype = jax.typing.DTypeLike


class GroupNorm(nn.Module):
    """Normalise groups of channels over all positions; then scale and shift each channel.

    Its statistics are of float32 or wider, whatever the dtype. Source: arXiv 1803.08494.
    """

    groups: int
    epsilon: float = 1e-6
    dtype: Dtype | None = None  # of the result; None: the wider of the input's and float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, ..., C] -> the same shape. Raises: ValueError where `groups` does not divide C."""
        if x.shape[-1] % self.groups:
            raise ValueError(
                f"{x.shape[-1]} channels do not make {self.groups} equal groups: "
                "take a multiple of that."
            )
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return _by_platform(x, scale, bias, self.groups, self.epsilon, self.dtype)


# A network has many alike: traced and differentiated once a shape, which halves its tracing time.
@functools.partial(jax.jit, static_argnames=("groups", "epsilon", "dtype"))
def _by_platform(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    groups: int,
    epsilon: float,
    dtype: Dtype | None,
) -> jax.Array:
    def by_channels(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        normal = normalise(x, scale, bias, groups, epsilon)
        return normal.astype(dtype or normal.dtype)

    def by_flax(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        norm = nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, parent=None)
        return jnp.asarray(norm.apply({"params": {"scale": scale, "bias": bias}}, x))

    return jax.lax.platform_dependent(x, scale, bias, cpu=by_channels, default=by_flax)


def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float
) -> jax.Array:
    """scale (x - mean) / sqrt(var + epsilon) + bias, mean and var of each group of channels.

    Args: x [B, ..., C]; scale, bias [C]. Returns: x's shape, of float32 or wider.
    """
    rows = rearrange(x.astype(jnp.promote_types(x.dtype, jnp.float32)), "b ... c -> b (...) c")

    def mean_of_group(channels: jax.Array) -> jax.Array:
        means = reduce(channels, "b (g c) -> b g", "mean", g=groups)
        return repeat(means, "b g -> b 1 (g c)", c=x.shape[-1] // groups)

    mean = mean_of_group(rows.mean(axis=1))
    variance = mean_of_group(jnp.square(rows - mean).mean(axis=1))
    slope = scale[None, None] * jax.lax.rsqrt(variance + epsilon)
    return (rows * slope + (bias[None, None] - mean * slope)).reshape(x.shape)
