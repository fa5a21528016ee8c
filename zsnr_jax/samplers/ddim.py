"""DDIM with any eta, from the deterministic ODE step to ancestral sampling."""

import jax
import numpy as np

from zsnr_jax.errors import UsageError
from zsnr_jax.predictions import Denoise
from zsnr_jax.samplers.base import Coefficients, Path, Sampler


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM: go back to the estimated data, then forward to the next level with the estimated noise.

    x_s = alpha_s x0_hat + sigma_s sqrt(1 - eta^2 + eta^2 r^2) eps_hat + eta sigma_s sqrt(1 - r^2) z

    with r = (sigma_s alpha) / (sigma alpha_s). First order; weak order 1 for eta > 0. At eta = 0 it
    is Euler in sigma / alpha and first-order DPM-Solver++; at eta = 1 it is DDPM's ancestral step
    over the listed levels, with its posterior variance.

    Args: eta: in [0, 1], the share of fresh noise.
    Raises: UsageError for an eta out of range.
    At SNR = 0, r is 0: x_s = alpha_s x0_hat + sigma_s (sqrt(1 - eta^2) x_T + eta z).
    Source: arXiv 2010.02502, Eqs. 12 and 16; arXiv 2305.08891, Eqs. 21-22.
    """
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must be in [0, 1], and it is {eta}.")

    def rule(path: Path) -> tuple[np.ndarray, np.ndarray]:
        r = path.ratio
        kept = path.sigma_next * np.sqrt(1 - eta**2 + (eta * r) ** 2)
        fresh = eta * path.sigma_next * np.sqrt(1 - r**2)
        return fresh, kept

    return Sampler(f"ddim(eta={eta:g})", rule, _step)


def _step(
    denoise: Denoise, x: jax.Array, memory: tuple[()], c: Coefficients
) -> tuple[jax.Array, tuple[()]]:
    x0_hat, eps_hat = denoise(x, c.level)
    return c.alpha_next * x0_hat + c.rule * eps_hat, memory
