"""Looking on while a sampler runs, from Python, for pictures and progress."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from zsnr_jax.predictions import Denoise, StatefulDenoise


def watch(
    denoise: Denoise | StatefulDenoise, callback: Callable[[int, np.ndarray], Any]
) -> StatefulDenoise:
    """Wrap a denoise so that the host is told of every estimate, even of a compiled sampler.

    Args:
      denoise: (x_t [B, ...], level) -> (x0_hat, eps_hat).
      callback: called with the level and x0_hat, [B, ...] (under vmap, once for each element).
        Devices do not wait for it; `jax.effects_barrier()` does. Heun calls at a level twice.
    Returns: what samplers take in the place of `denoise`, with the same numbers.
    """
    start, estimate = StatefulDenoise.of(denoise)

    def tell(level: Any, x0_hat: Any) -> None:
        callback(int(level), np.asarray(x0_hat))

    def watched(x_t: jax.Array, level: jax.Array, memory: Any) -> Any:
        (x0_hat, eps_hat), memory = estimate(x_t, level, memory)
        jax.debug.callback(tell, level, x0_hat)
        return (x0_hat, eps_hat), memory

    return StatefulDenoise(start, watched)
