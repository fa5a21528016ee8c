"""The main job, fixed and flawed, over three seeds: the README's picture and its numbers.

Claim (sections 2 and 3): the flawed recipe cannot make very dark or very bright images, the four
fixes can. Same network, data, seeds and budget; 512 samples a run, from random noise.

Predicted: the ideal denoiser, from the same noise.

  python -m experiments.brightness_recipes --workdir=/tmp/zsnr_jax/trained

Seconds, and on 2 CPU cores two minutes more for each of six networks that is not yet trained.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import trained
from experiments.pictures import pack, unpack
from experiments.record import Experiment, row, run
from zsnr_jax import plotting, report
from zsnr_jax.data import make_images
from zsnr_jax.evaluation import brightness

RECIPES, SEEDS = {"fixed": "main_job", "flawed": "main_job_flawed"}, (0, 1, 2)
METRICS = ("std_ratio", "wasserstein1", "mean_recovery")
NUM_SHOWN = 24


def measure(smoke: bool, workdir: Path) -> dict[str, Any]:
    """Both recipes' numbers; of the data and of the first seeds, histogram and pictures."""
    seeds = SEEDS[:1] if smoke else SEEDS
    folders = {
        name: [trained.train(network, workdir, seed, smoke) for seed in seeds]
        for name, network in RECIPES.items()
    }
    found = {name: summarize(runs) for name, runs in folders.items()}
    dataset = report.load_run(folders["fixed"][0]).results["dataset"]["name"]
    images = {"data": make_images(int(dataset.partition("/")[2]), 512, seed=0)[0]}
    images |= {name: samples_of(runs[0]) for name, runs in folders.items()}
    rows = [
        row(f"{name}: std ratio, and its interval", "pictures", here["ideal_std_ratio"],
            [here["std_ratio"][key] for key in ("value", "low", "high")])
        for name, here in found.items()
    ]  # fmt: skip
    return {
        "rows": rows,
        **found,
        "pictures": {
            name: pack(plotting.by_brightness(some, NUM_SHOWN) / 127.5 - 1)
            for name, some in images.items()
        },
        "histograms": {
            name: brightness.histogram(brightness.mean_brightness(some)).tolist()
            for name, some in images.items()
        },
    }


def samples_of(folder: Path) -> np.ndarray:
    """A run's samples, uint8 [n, H, W, C]."""
    return np.load(folder / "samples" / "samples.npz")["images"]


def summarize(folders: list[Path]) -> dict[str, Any]:
    """The runs of one recipe: each one's numbers, and the mean of their std ratios.

    The interval resamples within each run, and says nothing of other seeds; every run's ratio is to
    the same data.
    """
    runs = [report.load_run(folder).results for folder in folders]
    samples = [brightness.mean_brightness(samples_of(folder)) for folder in folders]
    data_std = np.sqrt((1 - 1 / runs[0]["dataset"]["num_examples"] ** 2) / 3)  # the set's exact law
    pooled = brightness.bootstrap(
        lambda groups: float(np.mean([np.std(group) for group in groups]) / data_std),
        samples,
        np.random.default_rng(0),
    )
    return {
        "std_ratio": pooled,
        "ideal_std_ratio": float(np.mean([run["ideal"]["this"]["std_ratio"] for run in runs])),
        "runs": [
            {name: run["metrics"][f"brightness/{name}"] for name in METRICS}
            | {"ideal_" + name: run["ideal"]["this"][name] for name in METRICS}
            | {"seed": run["config"]["seed"], "seconds": run["seconds"], "step": run["step"]}
            for run in runs
        ],
        "num_samples": runs[0]["num_samples"],
    }


def draw(results: dict[str, Any]) -> Figure:
    """The README's picture: of the data and the first seeds, a strip and the histogram."""
    theme = plotting.LIGHT
    spread = {name: results[name]["runs"][0]["std_ratio"]["value"] for name in RECIPES}
    sets = {
        "data": ("The data", "brightness uniform from -1 to 1", theme.faint),
        "flawed": ("Trained and sampled flawed", "{flawed:.2f} of the data's spread", theme.flawed),
        "fixed": ("With the four fixes", "{fixed:.2f} of the data's spread", theme.samples),
    }
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    panels = figure.subplots(len(sets), 2, width_ratios=[3, 1.3])
    for (strip, bars), (name, (title, note, colour)) in zip(panels, sets.items()):
        images = unpack(results["pictures"][name])
        strip.imshow(plotting.image_grid(images, columns=NUM_SHOWN // 2, scale=4, pad=4))
        strip.set_axis_off()
        strip.set_title(title, loc="left", fontsize=10, weight="bold", color=theme.ink)
        strip.set_title(note.format(**spread), loc="right", fontsize=9, color=theme.ink)
        bars.stairs(
            results["histograms"][name], brightness.HISTOGRAM_EDGES, fill=True, color=colour
        )
        bars.set(xlim=(-1, 1), ylim=(0, 1.6), yticks=[])
        bars.set_xticks([-1, 0, 1], ["black", "0", "white"], fontsize=8)
        bars.spines[["top", "right", "left"]].set_visible(False)
    panels[0][1].set_title("mean brightness of an image", fontsize=9, color=theme.ink)
    return figure


def check(results: dict[str, Any]) -> None:
    """The fixes widen the spread, and each recipe gives what the ideal denoiser gives."""
    fixed, flawed = (results[name]["std_ratio"]["value"] for name in RECIPES)
    assert fixed - flawed > 0.25
    for name in RECIPES:
        assert len(results[name]["runs"]) == len(SEEDS)
        for here in results[name]["runs"]:
            assert abs(here["std_ratio"]["value"] - here["ideal_std_ratio"]) < 0.07, here["seed"]


def summary(results: dict[str, Any]) -> str:
    """The std ratio of both, with its interval."""
    fixed, flawed = (
        "{value:.3f} [{low:.3f}, {high:.3f}]".format(**results[name]["std_ratio"])
        + f" (ideal {results[name]['ideal_std_ratio']:.3f})"
        for name in RECIPES
    )
    return f"std ratio, flawed {flawed}, fixed {fixed}; mean of three seeds"


EXPERIMENT = Experiment(
    "brightness_recipes",
    "Sections 2 and 3",
    "The flawed recipe makes medium brightness; the four fixes make dark and bright.",
    measure,
    draw,
    check,
    "pictures",
    summary,
    trained=True,
)


if __name__ == "__main__":
    run(EXPERIMENT)
