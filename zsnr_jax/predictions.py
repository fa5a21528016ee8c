"""What a network predicts, and how it becomes an estimate of the data and of the noise.

With angle phi = atan2(sigma, alpha), x_t and v are the two legs of a rotation:

    x_t =  cos(phi) x0 + sin(phi) eps          x0  = cos(phi) x_t - sin(phi) v
    v   = -sin(phi) x0 + cos(phi) eps          eps = sin(phi) x_t + cos(phi) v

so nothing is divided, and SNR = 0 is an ordinary point of it. The paper's text prints v_T = x0; its
Eq. 11, and this file, have v_T = -x0.

Source: arXiv 2305.08891, section 3.2, Eqs. 11, 17, 19; Salimans and Ho (arXiv 2202.00512).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax.errors import UsageError
from zsnr_jax.schedules import NoiseSchedule

PREDICTIONS = ("v", "x0", "eps")

Network = Callable[[jax.Array, jax.Array], jax.Array]  # (x_t [B, ...], timestep [B]) -> like x_t
Denoise = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]  # (x_t, level) -> x0, eps


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkDenoise:
    """A `Denoise` made of a network, which knows the schedule that it was made for."""

    schedule: NoiseSchedule
    apply: Denoise

    def __call__(self, x_t: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x0_hat and eps_hat at a level."""
        return self.apply(x_t, level)


class StatefulDenoise(NamedTuple):
    """A denoise that remembers, from one level of a sampler to the next, what it saw."""

    init: Callable[[jax.Array], Any]  # x_T -> memory, a pytree
    # (x_t, level, memory) -> ((x0_hat, eps_hat), memory)
    apply: Callable[[jax.Array, jax.Array, Any], tuple[tuple[jax.Array, jax.Array], Any]]

    @classmethod
    def of(cls, denoise: "Denoise | StatefulDenoise") -> "StatefulDenoise":
        """Either kind as this one: a plain denoise remembers nothing."""
        if isinstance(denoise, StatefulDenoise):
            return denoise
        return cls(lambda x_T: (), lambda x_t, level, memory: (denoise(x_t, level), memory))


def add_noise(
    x0: jax.Array, eps: jax.Array, alpha: jax.typing.ArrayLike, sigma: jax.typing.ArrayLike
) -> jax.Array:
    """Noise the data to level (alpha, sigma).

    x_t = alpha x0 + sigma eps                                                            (Eq. 2)

    Args: x0, eps [B, ...], data in [-1, 1] and standard normal noise; alpha, sigma scalar or [B].
    Returns: x_t [B, ...], at least float32. At SNR = 0 it is exactly eps.
    """
    return _along(alpha, x0) * x0 + _along(sigma, x0) * eps


def velocity(
    x0: jax.Array, eps: jax.Array, alpha: jax.typing.ArrayLike, sigma: jax.typing.ArrayLike
) -> jax.Array:
    """The target of v-prediction: the derivative of x_t with respect to the angle.

    v = alpha eps - sigma x0                                                              (Eq. 11)

    Args and shapes as in `add_noise`. At SNR = 0 it is exactly -x0.
    """
    return _along(alpha, x0) * eps - _along(sigma, x0) * x0


def to_x0_eps(
    output: jax.Array,
    x_t: jax.Array,
    alpha: jax.typing.ArrayLike,
    sigma: jax.typing.ArrayLike,
    prediction: str,
) -> tuple[jax.Array, jax.Array]:
    """Turn a network's output into (x0_hat, eps_hat), such that alpha x0_hat + sigma eps_hat = x_t.

    v     x0 = alpha x_t - sigma v              eps = sigma x_t + alpha v           (Eqs. 19, 17)
    x0    x0 = output                           eps = (x_t - alpha x0) / sigma
    eps   x0 = (x_t - sigma eps) / alpha        eps = output

    Args: output, x_t [B, ...]; alpha, sigma scalar or [B], sigma > 0 (every level but 0).
    Returns: x0_hat, eps_hat, like x_t.
    At SNR = 0, v gives x0 = -v and eps = x_t, and x0 gives eps = x_t: both exact. An eps output
    carries no x0 there: the division gives inf, which is why `make_denoise` refuses it.
    """
    check_prediction(prediction)
    alpha, sigma = _along(alpha, x_t), _along(sigma, x_t)
    if prediction == "v":
        return alpha * x_t - sigma * output, sigma * x_t + alpha * output
    if prediction == "x0":
        return output, (x_t - alpha * output) / sigma
    return (x_t - sigma * output) / alpha, output


def make_denoise(network: Network, schedule: NoiseSchedule, prediction: str) -> NetworkDenoise:
    """Wrap a network as denoise(x_t, level) -> (x0_hat, eps_hat), in float32.

    Here alone a level (1..T) becomes the timestep that networks are told (level - 1, 0..T-1). The
    network may compute in any dtype.

    Args:
      network: (x_t [B, ...], timestep int32 [B]) -> output like x_t.
      schedule: concrete arrays, T + 1 levels.
      prediction: `v`, `x0`, or `eps` where SNR(T) > 0.
    Returns: denoise(x_t [B, ...], level, an int32 scalar in 1..T).
    Raises: UsageError for eps-prediction on a schedule with zero terminal SNR.
    """
    check_prediction(prediction)
    if prediction == "eps" and np.any(np.asarray(schedule.alpha) == 0):
        raise UsageError(EPS_AT_ZERO_SNR)
    alphas, sigmas = jnp.asarray(schedule.alpha), jnp.asarray(schedule.sigma)

    def denoise(x_t: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        timestep = jnp.full(x_t.shape[:1], level - 1, jnp.int32)
        output = network(x_t, timestep)
        if output.shape != x_t.shape:
            raise UsageError(f"the network returned shape {output.shape} for x_t of {x_t.shape}.")
        x_t, output = x_t.astype(jnp.float32), output.astype(jnp.float32)
        return to_x0_eps(output, x_t, alphas[level], sigmas[level], prediction)

    return NetworkDenoise(schedule, denoise)


EPS_AT_ZERO_SNR = (
    "eps-prediction cannot be used with zero terminal SNR, since at the last level the input is "
    "pure noise and predicting it says nothing of the data: set prediction to v (or x0)."
)


def check_prediction(prediction: str) -> None:
    """Refuse a prediction type that is not one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise UsageError(
            f"prediction {prediction!r} is unknown: choose one of {', '.join(PREDICTIONS)}."
        )


def _along(coefficient: jax.typing.ArrayLike, like: jax.Array) -> jax.Array:
    """Give a scalar or [B] coefficient trailing axes, so that it runs along the batch of `like`."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))
