"""Samplers: update rules by name, and the loop that runs them."""

import inspect
from collections.abc import Callable
from typing import Any

from zsnr_jax.errors import UsageError
from zsnr_jax.samplers.base import (
    Coefficients,
    Path,
    Sampler,
    coefficients,
    integrate,
    sample,
    trajectory,
)
from zsnr_jax.samplers.ddim import ddim, ddpm, euler, euler_ancestral
from zsnr_jax.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde
from zsnr_jax.samplers.heun import heun
from zsnr_jax.samplers.watch import watch

__all__ = [
    "SAMPLERS",
    "Coefficients",
    "Path",
    "Sampler",
    "coefficients",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "integrate",
    "make_sampler",
    "sample",
    "trajectory",
    "watch",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    constructor.__name__: constructor
    for constructor in (ddim, ddpm, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde)
}


def make_sampler(name: str, **options: Any) -> Sampler:
    """Make a sampler by name, as configs do. Raises: UsageError for an unknown name or option."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}.")
    known = inspect.signature(SAMPLERS[name]).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise UsageError(
            f"sampler {name} has no option {', '.join(unknown)}: it takes "
            f"{', '.join(known) or 'none'}."
        )
    return SAMPLERS[name](**options)
