"""Heun's second-order method, in the one variable in which it is regular at SNR = 0."""

from typing import NamedTuple

import jax
import numpy as np

from zsnr_jax.predictions import Denoise
from zsnr_jax.samplers.base import Array, Coefficients, Estimate, Path, Sampler


def heun() -> Sampler:
    """Heun in u = alpha/sigma, where the ODE reads d(x/sigma) / du = x0_hat.

    y   = alpha_s x0_hat + sigma_s eps_hat                                (predictor: DDIM)
    x_s = y + alpha_s (1 - r) (x0_hat(y, s) - x0_hat) / 2                 (trapezoid)

    with r = (sigma_s alpha) / (sigma alpha_s). Second order, at two network calls a step but one
    for the last: 2 S - 1. Exact where x0_hat is constant, so that means are exact at every S.

    At SNR = 0, u and r are 0: x_s = alpha_s (x0_hat + x0_hat(y, s)) / 2 + sigma_s x_T. Heun in
    sigma/alpha, as usual elsewhere, has no limit there: its correction grows like 1/r.
    Source: Heun's rule as in arXiv 2206.00364, Algorithm 1; the choice of u is ours.
    """
    return Sampler("heun", _rule, _step, looks=True)


class _Rule(NamedTuple):
    correction: Array  # of x0_hat(y, s) - x0_hat


def _rule(path: Path) -> tuple[np.ndarray, _Rule]:
    return np.zeros_like(path.alpha), _Rule(path.alpha_next * (1 - path.ratio) / 2)


def _step(
    estimate: Estimate, memory: tuple[()], c: Coefficients, denoise: Denoise
) -> tuple[jax.Array, tuple[()]]:
    x0_hat, eps_hat = estimate
    y = c.alpha_next * x0_hat + c.sigma_next * eps_hat
    x0_hat_next, _ = denoise(y, c.level_next)
    return y + c.rule.correction * (x0_hat_next - x0_hat), memory
