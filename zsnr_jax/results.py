"""What a trained run is worth: samples, their brightness against the data's, and the page.

The statistics of brightness are taken at guidance scale 1, where the target is the distribution of
the data; guidance changes it on purpose, and of the guided samples exposure is told. Where the
dataset is small enough, brightness stands beside that of two ideal denoisers, in closed form: of
this run's recipe, and of the flawed one.
"""

import dataclasses
import json
import re
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import files, parallel, plotting, preemption, randomness, report, timesteps
from zsnr_jax.build import ImageRun, Run
from zsnr_jax.evaluation import brightness, exposure, ideal
from zsnr_jax.generate import spread_labels, to_uint8
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.randomness import Purpose
from zsnr_jax.schedules import NoiseSchedule
from zsnr_jax.train.state import Params

# The ideal denoiser reads all images at every step: beyond this many values it is left out.
_MAX_IDEAL_VALUES = 60_000_000
_GUIDED_SAMPLES = 64
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")  # whose versions results.json names


class Samples(NamedTuple):
    """What a run draws: float32 [n, H, W, C], not clipped, and int [n]."""

    images: np.ndarray  # at guidance scale 1
    labels: np.ndarray
    guided_images: np.ndarray
    guided_labels: np.ndarray


def draw_samples(run: ImageRun, params: Params) -> Samples:
    """Draw the samples of a run, on all hosts together."""
    _, data_labels = run.arrays
    labels = spread_labels(data_labels, run.num_samples)
    images = run.generator(params, labels)
    guided_labels = spread_labels(data_labels, _GUIDED_SAMPLES)
    return Samples(images, labels, run.generator(params, guided_labels, True), guided_labels)


def write_samples(run: ImageRun, params: Params, folder: Path) -> Samples:
    """Draw the samples of a run into a folder: PNG grids, and samples.npz with all, in 8 bits."""
    drawn = draw_samples(run, params)
    if parallel.is_first_host():
        in_8_bits = drawn._replace(
            images=to_uint8(drawn.images), guided_images=to_uint8(drawn.guided_images)
        )
        folder.mkdir(exist_ok=True)
        plotting.save_image_grid(folder / "samples.png", in_8_bits.images)
        plotting.save_image_grid(folder / "guided.png", in_8_bits.guided_images)
        np.savez_compressed(folder / "samples.npz", **in_8_bits._asdict())
    return drawn


def evaluate(
    run: ImageRun,
    params: Params,
    workdir: Path,
    *,
    step: int,
    command: str,
    train_seconds: float | None,
) -> dict[str, Any]:
    """Draw samples, measure them, and write results.json and report.html.

    Args: command: how the run was started; train_seconds: None where it was not trained just now.
    Returns: what results.json holds; no metrics on hosts other than the first.
    """
    start = time.perf_counter()
    drawn = write_samples(run, params, workdir / "samples")
    if not parallel.is_first_host():
        return {"metrics": {}}
    samples, labels = drawn.images, drawn.labels
    sample_seconds = time.perf_counter() - start
    images, image_labels = run.arrays
    ideals = ideal_samples(run, labels)
    for name, shown in {"data": images, **ideals}.items():
        plotting.save_image_grid(workdir / "samples" / f"{name}.png", to_uint8(shown))
    names = run.source.info.label_names
    of_data = (images, image_labels, names)
    of_samples = dict(brightness.evaluate(samples, labels, *of_data, run.seed))
    of_ideals = {  # whose intervals nothing tells
        name: _values(dict(brightness.evaluate(found, labels, *of_data, num_resamples=1)))
        for name, found in ideals.items()
    }
    of_guided = dict(exposure.evaluate(drawn.guided_images, images, run.seed))
    results = {
        **told(run, params, step, command),
        "dataset": {"name": run.source.info.name, "num_examples": len(run.source)},
        "num_samples": len(samples),
        "seconds": {
            "train": train_seconds or train_seconds_before(workdir),
            "sample": sample_seconds,
        },
        "metrics": of_samples | of_guided,
        "ideal": {name.removeprefix("ideal_"): values for name, values in of_ideals.items()},
        "histogram": histogram(
            {
                name: brightness.mean_brightness(found)
                for name, found in {"data": images, "samples": samples, **ideals}.items()
            }
        ),
    }
    files.write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    report.write_report(workdir)
    return results


def told(run: Run, params: Params, step: int, command: str) -> dict[str, Any]:
    """What results.json says of any run: how to repeat it, and what on."""
    return {
        "config_name": re.findall(r"--config[= ](\S+)", command)[0],
        "command": command,
        "config": run.settings,
        "process": run.process.to_dict(),
        "sampler": run.settings["sampler"],
        "num_parameters": sum(p.size for p in jax.tree.leaves(params)),
        "step": step,
        "hardware": parallel.describe(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def histogram(sets: dict[str, np.ndarray]) -> dict[str, Any]:
    """Shares of each set by the mean brightness of its images, [n], for the page."""
    counted = {name: brightness.histogram(values).tolist() for name, values in sets.items()}
    return {"edges": brightness.HISTOGRAM_EDGES.tolist(), **counted}


def ideal_samples(run: ImageRun, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What the best possible network would draw under this run's recipe, and the flawed one.

    Both meet the noise that the run's own samples meet. Nothing, where the dataset is too large.
    """
    images, image_labels = run.arrays
    if images.size > _MAX_IDEAL_VALUES or len(images) < len(run.source):
        return {}
    process, sampler, path = run.process, run.sampling.sampler, run.sampling.coefficients
    index = jnp.arange(len(labels))
    start_key, key = (
        randomness.purpose_key(run.seed, purpose) for purpose in (Purpose.START, Purpose.SAMPLE)
    )
    noise = randomness.row_normal(start_key, 0, index, run.image_shape)
    x_T = run.generator.start(labels, index)
    recipes = {
        "ideal_this": (process.noise_schedule, path.level, x_T, path.level_next[-1]),
        "ideal_flawed": (*_flawed_recipe(process, len(path.level)), noise, 1),
    }
    found = {}
    for name, (schedule, levels, x_T, final_level) in recipes.items():
        preemption.check("evaluating")
        found[name] = ideal.ideal_samples(
            images, image_labels, schedule, levels, labels, x_T, sampler, key, final_level
        )
    return found


def _flawed_recipe(process: DiffusionProcess, num_steps: int) -> tuple[NoiseSchedule, np.ndarray]:
    """The process's schedule unmended, and Stable Diffusion's levels, which end at level 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the flawed schedule is flawed is the point
        schedule = dataclasses.replace(process, zero_terminal_snr=False).noise_schedule
    T = process.num_steps
    num_steps = min(num_steps, T - 1)  # its offset of 1 leaves no room for T levels
    return schedule, timesteps.make_timesteps("leading", T, num_steps, steps_offset=1)


def train_seconds_before(workdir: Path) -> float | None:
    """What an evaluation before this one said of the training, which it need not repeat."""
    path, remedy = workdir / "results.json", "delete it"
    if not path.exists():
        return None
    with files.readable(path, remedy):
        return files.read_json(path, remedy, finite=False)["seconds"]["train"]


def _values(estimates: dict[str, Any]) -> dict[str, float | None]:
    return {name.removeprefix("brightness/"): e["value"] for name, e in estimates.items()}
