"""The scheduler_config.json of a diffusers folder, to and from what it means here.

    beta_schedule, beta_start, beta_end, num_train_timesteps,
    rescale_betas_zero_snr, prediction_type                       <->  DiffusionProcess
    timestep_spacing, steps_offset, set_alpha_to_one              <->  SamplerSettings

`rescale_betas_zero_snr` is diffusers' name; `rescale_zero_terminal_snr`, which other programs write
and diffusers passes over, is read too. What is written has diffusers' names, and all keys of the
zero-SNR models that the paper's authors released: DDIMScheduler, v_prediction, trailing,
set_alpha_to_one true.

Source: the scheduler_config.json of stabilityai/stable-diffusion-2-1-base and of
ByteDance/sd2.1-base-zsnr-laionaes6.
"""

import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from zsnr_jax import schedules
from zsnr_jax.errors import UsageError
from zsnr_jax.process import DiffusionProcess

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_RESCALES = ("rescale_betas_zero_snr", "rescale_zero_terminal_snr")
# What a class takes where timestep_spacing and set_alpha_to_one are absent.
_DEFAULTS = {
    "DDIMScheduler": ("leading", True),
    "DDPMScheduler": ("leading", True),
    "PNDMScheduler": ("leading", False),
    "EulerDiscreteScheduler": ("linspace", True),
    "EulerAncestralDiscreteScheduler": ("linspace", True),
    "DPMSolverMultistepScheduler": ("linspace", True),
}


class SamplerSettings(NamedTuple):
    """How a scheduler visits the levels; the names are those of the config's `sampler` section."""

    spacing: str
    steps_offset: int
    final_level: int  # 0: clean data; 1: where set_alpha_to_one is false


def read(config: Mapping[str, Any], where: str) -> tuple[DiffusionProcess, SamplerSettings]:
    """What a scheduler's settings mean. Absent ones have diffusers' defaults.

    Args: where: the file, for the message.
    Raises: UsageError for a class or a setting that has no counterpart here, a value of another
      kind, two names of the rescale that disagree, and eps-prediction with zero terminal SNR.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _DEFAULTS:
        raise UsageError(
            f"{where} is of a {_shown(name)}, and can be read of {', '.join(_DEFAULTS)}: take one "
            "of these."
        )
    spacing, to_clean = _DEFAULTS[name]
    if config.get("trained_betas") is not None:
        raise UsageError(f"{where} has trained_betas, which are not supported: it must be null.")
    beta_schedule = _one_of(config, "beta_schedule", "linear", _SCHEDULES, where)
    has_range = beta_schedule in schedules.BETA_RANGE
    process = DiffusionProcess(
        schedule=beta_schedule,
        num_steps=_number(config, "num_train_timesteps", 1000, where),
        zero_terminal_snr=_rescales(config, where),
        prediction=_one_of(config, "prediction_type", "epsilon", _PREDICTIONS, where),
        beta_start=_number(config, "beta_start", 0.0001, where) if has_range else None,
        beta_end=_number(config, "beta_end", 0.02, where) if has_range else None,
    )
    spacings = {name: name for name in ("leading", "linspace", "trailing")}
    sampler = SamplerSettings(
        spacing=_one_of(config, "timestep_spacing", spacing, spacings, where),
        steps_offset=_number(config, "steps_offset", 0, where),
        final_level=0 if _flag(config, "set_alpha_to_one", to_clean, where) else 1,
    )
    return process, sampler


def write(
    process: DiffusionProcess, sampler: SamplerSettings, diffusers_version: str
) -> dict[str, Any]:
    """The settings of a DDIMScheduler that has this process, and samples so.

    Raises: UsageError for levels that diffusers has no name for.
    """
    if sampler.spacing not in ("leading", "linspace", "trailing"):
        raise UsageError(
            f"sampler.spacing={sampler.spacing} has no name in diffusers: export with leading, "
            "linspace or trailing."
        )
    names = {ours: theirs for theirs, ours in (_PREDICTIONS | _SCHEDULES).items()}
    default = schedules.BETA_RANGE.get(process.schedule, schedules.BETA_RANGE["linear"])
    start, end = (
        theirs if ours is None else ours
        for ours, theirs in zip((process.beta_start, process.beta_end), default)
    )
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": diffusers_version,
        "beta_end": end,
        "beta_schedule": names[process.schedule],
        "beta_start": start,
        "clip_sample": False,
        "num_train_timesteps": process.num_steps,
        "prediction_type": names[process.prediction],
        "set_alpha_to_one": sampler.final_level == 0,
        "steps_offset": sampler.steps_offset,
        "trained_betas": None,
        "timestep_spacing": sampler.spacing,
        "rescale_betas_zero_snr": process.zero_terminal_snr,
    }


def _rescales(config: Mapping[str, Any], where: str) -> bool:
    found = {name: _flag(config, name, False, where) for name in _RESCALES if name in config}
    if len(set(found.values())) > 1:
        raise UsageError(
            f"{where} says {' and '.join(f'{k}={v}' for k, v in found.items())}, two names of one "
            "setting: take one of them out."
        )
    return any(found.values())


def _one_of(
    config: Mapping[str, Any], key: str, default: str, names: Mapping[str, str], where: str
) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in names:
        allowed = " or ".join(names)
        raise UsageError(f"{where} has {key}={reprlib.repr(value)}, and must have {allowed}.")
    return names[value]


def _number(config: Mapping[str, Any], key: str, default: Any, where: str) -> Any:
    """A setting that is a number as its default is: a whole one up to 10^6, or a finite one."""
    value, whole = config.get(key, default), isinstance(default, int)
    kinds = int if whole else (int, float)
    most = schedules.MAX_STEPS if whole else math.inf
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= most:
        allowed = f"a whole number, 0 to {most}" if whole else "a number, 0 or more"
        raise UsageError(f"{where} has {key}={reprlib.repr(value)}, and must have {allowed}.")
    return value


def _flag(config: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{where} has {key}={reprlib.repr(value)}, and must have true or false.")
    return value


def _shown(name: Any) -> str:
    return name[:80] if isinstance(name, str) and name.isidentifier() else reprlib.repr(name)
