"""3x3 convolutions, by what is fastest on the hardware a program is compiled for.

On GPUs and TPUs that is XLA's own. On CPUs it is Winograd's filtering (`zsnr_jax.models.winograd`)
where there are many channels, and no gradient is taken: in a training step Winograd's gradients
were no faster than XLA's, and took half as much memory again.
`python -m experiments.benchmarks.layers` measures both ways, and torch's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from zsnr_jax.models import winograd
from zsnr_jax.models.norm import Dtype

# Where Winograd's pays, by trials on two cores. A pixel's transforms cost as much as that many
# products of C by K channels:
_CHANNELS = 40  # C K / (C + K)
# XLA's kernel shares a product of [n, C] and [C, K] among cores only where C (n + K) is above this:
_SHARED = 90_000
_MOST = 2**25  # numbers in a transform of all pixels, which takes four times their memory


class Conv3x3(nn.Module):
    """A 3x3 convolution of stride 1 that pads by zeros; its parameters are those of nn.Conv."""

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Dtype | None = None  # of what is computed; None: the widest of what comes in
    doubles: bool = False  # repeat each pixel in a square of four before?

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, features], or [B, 2H, 2W, features]."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        apply = convolve_doubled if self.doubles else convolve
        return apply(x, kernel) + bias[None, None, None]


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, H, W, C], kernel [3, 3, C, K], of one dtype -> [B, H, W, K]."""
    if not _winograd_pays(x.shape, kernel.shape, x.dtype):
        return by_xla(x, kernel)
    return _by_winograd(x, kernel)


def convolve_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same of x with each pixel repeated in a square of four -> [B, 2H, 2W, K]."""
    if not _winograd_pays(jax.eval_shape(winograd.doubled, x).shape, kernel.shape, x.dtype):
        return _doubled_by_xla(x, kernel)
    return _doubled_by_winograd(x, kernel)


# Not jitted: on CPUs, XLA has no quick kernels for gradients of convolutions inside a function.
def by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution as XLA has it."""
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)


def _doubled_by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return by_xla(winograd.doubled(x), kernel)


def _on_cpu(quick: Callable[..., jax.Array], other: Callable[..., jax.Array]) -> Any:
    """`quick` on CPUs, but `other` where a gradient is taken, and elsewhere."""

    @jax.custom_jvp
    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, kernel, cpu=quick, default=other)

    apply.defjvp(functools.partial(jax.jvp, other))
    return apply


_by_winograd = _on_cpu(winograd.convolve, by_xla)
_doubled_by_winograd = _on_cpu(winograd.convolve_doubled, _doubled_by_xla)


def _winograd_pays(x: Sequence[int], kernel: Sequence[int], dtype: Any) -> bool:
    """Whether it does so on CPUs, for x and kernel of these shapes."""
    batch, height, width, _ = x
    few, many = sorted(kernel[2:])
    tiles = batch * height * width // 4
    return (
        dtype == jnp.float32
        and height % 2 == width % 2 == 0
        and few * many >= _CHANNELS * (few + many)
        and few * (tiles + many) > _SHARED
        and 16 * tiles * many <= _MOST
    )
