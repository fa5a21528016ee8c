"""Trained networks that experiments sample, each the main job with some settings of its own.

Most are trained by AdamW in a thousand steps (`configs/brightness.py:adamw`), the paper's kind of
optimizer; the main job's own, as a user gets them. A network is trained once, by the command a user
would type, into WORKDIR/NAME_SEED; experiments that are given the same WORKDIR share it. Training
broken off goes on.
"""

import functools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import build, guidance, modes, predictions, samplers, sweep
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import ideal
from zsnr_jax.predictions import Denoise

_DDIM = samplers.ddim()
_BATCH = 64  # samples drawn at once
FEW_SAMPLES = {"evaluation.num_samples": 64}  # its page needs few: experiments draw their own


class Recipe(NamedTuple):
    """How a network is trained: variants of configs/brightness.py, and settings."""

    variants: str = ""
    settings: Mapping[str, Any] = {}


RECIPES = {
    "main_job": Recipe(),
    "main_job_flawed": Recipe("flawed"),
    "fixed": Recipe("adamw"),
    "flawed": Recipe("adamw,flawed"),
    "fixed_longer": Recipe(
        "adamw", {"train.num_steps": 3000, "train.sample_every": 0} | FEW_SAMPLES
    ),
    "flawed_16": Recipe("adamw,flawed,16", FEW_SAMPLES),
    "flawed_64": Recipe("adamw,flawed,64", FEW_SAMPLES),
    "offset_noise": Recipe("adamw,flawed", {"loss.offset_noise": 0.1} | FEW_SAMPLES),
    "zero_weight_at_T": Recipe("adamw", {"loss.weight": "min_snr_zero_at_terminal"} | FEW_SAMPLES),
}


def train(name: str, workdir: Path, seed: int = 0, smoke: bool = False) -> Path:
    """Train one network where that is not done yet; returns its folder."""
    planned = sweep.plan_run(*_planned(name, seed, smoke), workdir)
    if not sweep.is_finished(planned):
        done = subprocess.run([sys.executable, *planned.command[1:]], check=False)
        if done.returncode:
            raise UsageError(f"the network {planned.name} was not trained: its output says why.")
    return planned.workdir


@functools.cache  # several ways of sampling take the same one
def load(name: str, workdir: Path, seed: int = 0, smoke: bool = False) -> "Network":
    """A trained network; trained first, where that is not done yet."""
    folder = train(name, workdir, seed, smoke)
    run, state = modes.load(sweep.configure(*_planned(name, seed, smoke)), folder)
    assert isinstance(run, build.ImageRun)  # RECIPES are of images
    return Network(run, jax.device_get(state.ema_params))


def _planned(name: str, seed: int, smoke: bool) -> tuple[str, str, dict[str, Any]]:
    """Config, name and settings of a network's run, as `sweep.plan_run` takes them."""
    recipe = RECIPES[name]
    variants = ",".join(filter(None, (recipe.variants, "smoke" * smoke)))
    of_length = ("train.", "evaluation.")  # in which the smoke variant has its own word
    settings = {k: v for k, v in recipe.settings.items() if not (smoke and k.startswith(of_length))}
    config = "configs/brightness.py" + f":{variants}" * bool(variants)
    return config, f"{name}_{seed}", settings | ({"seed": seed} if seed else {})


class Network:
    """A trained network with its data, sampled from given starts."""

    def __init__(self, run: build.ImageRun, params: Any):
        self.schedule = run.process.noise_schedule
        self.images, self.labels = run.arrays
        self._of = (run.model, run.process, params)

    def sample(
        self, labels: np.ndarray, x_T: np.ndarray, levels: np.ndarray, final_level: int = 0
    ) -> np.ndarray:
        """Draw by DDIM: float32 [n, H, W, C] for labels int [n], from x_T [n, H, W, C]."""
        path = samplers.coefficients(_DDIM, self.schedule, levels, final_level)
        return in_batches(functools.partial(_sample, *self._of, path), labels, x_T)

    def trajectory(
        self,
        labels: np.ndarray,
        x_T: np.ndarray,
        levels: np.ndarray,
        guide: tuple[float, float] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Samples as by `sample`, and x0_hat at every level, [n, S, H, W, C].

        Args: guide: scale and rescale; None for the labels' output alone.
        """
        path = samplers.coefficients(_DDIM, self.schedule, levels)
        return in_batches(functools.partial(_trajectory, *self._of, path, guide), labels, x_T)

    def estimate(self, labels: np.ndarray, x_t: np.ndarray, level: int) -> np.ndarray:
        """x0_hat [n, H, W, C] of x_t [n, H, W, C] at a level, for labels int [n]."""
        return in_batches(functools.partial(_estimate, *self._of, level), labels, x_t)

    def ideal(
        self, labels: np.ndarray, x_T: np.ndarray, levels: np.ndarray, final_level: int = 0
    ) -> np.ndarray:
        """Samples from the same starts by the ideal denoiser of the network's data."""
        return ideal.ideal_samples(
            self.images, self.labels, self.schedule, levels, labels, x_T, _DDIM,
            final_level=final_level,
        )  # fmt: skip


def _denoise(model: Any, process: Any, params: Any, labels: Any, guide: Any = None) -> Denoise:
    """What samplers take; guide: (scale, rescale), or None for the labels' output alone."""

    def apply(x_t: jax.Array, timestep: jax.Array, labels: jax.Array) -> jax.Array:
        return model.apply(params, x_t, timestep, labels)

    network = lambda x_t, timestep: apply(x_t, timestep, labels)  # noqa: E731
    if guide is not None:
        null = jnp.full_like(labels, model.null_label)
        network = guidance.guide_network(apply, labels, null, *guide)
    return predictions.make_denoise(network, process.noise_schedule, process.prediction)


# Compiled once for networks of one shape and process, and for each number of steps.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(model: Any, process: Any, params: Any, path: Any, labels: Any, x_T: Any) -> jax.Array:
    return samplers.integrate(_DDIM, _denoise(model, process, params, labels), x_T, path)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _trajectory(
    model: Any, process: Any, params: Any, path: Any, guide: Any, labels: Any, x_T: Any
) -> tuple[jax.Array, jax.Array]:
    denoise = _denoise(model, process, params, labels, guide)
    samples, x0_hat = samplers.trajectory(_DDIM, denoise, x_T, path)
    return samples, jnp.moveaxis(x0_hat, 0, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _estimate(
    model: Any, process: Any, params: Any, level: Any, labels: Any, x_t: Any
) -> jax.Array:
    return _denoise(model, process, params, labels)(x_t, level)[0]


def in_batches(draw: Any, labels: np.ndarray, x_t: np.ndarray) -> Any:
    """draw(labels, x_t) in batches of one shape, the last filled up by its own rows."""
    batches = []
    for start in range(0, len(labels), _BATCH):
        index = np.resize(np.arange(start, min(start + _BATCH, len(labels))), _BATCH)
        batches.append(jax.device_get(draw(labels[index], x_t[index])))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(labels)], *batches)
