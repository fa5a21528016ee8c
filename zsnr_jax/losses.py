"""The training loss: squared error of the prediction, weighted by noise level.

A weight's name denotes w(SNR) on the error of x0_hat, whatever the network predicts. The three
errors are proportional, ||v error||^2 = (SNR + 1) ||x0 error||^2 = (1 + 1/SNR) ||eps error||^2, so
that with alpha^2 + sigma^2 = 1 each w is known by one number, its multiplier of the v error:

    v: m = sigma^2 w(SNR)          x0: m / sigma^2          eps: m / alpha^2

No SNR is ever formed, and v and x0 are finite at SNR = 0. There the multipliers are:

    weight                      w(SNR)                    v    x0    eps
    snr_plus_one                SNR + 1                   1    1     inf
    snr                         SNR                       0    0     nan
    uniform                     1                         1    1     inf
    truncated_snr               max(SNR, 1)               1    1     inf
    min_snr_plus_one            min(SNR, gamma) + 1       1    1     inf
    min_snr_at_least_one        max(min(SNR, gamma), 1)   1    1     inf
    min_snr_zero_at_terminal    min(SNR, gamma)           0    0     nan

where nan is 0/0, whose limit is 1. No weight makes an eps network right at SNR = 0: its target is
its own input, so that it learns nothing of the data there, and a sample has no x0_hat to start
from. `predictions.make_denoise` and `process.DiffusionProcess` refuse it.

Source: arXiv 2305.08891, section 3.2, Eq. 12 (lambda_t = 1 on the v error); truncated_snr from
Salimans and Ho (arXiv 2202.00512); min(SNR, gamma) from Hang et al. (arXiv 2303.09556).
"""

import functools
import inspect
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zsnr_jax.errors import UsageError
from zsnr_jax.predictions import check_prediction, velocity

LossWeight = Callable[[jax.Array, jax.Array], jax.Array]  # (alpha [B], sigma [B]) -> m [B]

_GAMMA = 5.0  # of min-SNR, as its authors choose it


def snr_plus_one(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """w = SNR + 1: the plain v loss, and the paper's. At SNR = 0 its multiplier is 1 for v."""
    del sigma
    return jnp.ones_like(alpha)


def snr(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """w = SNR: the plain eps loss of DDPM. At SNR = 0 it is 0, and that level is not learnt."""
    del sigma
    return alpha**2


def uniform(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """w = 1: the plain x0 loss. At SNR = 0 its multiplier is 1 for v and x0."""
    del alpha
    return sigma**2


def truncated_snr(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """w = max(SNR, 1): the eps loss, kept from vanishing. At SNR = 0 its multiplier is 1."""
    return jnp.maximum(alpha**2, sigma**2)


def min_snr_plus_one(alpha: jax.Array, sigma: jax.Array, gamma: float = _GAMMA) -> jax.Array:
    """w = min(SNR, gamma) + 1: the v loss, capped where there is little noise. 1 at SNR = 0."""
    return min_snr_zero_at_terminal(alpha, sigma, gamma) + sigma**2


def min_snr_at_least_one(alpha: jax.Array, sigma: jax.Array, gamma: float = _GAMMA) -> jax.Array:
    """w = max(min(SNR, gamma), 1): truncated SNR, capped as well. 1 at SNR = 0."""
    return jnp.maximum(min_snr_zero_at_terminal(alpha, sigma, gamma), sigma**2)


def min_snr_zero_at_terminal(
    alpha: jax.Array, sigma: jax.Array, gamma: float = _GAMMA
) -> jax.Array:
    """w = min(SNR, gamma): min-SNR as it is usually written, for v too.

    At SNR = 0 it is 0, so that the level which zero terminal SNR adds is never learnt.
    """
    return jnp.minimum(alpha**2, gamma * sigma**2)


LOSS_WEIGHTS: dict[str, Callable[..., jax.Array]] = {
    "snr_plus_one": snr_plus_one,
    "snr": snr,
    "uniform": uniform,
    "truncated_snr": truncated_snr,
    "min_snr_plus_one": min_snr_plus_one,
    "min_snr_at_least_one": min_snr_at_least_one,
    "min_snr_zero_at_terminal": min_snr_zero_at_terminal,
}


def make_weight(name: str, **options: float) -> LossWeight:
    """Make a loss weight by name, as configs do.

    Args: name: of `LOSS_WEIGHTS`; options: gamma > 0, the cap on the SNR, of the min_snr weights.
    Raises: UsageError for an unknown name or option, or a gamma that is not above 0. Warns of
      `min_snr_zero_at_terminal`, whose value at SNR = 0 undoes what zero terminal SNR is for.
    """
    if name not in LOSS_WEIGHTS:
        raise UsageError(
            f"loss weight {name!r} is unknown: choose one of {', '.join(LOSS_WEIGHTS)}."
        )
    weight = LOSS_WEIGHTS[name]
    known = inspect.signature(weight).parameters.keys() - {"alpha", "sigma"}
    if unknown := sorted(options.keys() - known):
        raise UsageError(
            f"loss weight {name} has no option {', '.join(unknown)}: it takes "
            f"{', '.join(known) or 'none'}."
        )
    if "gamma" in options and not options["gamma"] > 0:
        raise UsageError(f"gamma must be above 0, and it is {options['gamma']}.")
    if weight is min_snr_zero_at_terminal:
        warnings.warn(
            f"{name} is 0 at t = T with zero terminal SNR, so that the level this adds is never "
            "learnt: use min_snr_plus_one or min_snr_at_least_one.",
            stacklevel=2,
        )
    return functools.partial(weight, **options)


def multiplier(
    weight: LossWeight, alpha: jax.Array, sigma: jax.Array, prediction: str
) -> jax.Array:
    """The factor of the squared error of a v, x0 or eps output under a weight.

    Args: weight: from `make_weight`, or one above; alpha, sigma [B]; prediction: v, x0 or eps.
    Returns: [B]. For eps at SNR = 0 there is none: alpha must be above 0.
    """
    return weight(alpha, sigma) / {"v": 1, "x0": sigma**2, "eps": alpha**2}[prediction]


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
    weight: LossWeight = snr_plus_one,
) -> jax.Array:
    """The weighted mean squared error of each example, in float32 at least.

    Args:
      output: [B, ...], what the network returned for x_t = alpha x0 + sigma eps.
      x0, eps: [B, ...]; alpha, sigma: [B].
      prediction: v, x0 or eps; weight: from `make_weight`, or one of this file's by itself.
    Returns: [B], mean over all axes but the batch.
    Raises: UsageError for an unknown prediction, or an output of another shape than x0.
    """
    check_prediction(prediction)
    if output.shape != x0.shape:
        raise UsageError(f"the network returned shape {output.shape} for data of {x0.shape}.")
    output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    error = output - target(x0, eps, alpha, sigma, prediction)
    mean_square = jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))
    return multiplier(weight, alpha, sigma, prediction) * mean_square
