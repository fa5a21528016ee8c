"""Adaptive projected guidance: guidance without the part of it that over-exposes.

The difference of the two predicted pictures is split along the conditional one. What is parallel to
it only scales the picture, hence its contrast and colours; what is orthogonal changes what it
shows. At SNR = 0 both predictions are means, and a mean that guidance scales is the over-exposure
that the rescale of arXiv 2305.08891 was made for. This removes the cause, at every scale, where
the rescale mends the effect; take it beside a high scale (w of 10 or more), or where the rescale
leaves pictures flat.

Source: Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion
Models" (arXiv 2410.02416), Algorithm 1.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from zsnr_jax.guidance import ConditionalNetwork, deinterleave, interleave
from zsnr_jax.predictions import StatefulDenoise, make_denoise
from zsnr_jax.schedules import NoiseSchedule


def make_apg_denoise(
    network: ConditionalNetwork,
    schedule: NoiseSchedule,
    prediction: str,
    condition: Any,
    negative_condition: Any,
    scale: jax.typing.ArrayLike,
    eta: jax.typing.ArrayLike = 0.0,
    norm_threshold: jax.typing.ArrayLike = math.inf,
    momentum: jax.typing.ArrayLike = -0.5,
) -> StatefulDenoise:
    """Bind conditions to a network, guided by adaptive projection.

    delta_t = (x0_cond - x0_neg) + momentum delta_(last level)
    x0_hat  = x0_cond + (scale - 1) (orthogonal + eta parallel)

    where the two are the parts of delta_t, shortened to norm_threshold, orthogonal and parallel to
    x0_cond, for each example over all its axes.

    Args:
      network, condition, negative_condition: as in `guidance.guide_network`.
      schedule, prediction: as in `predictions.make_denoise`.
      scale: w; 1 is the conditional network.
      eta: of the parallel part that is kept; 1, with no threshold or momentum, is plain guidance.
      norm_threshold: the longest delta, in the norm over all axes of an example, so that it belongs
        to a size of picture; the default does not shorten.
      momentum: in (-1, 0], of the last level's delta, which is pushed back; 0 remembers nothing.
    Returns: a denoise that remembers delta, for samplers. All numbers may be traced.
    At SNR = 0, eps_hat stays x_t, and x0_hat is as above. Where x0_cond or delta is 0, nothing is
    divided by it, and gradients are finite.
    """
    ratio = jnp.asarray(schedule.alpha[1:] / schedule.sigma[1:])

    def both(x_t: jax.Array, timestep: jax.Array) -> jax.Array:
        return network(x_t, timestep, interleave(condition, negative_condition))

    denoise = make_denoise(both, schedule, prediction)

    def guided(x_t: jax.Array, level: jax.Array, delta: jax.Array) -> Any:
        x0_both, eps_both = denoise(interleave(x_t, x_t), level)
        (x0_cond, x0_negative), (eps_cond, _) = deinterleave(x0_both), deinterleave(eps_both)
        delta = x0_cond - x0_negative + momentum * delta
        change = (scale - 1) * project(delta, x0_cond, eta, norm_threshold)
        # What is added to x0_hat is taken from eps_hat, so that both still make up x_t.
        return (x0_cond + change, eps_cond - ratio[level - 1] * change), delta

    return StatefulDenoise(lambda x_T: jnp.zeros_like(x_T, jnp.float32), guided)


def project(
    delta: jax.Array,
    x0_cond: jax.Array,
    eta: jax.typing.ArrayLike,
    norm_threshold: jax.typing.ArrayLike,
) -> jax.Array:
    """Shorten delta [B, ...] to a norm, and keep eta of what is parallel to x0_cond [B, ...]."""
    square = _dot(delta, delta)
    # Neither the root nor the quotients may see a zero, nor may their gradients.
    norm = jnp.sqrt(jnp.where(square == 0, 1, square))
    delta = delta * (jnp.minimum(norm, norm_threshold) / norm)
    length = _dot(x0_cond, x0_cond)
    parallel = _dot(delta, x0_cond) / jnp.where(length == 0, 1, length) * x0_cond
    return delta + (eta - 1) * parallel


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a * b, tuple(range(1, a.ndim)), keepdims=True)
