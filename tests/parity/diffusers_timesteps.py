"""The timesteps of torch diffusers, for every number of steps."""
# pyright: reportMissingImports=false

from typing import Any

import numpy as np
import torch
from parity.cases import Case
from parity.diffusers_samplers import make

from zsnr_jax.timesteps import make_timesteps

# Heun lists each but the first twice, and is left out.
SOLVERS = ("ddim(eta=0)", "ddpm", "euler", "euler_ancestral", "dpmpp_2m")


def listed(solver: str, spacing: str, num_steps: int) -> np.ndarray:
    """The levels, 1..T, that a scheduler lists; 0 stands for its timestep -1."""
    scheduler = make(Case(solver, "gaussian", num_steps))
    scheduler.register_to_config(timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    return scheduler.timesteps.numpy() + 1


def trailing(solver: str) -> dict[str, list[int]]:
    """The S of 1..1000 for which a scheduler's trailing levels are not exact arithmetic's, ours.

    Returns: extra_entry: where S + 1 are listed, the last of them 0; other_rounding: where a level
      half way between two is rounded to the other, since it is not half way in floating point.
    """
    extra_entry, other_rounding = [], []
    for S in range(1, 1001):
        levels, expected = listed(solver, "trailing", S), make_timesteps("trailing", 1000, S)
        if len(levels) > S:
            extra_entry.append(S)
            np.testing.assert_array_equal(levels[S:], [0])
        if not np.array_equal(levels[:S], expected):
            other_rounding.append(S)
            assert np.max(np.abs(levels[:S] - expected)) == 1
    return {"extra_entry": extra_entry, "other_rounding": other_rounding}


def not_a_number() -> list[int]:
    """The S for which the first update of DDIM with eta = 1 from SNR = 0 is NaN."""
    scheduler = make(Case("ddim(eta=1)", "gaussian", 1, zero_terminal_snr=True))
    x, steps = torch.zeros(1, 1), []
    for S in range(1, 1001):
        scheduler.set_timesteps(S)
        x_s = scheduler.step(x, scheduler.timesteps[0], x, eta=1.0, variance_noise=x).prev_sample
        if torch.isnan(x_s).any():
            steps.append(S)
    return steps


def other_levels(S: int = 25) -> list[dict[str, Any]]:
    """Whose levels at S are not ours, which are those of Table 2 of the paper."""
    rows = []
    for solver in SOLVERS:
        for spacing in ("leading", "linspace", "trailing"):
            levels, expected = listed(solver, spacing, S), make_timesteps(spacing, 1000, S)
            if not np.array_equal(levels, expected):
                rows.append({"solver": solver, "spacing": spacing, "levels": levels.tolist()})
    return rows


def findings() -> dict[str, Any]:
    return {
        **trailing("ddim(eta=0)"),
        "not_a_number": not_a_number(),
        "other_levels": other_levels(),
    }
