"""The schedulers of torch diffusers on the cases, as shipped, in float64 as far as they let it.

DDIM, DDPM and Heun keep a float64 state; Euler, Euler ancestral and DPM-Solver++ round it to
float32 in every step. All compute their tables and coefficients in float32.

Our last step is x0_hat itself, and so is theirs, with `set_alpha_to_one` and a final sigma of zero:
Euler ancestral and the SDE draw noise there and multiply it by 0, and DDPM adds noise of deviation
1e-10, the root of a floor under its variance.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# The default environment has no torch.

import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import numpy as np
import oracles
import torch
from parity.cases import DATA, SOLVERS, Case, starts, velocity

PATCHED_ALPHA_BAR = 2**-24


class Run(NamedTuple):
    first_update: np.ndarray  # [24], in the units of x_t = alpha x0 + sigma eps
    end: np.ndarray  # [24]


def make(case: Case, patch_heun: bool = False) -> Any:
    """The scheduler of a case, before its timesteps are set.

    Heun has no option to rescale, and is given the rescaled betas.

    Args: patch_heun: put 2**-24 in place of Heun's alpha_bar_T, as the other classes do.
    """
    solver, zero = SOLVERS[case.solver], case.zero_terminal_snr
    options = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "timestep_spacing": "leading" if case.as_stable_diffusion else "trailing",
        "steps_offset": int(case.as_stable_diffusion),
        **solver.options,
    }
    if case.solver == "heun":
        betas = oracles.table_1_betas("scaled_linear")
        options["trained_betas"] = oracles.algorithm_1(betas) if zero else betas
    else:
        options["rescale_betas_zero_snr"] = zero
    if solver.sampler in ("ddim", "ddpm"):
        options["clip_sample"] = False
    if solver.sampler == "ddim":
        options["set_alpha_to_one"] = not case.as_stable_diffusion
    scheduler = getattr(diffusers, solver.scheduler)(**options)
    if patch_heun:
        scheduler.alphas_cumprod[-1] = PATCHED_ALPHA_BAR
    return scheduler


def run(
    case: Case,
    noise: Callable[[int], np.ndarray],
    patch_heun: bool = False,
    own_start: bool = False,
) -> Run:
    """Run a scheduler as its pipelines do, on a network that is the exact denoiser.

    A timestep of -1, which trailing spacing lists for some S, is left out: no network knows it.

    Args:
      noise: level -> [24], what a stochastic scheduler draws in the step from there.
      patch_heun: as in `make`.
      own_start: scale x_T by `init_noise_sigma`. Without it the network is first shown x_T itself.
    """
    scheduler = make(case, patch_heun)
    scheduler.set_timesteps(case.num_steps)
    start = scheduler.init_noise_sigma if own_start else _scale(scheduler, 0)
    x, states = torch.tensor(starts(), dtype=torch.float64)[:, None] * start, []
    for i, timestep in enumerate(t for t in scheduler.timesteps if t >= 0):
        level = int(timestep) + 1
        seen = scheduler.scale_model_input(x, timestep)
        v = _network(case, seen, level)
        drawn = torch.tensor(noise(level), dtype=torch.float64)[:, None]
        eta = SOLVERS[case.solver].eta
        with _drawing(scheduler, drawn):
            x = scheduler.step(v, timestep, x, **({} if eta is None else {"eta": eta})).prev_sample
        states.append((x / _scale(scheduler, i + 1))[:, 0].numpy())
    return Run(states[scheduler.order - 1], states[-1])


def _scale(scheduler: Any, index: int) -> Any:
    """What a state is multiplied with in schedulers that carry x_t / alpha."""
    if not hasattr(scheduler, "sigmas") or "DPM" in type(scheduler).__name__:
        return 1.0
    return (scheduler.sigmas[index].double() ** 2 + 1) ** 0.5


def _network(case: Case, x: Any, level: int) -> Any:
    abar = case.alphas_cumprod[level]
    return velocity(x, np.sqrt(abar), np.sqrt(1 - abar), DATA[case.data], torch.exp)


def _drawing(scheduler: Any, noise: Any) -> Any:
    """Let a scheduler draw the given noise, through the name that all of them draw by."""
    draw = lambda shape, generator=None, device=None, dtype=None: noise.to(dtype)  # noqa: E731
    module = sys.modules[type(scheduler).__module__]
    return mock.patch.object(module, "randn_tensor", draw, create=True)
