"""Samplers: update rules by name, and the loop that runs them."""

from collections.abc import Callable
from typing import Any

from zsnr_jax.errors import UsageError
from zsnr_jax.samplers.base import (
    Coefficients,
    Path,
    Sampler,
    coefficients,
    integrate,
    require_key,
    sample,
)
from zsnr_jax.samplers.ddim import ddim

__all__ = [
    "SAMPLERS",
    "Coefficients",
    "Path",
    "Sampler",
    "coefficients",
    "ddim",
    "integrate",
    "make_sampler",
    "require_key",
    "sample",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {"ddim": ddim}


def make_sampler(name: str, **options: Any) -> Sampler:
    """Make a sampler by name, as configs do. Raises: UsageError for an unknown name or option."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}.")
    try:
        return SAMPLERS[name](**options)
    except TypeError:
        raise UsageError(f"sampler {name} does not take the options {sorted(options)}.") from None
