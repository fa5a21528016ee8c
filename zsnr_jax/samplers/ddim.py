"""DDIM with any eta, from the deterministic ODE step to ancestral sampling, under all its names."""

import functools

import jax
import numpy as np

from zsnr_jax.errors import UsageError
from zsnr_jax.predictions import Denoise
from zsnr_jax.samplers.base import Coefficients, Estimate, Path, Sampler


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM: go back to the estimated data, then forward to the next level with the estimated noise.

    x_s = alpha_s x0_hat + sigma_s sqrt(1 - eta^2 + eta^2 r^2) eps_hat + eta sigma_s sqrt(1 - r^2) z

    with r = (sigma_s alpha) / (sigma alpha_s). First order; weak order 1 for eta > 0. At eta = 0 it
    is first-order DPM-Solver++ as well; its other names are below.

    Args: eta: in [0, 1], the share of fresh noise.
    Raises: UsageError for an eta out of range.
    At SNR = 0, r is 0: x_s = alpha_s x0_hat + sigma_s (sqrt(1 - eta^2) x_T + eta z).
    Source: arXiv 2010.02502, Eqs. 12 and 16; arXiv 2305.08891, Eqs. 21-22.
    """
    return _named(f"ddim(eta={eta:g})", eta)


def ddpm() -> Sampler:
    """DDPM's ancestral step over the listed levels, with the variance of its posterior: eta = 1.

    x_s = alpha_s x0_hat + sigma_s r eps_hat + sigma_s sqrt(1 - r^2) z

    In the paper's alpha_bar it is Eq. 20, with beta = 1 - alpha_bar_t / alpha_bar_s. Weak order 1.
    At SNR = 0: x_s = alpha_s x0_hat + sigma_s z, in which nothing is left of x_T.
    Source: Ho et al., arXiv 2006.11239, Eq. 7; arXiv 2305.08891, Eq. 20.
    """
    return _named("ddpm", eta=1.0)


def euler() -> Sampler:
    """Euler's method for the probability-flow ODE in sigma/alpha: eta = 0.

    Karras et al. step x/alpha along d(x/alpha) / d(sigma/alpha) = eps_hat. Multiplied out, it is
    DDIM's x_s = alpha_s x0_hat + sigma_s eps_hat, and the ratio that is infinite at T is gone.
    First order. At SNR = 0: x_s = alpha_s x0_hat + sigma_s x_T.
    Source: arXiv 2206.00364, Algorithm 1 without its second-order correction.
    """
    return _named("euler", eta=0.0)


def euler_ancestral(eta: float = 1.0) -> Sampler:
    """Euler's method to a level below the next, and fresh noise up to it: the law of `ddim(eta)`.

    With sigma_up^2 = eta^2 (sigma_s/alpha_s)^2 (1 - r^2), and what is left of (sigma_s/alpha_s)^2
    as sigma_down^2, it is DDIM's equation. No variance is found by subtracting, which elsewhere
    turns negative by rounding. Weak order 1.

    Args: eta: in [0, 1]; 1 is ancestral sampling, 0 is `euler`.
    Raises: UsageError for an eta out of range.
    At SNR = 0: x_s = alpha_s x0_hat + sigma_s (sqrt(1 - eta^2) x_T + eta z).
    Source: Song et al., arXiv 2010.02502, Eq. 16, in the variables of arXiv 2206.00364.
    """
    return _named(f"euler_ancestral(eta={eta:g})", eta)


@functools.cache  # so that equal samplers are one to `jit`
def _named(name: str, eta: float) -> Sampler:
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must be in [0, 1], and it is {eta}.")

    def rule(path: Path) -> tuple[np.ndarray, np.ndarray]:
        r = path.ratio
        kept = path.sigma_next * np.sqrt(1 - eta**2 + (eta * r) ** 2)
        fresh = eta * path.sigma_next * np.sqrt(1 - r**2)
        return fresh, kept

    return Sampler(name, rule, _step, stochastic=eta > 0)


def _step(
    estimate: Estimate, memory: tuple[()], c: Coefficients, denoise: Denoise
) -> tuple[jax.Array, tuple[()]]:
    x0_hat, eps_hat = estimate
    return c.alpha_next * x0_hat + c.rule * eps_hat, memory
