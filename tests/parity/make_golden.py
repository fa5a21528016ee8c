"""Store what torch diffusers gives, so that our samplers are held to it where there is no torch.

    pip install -e ".[test,parity]" && PYTHONPATH=tests python -m parity.make_golden

writes tests/golden/diffusers_samplers.json. Its `fields` say what is in it.
"""
# pyright: reportMissingImports=false

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from parity import cases, diffusers_timesteps, ours
from parity.deviations import CAUSES, deviations, table_row
from parity.diffusers_samplers import run

PATH = Path(__file__).parents[1] / "golden" / "diffusers_samplers.json"

FIELDS = {
    "x_T": "where every run starts: 24 numbers, evenly about 0",
    "noise_seed": "of what is added on the way, by zsnr_jax.randomness, on both sides",
    "noise_at_T": "its draw at level 1000, to tell other noise from another sampler",
    "data": "the mixtures of two Gaussians whose exact denoiser is the network, a v-prediction",
    "tolerance": "the largest difference of a sample that float32 explains, for each data",
    "causes": "what diffusers does that makes the two differ",
    "cases": "where the two agree",
    "cases.x_0": "the samples that diffusers gives",
    "deviations": "where they do not",
    "deviations.cause": "a key of causes",
    "deviations.scheduler": "the class in diffusers",
    "*.solver": "the sampler of zsnr_jax",
    "*.num_steps": "S, of T = 1000",
    "*.zero_terminal_snr": "rescale_betas_zero_snr; for Heun, the rescaled betas",
    "*.as_stable_diffusion": (
        "leading timesteps with steps_offset=1 and set_alpha_to_one=False; otherwise trailing"
    ),
    "deviations.closed_form": (
        "limit: the published formulas of the solver, in float64, from SNR = 0 itself; flow: the "
        "exact solution of the ODE, which both approach with their order; null: there is none"
    ),
    "deviations.first_update, end": "of the state after the first step, and of the samples",
    "deviations.*.difference": "between the two, the largest of 24; null where not finite",
    "deviations.*.zsnr_jax, diffusers": "the error against the closed form; null where not finite",
    "deviations.*.closer": (
        "whose error is at most a third of the other's, zsnr_jax, diffusers or neither; errors "
        "below the tolerance count as the tolerance"
    ),
    "deviations.mean": "of the samples, where the exact mean is known; null elsewhere",
    "timesteps.extra_entry": "the S of 1..1000 whose trailing steps are S + 1, the last of them -1",
    "timesteps.other_rounding": "the S of 1..1000 where a level of trailing is one beside ours",
    "timesteps.not_a_number": "the S of 1..1000 where DDIM(eta = 1) is NaN at zero terminal SNR",
    "timesteps.other_levels": "levels at S = 25 where a scheduler's are not those of Table 2",
}


def golden() -> dict[str, Any]:
    """What the file holds, from a live run."""
    return _plain(
        {
            "command": "PYTHONPATH=tests python -m parity.make_golden",
            "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
            "fields": FIELDS,
            "x_T": cases.starts(),
            "noise_seed": cases.SEED,
            "noise_at_T": ours.noise(1000),
            "data": {name: data._asdict() for name, data in cases.DATA.items()},
            "tolerance": cases.TOLERANCE,
            "causes": CAUSES,
            "cases": [
                {**case._asdict(), "x_0": run(case, ours.noise).end} for case in cases.exact_cases()
            ],
            "deviations": [
                _three_digits(table_row(row, run(row.case, ours.noise, **row.run)))
                for row in deviations()
            ],
            "timesteps": diffusers_timesteps.findings(),
        }
    )


def _three_digits(row: dict[str, Any]) -> dict[str, Any]:
    for place in ("first_update", "end"):
        row[place] = {
            key: float(f"{value:.3g}") if isinstance(value, float) else value
            for key, value in row[place].items()
        }
    return row


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers with 7 digits, null for those that are not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value


def _lines(content: dict[str, Any]) -> str:
    """One line for each case and each row, so that a change shows."""
    parts = []
    for key, value in content.items():
        inside = json.dumps(value)
        if key in ("cases", "deviations"):
            inside = "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"
        elif isinstance(value, dict):
            items = (f"{json.dumps(k)}: {json.dumps(item)}" for k, item in value.items())
            inside = "{\n  " + ",\n  ".join(items) + "\n }"
        parts.append(f" {json.dumps(key)}: {inside}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(_lines(golden()))
