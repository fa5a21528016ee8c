"""The main job, fixed and flawed, over three seeds: the README's picture and its numbers.

Claim (sections 2 and 3 of the paper): the flawed recipe cannot make very dark or very bright
images, the four fixes can. Same network, data, seeds and budget; 512 samples a run.

  python -m experiments.brightness_recipes --workdir=/tmp/zsnr_jax/recipes

trains six models (skipping what is finished, resuming what is not), and writes
results/brightness_recipes.json and brightness_recipes.png. Half an hour on 2 CPU cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from zsnr_jax import plotting
from zsnr_jax.data import make_images
from zsnr_jax.evaluation import brightness

RESULTS = Path(__file__).parent / "results"
RECIPES = {"fixed": "configs/brightness.py", "flawed": "configs/brightness.py:flawed"}
SEEDS = (0, 1, 2)


def train(recipe: str, seed: int, workdir: Path, smoke: bool) -> Path:
    """Train one model by the command a user would type; returns its workdir."""
    folder = workdir / f"{recipe}_{seed}"
    if (folder / "results.json").exists():
        return folder
    config = RECIPES[recipe] + ("," if ":" in RECIPES[recipe] else ":") * smoke + "smoke" * smoke
    command = [sys.executable, "-m", "zsnr_jax.main", f"--config={config}", f"--workdir={folder}"]
    subprocess.run([*command, f"--config.seed={seed}"], check=True)
    return folder


def summarize(folders: list[Path]) -> dict:
    """The runs of one recipe: each one's numbers, and the std ratio of all their samples together.

    The interval resamples within each run; every run's ratio is to the same data.
    """
    runs = [json.loads((folder / "results.json").read_text()) for folder in folders]
    samples = [
        brightness.mean_brightness(np.load(folder / "samples" / "samples.npz")["images"])
        for folder in folders
    ]
    data_std = np.sqrt((1 - 1 / runs[0]["dataset"]["num_examples"] ** 2) / 3)  # the set's exact law
    pooled = brightness.bootstrap(
        lambda groups: float(np.mean([np.std(group) for group in groups]) / data_std),
        samples,
        np.random.default_rng(0),
    )
    names = ("std_ratio", "wasserstein1", "mean_recovery")
    return {
        "std_ratio": pooled,
        "ideal_std_ratio": float(np.mean([run["ideal"]["this"]["std_ratio"] for run in runs])),
        "runs": [
            {name: run["metrics"][f"brightness/{name}"] for name in names}
            | {"seed": run["config"]["seed"], "seconds": run["seconds"], "step": run["step"]}
            for run in runs
        ],
        "hardware": runs[0]["hardware"],
        "num_samples": runs[0]["num_samples"],
    }


def draw(folders: dict[str, list[Path]], results: dict, path: Path) -> None:
    """The README's picture: the data, and the first seed of each recipe."""
    dataset = json.loads((folders["fixed"][0] / "results.json").read_text())["dataset"]["name"]
    size = int(dataset.partition("/")[2])
    data = make_images(size, 512, seed=0)[0]
    sets = [("The data", "brightness uniform from -1 to 1", data, plotting.LIGHT.faint)]
    for recipe, title, colour in (
        ("flawed", "Trained and sampled flawed", plotting.LIGHT.flawed),
        ("fixed", "With the four fixes", plotting.LIGHT.samples),
    ):
        images = np.load(folders[recipe][0] / "samples" / "samples.npz")["images"]
        ratio = results[recipe]["runs"][0]["std_ratio"]["value"]
        sets.append((title, f"{ratio:.2f} of the data's spread", images, colour))
    plotting.save_figure(path, plotting.recipes_beside_each_other(sets))


def main() -> None:
    """Train what is missing, then measure, draw and assert."""
    parser = argparse.ArgumentParser(
        description="Train the main job, fixed and flawed, over three seeds."
    )
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, results beside them")
    arguments = parser.parse_args()
    folders = {
        recipe: [train(recipe, seed, arguments.workdir, arguments.smoke) for seed in SEEDS]
        for recipe in RECIPES
    }
    out = arguments.workdir if arguments.smoke else RESULTS
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {recipe: summarize(runs) for recipe, runs in folders.items()}
    results["command"] = f"python -m experiments.brightness_recipes --workdir={arguments.workdir}"
    (out / "brightness_recipes.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(folders, results, out / "brightness_recipes.png")
    for recipe in RECIPES:
        found = results[recipe]
        print(
            "{0:<7} std ratio {value:.3f} [{low:.3f}, {high:.3f}], ideal {1:.3f}".format(
                recipe, found["ideal_std_ratio"], **found["std_ratio"]
            )
        )
    if not arguments.smoke:
        fixed, flawed = (results[recipe]["std_ratio"]["value"] for recipe in RECIPES)
        assert fixed - flawed >= 0.25, "the fixes should widen the spread of brightness"


if __name__ == "__main__":
    main()
