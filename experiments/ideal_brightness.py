"""The best any network could do on `brightness`: the closed-form denoiser under both recipes.

Claim (section 2): a schedule that ends above zero SNR keeps samples near medium brightness. No
network is involved here, so what is left of the spread is the doing of schedule and timesteps
alone: DDIM at S = 50, by label, 1536 samples a size, all started from the same random noise. The
table in `zsnr_jax/data/brightness.py` has its numbers.

  python -m experiments.ideal_brightness

Half a minute on 2 CPU cores.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.record import Experiment, row, run
from zsnr_jax import data, plotting, randomness, schedules, timesteps
from zsnr_jax.data.brightness import LABELS, SIZES
from zsnr_jax.evaluation import brightness, ideal
from zsnr_jax.generate import spread_labels

# Zero terminal SNR, spacing and its offset, and the level samples end at: the flawed recipe is
# Stable Diffusion's own.
RECIPES = {"fixed": (True, "trailing", 0, 0), "flawed": (False, "leading", 1, 1)}
NUM_STEPS, SEED = 50, 0


def measure(smoke: bool) -> dict[str, Any]:
    """The statistics of brightness under each recipe at each size."""
    sizes, num_samples = (SIZES[:1], 24) if smoke else (SIZES, 1536)
    found = {str(size): statistics(size, num_samples) for size in sizes}
    rows = [
        row(f"{name}, {size} x {size}: std ratio, and its interval",
            ours=[recipes[name]["std_ratio"][key] for key in ("value", "low", "high")])
        for size, recipes in found.items() for name in RECIPES
    ]  # fmt: skip
    return {"rows": rows, "sizes": found}


def statistics(size: int, num_samples: int) -> dict[str, Any]:
    """Those of both recipes at one size."""
    images, labels = data.load_arrays(data.open_source(f"brightness/{size}"), size)
    drawn_labels = spread_labels(labels, num_samples)
    key = randomness.purpose_key(SEED, randomness.Purpose.START)
    x_T = randomness.row_normal(key, 0, jnp.arange(num_samples), images.shape[1:])
    found = {}
    for name, (zero_terminal_snr, spacing, offset, final_level) in RECIPES.items():
        schedule = schedules.make_schedule("scaled_linear", 1000, zero_terminal_snr)
        steps = timesteps.make_timesteps(spacing, 1000, NUM_STEPS, steps_offset=offset)
        drawn = ideal.ideal_samples(
            images, labels, schedule, steps, drawn_labels, x_T, final_level=final_level
        )
        estimates = brightness.evaluate(drawn, drawn_labels, images, labels, LABELS, SEED)
        found[name] = {k.removeprefix("brightness/"): v for k, v in estimates}
    return found


def draw(results: dict[str, Any]) -> Figure:
    """The spread at each size, with its interval, under both recipes."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color=plotting.LIGHT.data, lw=4, zorder=0)
    sizes = [int(size) for size in results["sizes"]]
    looks = ((plotting.LIGHT.samples, "o"), (plotting.LIGHT.flawed, "v"))
    for name, (colour, marker) in zip(RECIPES, looks):
        ratios = [recipes[name]["std_ratio"] for recipes in results["sizes"].values()]
        value, low, high = (np.array([r[key] for r in ratios]) for key in ("value", "low", "high"))
        axes.errorbar(sizes, value, [value - low, high - value], color=colour, marker=marker,
                      label=f"{name} recipe")  # fmt: skip
    axes.set(xscale="log", xlabel="size H = W, in pixels", ylim=(0, 1.1),
             ylabel="spread of brightness,\nover the data's")  # fmt: skip
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("How much brightness could a perfect network give?", loc="left", weight="bold")
    return figure


def check(results: dict[str, Any]) -> None:
    """At each size the flawed recipe gives less, and the less the larger the picture."""
    fixed, flawed = (
        [recipes[name]["std_ratio"]["value"] for recipes in results["sizes"].values()]
        for name in RECIPES
    )
    assert len(fixed) == len(SIZES) and min(fixed) > 0.9
    assert all(less < more for less, more in zip(flawed, fixed)) and np.all(np.diff(flawed) < 0)


def summary(results: dict[str, Any]) -> str:
    """The spread at each size under both recipes."""
    fixed, flawed = (
        ", ".join(
            f"{recipes[name]['std_ratio']['value']:.2f}" for recipes in results["sizes"].values()
        )
        for name in RECIPES
    )
    return f"std ratio at {', '.join(results['sizes'])} pixels: flawed {flawed}; fixed {fixed}"


EXPERIMENT = Experiment(
    "ideal_brightness",
    "Section 2",
    "Even a perfect network makes medium brightness under the flawed recipe, and not under the "
    "fixed one.",
    measure,
    draw,
    check,
    "pictures",
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
