"""DPM-Solver++(2M), deterministic and stochastic: one network call a step, second order."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax.predictions import Denoise
from zsnr_jax.samplers.base import Array, Coefficients, Estimate, Path, Sampler


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M): the estimate is extrapolated from this level's and the last one's.

    D   = x0_hat + h / (2 h_last) (x0_hat - x0_hat_last),    h = -log r
    x_s = (sigma_s/sigma) x_t + alpha_s (1 - r) D

    with r = (sigma_s alpha) / (sigma alpha_s). Second order. The first step has no last estimate,
    and is DDIM's; so is the second where the first came from T, since h_last is infinite then.

    At SNR = 0, r is 0: x_s = alpha_s x0_hat + sigma_s x_T.
    Source: Lu et al., arXiv 2211.01095, Algorithm 2 (the mid-point form of 2M).
    """
    return _multistep("dpmpp_2m", stochastic=False)


def dpmpp_2m_sde() -> Sampler:
    """SDE-DPM-Solver++(2M): the same extrapolation in the reverse SDE.

    x_s = (sigma_s/sigma) r x_t + alpha_s (1 - r^2) D + sigma_s sqrt(1 - r^2) z

    with D, h and r as in `dpmpp_2m`. Weak order 2; without the extrapolation it is DDPM's step.

    At SNR = 0, r is 0: x_s = alpha_s x0_hat + sigma_s z.
    Source: Lu et al., arXiv 2211.01095, where it is named SDE-DPM-Solver++(2M).
    """
    return _multistep("dpmpp_2m_sde", stochastic=True)


@functools.cache  # so that equal samplers are one to `jit`
def _multistep(name: str, stochastic: bool) -> Sampler:
    rule = functools.partial(_rule, stochastic=stochastic)
    return Sampler(name, rule, _step, jnp.zeros_like, stochastic)


class _Rule(NamedTuple):
    kept: Array  # of eps_hat
    correction: Array  # of x0_hat - x0_hat_last


def _rule(path: Path, stochastic: bool) -> tuple[np.ndarray, _Rule]:
    # (sigma_s/sigma) x_t + alpha_s (1 - r) x0_hat = alpha_s x0_hat + sigma_s eps_hat, and with r^2
    # for r the eps_hat is left with sigma_s r: so both are a first-order step and a correction.
    r = path.ratio
    moved = 1 - r**2 if stochastic else 1 - r
    kept = path.sigma_next * (r if stochastic else 1)
    noise = path.sigma_next * np.sqrt(1 - r**2) * stochastic
    return noise, _Rule(kept, path.alpha_next * moved * _extrapolation(r))


def _extrapolation(ratio: np.ndarray) -> np.ndarray:
    """h / (2 h_last) for each step; 0 in the first, and where either is infinite."""
    with np.errstate(divide="ignore"):
        h = -np.log(ratio)
    weight = np.divide(h[1:], 2 * h[:-1], out=np.zeros_like(h[1:]), where=np.isfinite(h[1:]))
    return np.append(0.0, weight)


def _step(
    estimate: Estimate, x0_hat_last: jax.Array, c: Coefficients, denoise: Denoise
) -> tuple[jax.Array, jax.Array]:
    x0_hat, eps_hat = estimate
    correction = c.rule.correction * (x0_hat - x0_hat_last)
    return c.alpha_next * x0_hat + c.rule.kept * eps_hat + correction, x0_hat
