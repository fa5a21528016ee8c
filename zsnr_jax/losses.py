"""The training loss: squared error of the prediction, weighted by noise level.

A weight's name denotes w(SNR) on the error of x0_hat, whatever the network predicts. The three
errors are proportional, ||v error||^2 = (SNR + 1) ||x0 error||^2 = (1 + 1/SNR) ||eps error||^2, so
that with alpha^2 + sigma^2 = 1 each w is known by one number, its multiplier of the v error:

    v: m = sigma^2 w(SNR)          x0: m / sigma^2          eps: m / alpha^2

No SNR is ever formed, and v and x0 are finite at SNR = 0.

Source: arXiv 2305.08891, section 3.2, Eq. 12 (lambda_t = 1 on the v error).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zsnr_jax.errors import UsageError
from zsnr_jax.predictions import check_prediction, velocity

LossWeight = Callable[[jax.Array, jax.Array], jax.Array]  # (alpha [B], sigma [B]) -> m [B]


def snr_plus_one(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """w = SNR + 1: the plain v loss, and the paper's. At SNR = 0 its multiplier is 1 for v."""
    del sigma
    return jnp.ones_like(alpha)


def snr(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """w = SNR: the plain eps loss of DDPM. At SNR = 0 it is 0, and that level is not learnt."""
    del sigma
    return alpha**2


LOSS_WEIGHTS: dict[str, LossWeight] = {"snr_plus_one": snr_plus_one, "snr": snr}


def require_weight(name: str) -> None:
    """Refuse a weight that is not one of `LOSS_WEIGHTS`. Raises: UsageError."""
    if name not in LOSS_WEIGHTS:
        raise UsageError(
            f"loss weight {name!r} is unknown: choose one of {', '.join(LOSS_WEIGHTS)}."
        )


def multiplier(weight: str, alpha: jax.Array, sigma: jax.Array, prediction: str) -> jax.Array:
    """The factor of the squared error of a v, x0 or eps output under a weight.

    Args: weight: a name of `LOSS_WEIGHTS`; alpha, sigma [B]; prediction: v, x0 or eps.
    Returns: [B]. For eps at SNR = 0 there is none: alpha must be above 0.
    """
    require_weight(weight)
    v_multiplier = LOSS_WEIGHTS[weight](alpha, sigma)
    return v_multiplier / {"v": 1, "x0": sigma**2, "eps": alpha**2}[prediction]


def target(
    x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction: str
) -> jax.Array:
    """What the network should return, [B, ...]. At SNR = 0 the v target is -x0."""
    if prediction == "v":
        return velocity(x0, eps, alpha, sigma)
    return {"x0": x0, "eps": eps}[prediction]


def per_example_loss(
    output: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    alpha: jax.Array,
    sigma: jax.Array,
    prediction: str,
    weight: str = "snr_plus_one",
) -> jax.Array:
    """The weighted mean squared error of each example, in float32 at least.

    Args:
      output: [B, ...], what the network returned for x_t = alpha x0 + sigma eps.
      x0, eps: [B, ...]; alpha, sigma: [B].
      prediction: v, x0 or eps; weight: a name of `LOSS_WEIGHTS`.
    Returns: [B], mean over all axes but the batch.
    Raises: UsageError for an unknown weight or prediction, or an output of another shape than x0.
    """
    check_prediction(prediction)
    if output.shape != x0.shape:
        raise UsageError(f"the network returned shape {output.shape} for data of {x0.shape}.")
    output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    error = output - target(x0, eps, alpha, sigma, prediction)
    mean_square = jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))
    return multiplier(weight, alpha, sigma, prediction) * mean_square
