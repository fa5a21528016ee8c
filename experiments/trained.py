"""Trained networks that experiments sample, each the main job with some settings of its own.

A network is trained once, by the command a user would type, into WORKDIR/NAME_SEED; experiments
that are given the same WORKDIR share it. Training broken off goes on.
"""

import functools
import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import build, guidance, modes, predictions, samplers
from zsnr_jax.data.brightness import LABELS
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
    "fixed": Recipe(),
    "flawed": Recipe("flawed"),
    "fixed_longer": Recipe("", {"train.num_steps": 3000, "train.sample_every": 0} | FEW_SAMPLES),
    "flawed_16": Recipe("flawed,16", FEW_SAMPLES),
    "flawed_64": Recipe("flawed,64", FEW_SAMPLES),
    "offset_noise": Recipe("flawed", {"loss.offset_noise": 0.1} | FEW_SAMPLES),
    "zero_weight_at_T": Recipe("", {"loss.weight": "min_snr_zero_at_terminal"} | FEW_SAMPLES),
}


def train(name: str, workdir: Path, seed: int = 0, smoke: bool = False) -> Path:
    """Train one network where that is not done yet; returns its folder."""
    folder = workdir / f"{name}_{seed}"
    if not (folder / "results.json").exists():
        variants, settings = _parts(name, seed, smoke)
        config = f"--config=configs/brightness.py{':' * bool(variants)}{variants}"
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "zsnr_jax.main", config, f"--workdir={folder}", *flags]
        subprocess.run(command, check=True)
    return folder


def load(name: str, workdir: Path, seed: int = 0, smoke: bool = False) -> "Network":
    """A trained network; trained first, where that is not done yet."""
    folder = train(name, workdir, seed, smoke)
    variants, settings = _parts(name, seed, smoke)
    config = importlib.import_module("configs.brightness").get_config(variants)
    config.update_from_flattened_dict(settings)
    run, state = modes.load(config, folder)
    return Network(run, jax.device_get(state.ema_params))


def _parts(name: str, seed: int, smoke: bool) -> tuple[str, dict[str, Any]]:
    recipe = RECIPES[name]
    variants = ",".join(filter(None, (recipe.variants, "smoke" * smoke)))
    return variants, dict(recipe.settings) | ({"seed": seed} if seed else {})


class Network:
    """A trained network with its data, sampled from given starts."""

    def __init__(self, run: build.Run, params: Any):
        self.schedule = run.process.noise_schedule
        self.images, self.labels = run.arrays
        self._of = (run.model, run.process)  # what its programs depend on
        self._params = params

    def sample(self, *args: Any, **options: Any) -> np.ndarray:
        """The samples of `trajectory` alone."""
        return self.trajectory(*args, **options)[0]

    def trajectory(
        self,
        labels: np.ndarray,
        x_T: np.ndarray,
        levels: np.ndarray,
        final_level: int = 0,
        guide: tuple[float, float] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw by DDIM for labels int [n] from x_T [n, H, W, C]; guide: (scale, rescale).

        Returns: samples, float32 [n, H, W, C], and x0_hat at every level, [n, S, H, W, C].
        """
        path = samplers.coefficients(_DDIM, self.schedule, levels, final_level)

        def draw(labels: np.ndarray, x_T: np.ndarray) -> Any:
            return _trajectory(*self._of, self._params, path, labels, guide, x_T)

        return _in_batches(draw, labels, x_T)

    def estimate(self, labels: np.ndarray, x_t: np.ndarray, level: int) -> np.ndarray:
        """x0_hat [n, H, W, C] of x_t [n, H, W, C] at a level, for labels int [n]."""

        def draw(labels: np.ndarray, x_t: np.ndarray) -> Any:
            return _estimate(*self._of, self._params, level, labels, x_t)

        return _in_batches(draw, labels, x_t)

    def ideal(
        self, labels: np.ndarray, x_T: np.ndarray, levels: np.ndarray, final_level: int = 0
    ) -> np.ndarray:
        """The same by the ideal denoiser of the data the network was trained on."""
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
def _trajectory(
    model: Any, process: Any, params: Any, path: Any, labels: Any, guide: Any, x_T: Any
) -> tuple[jax.Array, jax.Array]:
    denoise = _denoise(model, process, params, labels, guide)
    samples, x0_hat = samplers.trajectory(_DDIM, denoise, x_T, path)
    return samples, jnp.moveaxis(x0_hat, 0, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _estimate(
    model: Any, process: Any, params: Any, level: Any, labels: Any, x_t: Any
) -> jax.Array:
    return _denoise(model, process, params, labels)(x_t, level)[0]


def _in_batches(draw: Any, labels: np.ndarray, x_t: np.ndarray) -> Any:
    """draw(labels, x_t) in batches of one shape, the last filled up by its own rows."""
    batches = []
    for start in range(0, len(labels), _BATCH):
        index = np.resize(np.arange(start, min(start + _BATCH, len(labels))), _BATCH)
        batches.append(jax.device_get(draw(labels[index], x_t[index])))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(labels)], *batches)


def even_labels(num_each: int) -> np.ndarray:
    """Each label of `brightness` num_each times, in the order of `recovery.even_starts`."""
    return np.repeat(np.arange(len(LABELS)), num_each)
