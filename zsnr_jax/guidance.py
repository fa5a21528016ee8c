"""Classifier-free guidance, its rescale against over-exposure, and where it acts.

Guidance extrapolates from the unconditional to the conditional output, which at SNR = 0 multiplies
the predicted mean of the image by the guidance scale: the nearer the terminal SNR comes to zero,
the more pictures are over-exposed. Against it there are, each for its own case,

    rescale             gives a guided output back the standard deviation of the conditional one:
                        the paper's, and the one to begin with; 0.5 to 0.75 look best to it
    negative condition  says what the picture must not show, in the place of the empty condition
    interval of levels  guides only where that helps (`guide_within`): faster, and more various
    projection          leaves out what over-exposes (`zsnr_jax.apg`): for high scales

Source: arXiv 2305.08891, section 3.4, Eqs. 13-16 and Algorithm 2; Ho and Salimans (2207.12598);
for the interval, Kynkaanniemi et al. (2404.07724).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from zsnr_jax.predictions import Denoise, Network, StatefulDenoise

ConditionalNetwork = Callable[[jax.Array, jax.Array, Any], jax.Array]


def guide(
    cond: jax.Array,
    uncond: jax.Array,
    scale: jax.typing.ArrayLike,
    rescale: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
    """Combine two outputs of a network into the guided one.

    g = cond + (scale - 1) (cond - uncond)                                        (Eq. 13)
    output = g (1 + rescale (std(cond) / std(g) - 1))                             (Eqs. 14-16)

    The standard deviations are those of each example over all its other axes, in float32.

    Args:
      cond, uncond: [B, ...], what the network returns, in its own parametrisation.
      scale: w; 1 returns cond bit for bit.
      rescale: phi in [0, 1]; 0 returns g bit for bit, 1 gives it the spread of cond. The paper's
        values are w = 7.5 and phi = 0.7. Both may be traced.
    Returns: float32 [B, ...]. Where cond or g is constant over an example, its factor is 1, and
      values and gradients are finite: a freshly initialised network is such a case.
    The formula knows no noise level; at SNR = 0 it scales x0_hat itself, since there x0 = -v.
    """
    cond, uncond = cond.astype(jnp.float32), uncond.astype(jnp.float32)
    guided = cond + (scale - 1) * (cond - uncond)
    var_cond, var_guided = _variance(cond), _variance(guided)
    # The square root must never see a zero, not even on the branch that `where` discards: its
    # gradient would be NaN there.
    degenerate = (var_cond == 0) | (var_guided == 0)
    ratio = jnp.sqrt(jnp.where(degenerate, 1, var_cond) / jnp.where(degenerate, 1, var_guided))
    return guided * (1 + rescale * (ratio - 1))


def _variance(x: jax.Array) -> jax.Array:
    """Each example's variance, [B, 1, ...]; exactly 0 where it is constant."""
    # The mean of a constant may be off by rounding; the mean of zeros is not.
    first = x[(slice(None), *[slice(1)] * (x.ndim - 1))]
    return jnp.var(x - first, tuple(range(1, x.ndim)), keepdims=True)


def guide_network(
    network: ConditionalNetwork,
    condition: Any,
    negative_condition: Any,
    scale: jax.typing.ArrayLike,
    rescale: jax.typing.ArrayLike = 0.0,
) -> Network:
    """Bind conditions to a network, such that one call of it gives the guided output.

    Each example's two rows stand side by side in the doubled batch, so that a batch sharded over
    devices stays where it is; putting all of one kind first would move half of it.

    Args:
      network: (x_t [B, ...], timestep [B], condition) -> output [B, ...].
      condition: a pytree of arrays [B, ...], such as labels or embeddings of a prompt.
      negative_condition: the same of what to move away from: the empty condition, or one that
        says what the picture must not show.
      scale, rescale: as in `guide`.
    Returns: a network of (x_t, timestep) alone.
    """

    def guided(x_t: jax.Array, timestep: jax.Array) -> jax.Array:
        pairs = interleave(condition, negative_condition)
        outputs = network(interleave(x_t, x_t), interleave(timestep, timestep), pairs)
        return guide(*deinterleave(outputs), scale, rescale)

    return guided


def sharing_input(network: ConditionalNetwork) -> ConditionalNetwork:
    """Make of a network that takes several conditions to one x_t what `guide_network` takes.

    An example's two rows differ by their condition alone, so that such a network, as
    `sd_unet.UNet2DCondition` is, computes what comes before the condition once.

    Args: network: (x_t [B, ...], timestep [B], condition of 2B rows) -> output [2B, ...].
    """

    def shared(x_t: jax.Array, timestep: jax.Array, condition: Any) -> jax.Array:
        return network(deinterleave(x_t)[0], deinterleave(timestep)[0], condition)

    return shared


def guide_within(
    guided: Denoise | StatefulDenoise,
    unguided: Denoise,
    lowest: jax.typing.ArrayLike,
    highest: jax.typing.ArrayLike,
) -> StatefulDenoise:
    """Guide within an interval of levels only; outside it the network is called once, not twice.

    At the noisiest levels guidance is what over-exposes; at the cleanest it changes little. Take it
    when a high scale costs variety or exposure that a rescale does not give back, or to save time.

    The choice is made on the device, by a conditional, so that a sampler compiles once and both
    bounds may be traced. (Under vmap over levels or bounds, both sides are computed.)

    Args:
      guided: as of `predictions.make_denoise` of `guide_network`, or of `apg.make_apg_denoise`.
      unguided: the same by the conditional network alone.
      lowest, highest: levels in 1..T, both within the interval.
    Returns: what samplers take for a denoise. A memory of `guided` rests outside the interval.
    """
    start, inside = StatefulDenoise.of(guided)

    def outside(x_t: jax.Array, level: jax.Array, memory: Any) -> Any:
        return unguided(x_t, level), memory

    def denoise(x_t: jax.Array, level: jax.Array, memory: Any) -> Any:
        within = (lowest <= level) & (level <= highest)
        return jax.lax.cond(within, inside, outside, x_t, level, memory)

    return StatefulDenoise(start, denoise)


def interleave(first: Any, second: Any) -> Any:
    """Two equal pytrees of [B, ...] as one of [2B, ...], each example's two rows side by side."""
    join = lambda *rows: rearrange(list(rows), "pair b ... -> (b pair) ...")  # noqa: E731
    return jax.tree.map(join, first, second)


def deinterleave(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse of `interleave`, of one array."""
    first, second = rearrange(rows, "(b pair) ... -> pair b ...", pair=2)
    return first, second
