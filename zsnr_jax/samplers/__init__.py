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
    needed_key,
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
    "needed_key",
    "sample",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {"ddim": ddim}


def make_sampler(name: str, **options: Any) -> Sampler:
    """Make a sampler by name, as configs do. Raises: UsageError for an unknown name or option."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}.")
    known = inspect.signature(SAMPLERS[name]).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise UsageError(
            f"sampler {name} has no option {', '.join(unknown)}: it takes {', '.join(known)}."
        )
    return SAMPLERS[name](**options)
