"""The best any network could do on `brightness`: the closed-form denoiser under both recipes.

Claim (section 2 of the paper): a schedule that ends above zero SNR keeps samples near medium
brightness. No network is involved here, so what is left of the spread is the doing of schedule and
timesteps alone: DDIM at S = 50, 1536 samples a size, all started from the same noise.

  python -m experiments.ideal_brightness

prints the table of `zsnr_jax/data/brightness.py` and writes results/ideal_brightness.json. Half a
minute on 2 CPU cores.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from zsnr_jax import data, randomness, schedules, timesteps
from zsnr_jax.data.brightness import LABELS, SIZES
from zsnr_jax.evaluation import brightness, ideal
from zsnr_jax.generate import spread_labels

RESULTS = Path(__file__).parent / "results" / "ideal_brightness.json"
# Zero terminal SNR, spacing and its offset, and the level samples end at: the flawed recipe is
# Stable Diffusion's own.
RECIPES = {"fixed": (True, "trailing", 0, 0), "flawed": (False, "leading", 1, 1)}
NUM_SAMPLES, NUM_STEPS, SEED = 1536, 50, 0


def measure(size: int) -> dict[str, Any]:
    """The statistics of brightness under each recipe at one size."""
    images, labels = data.load_arrays(data.open_source(f"brightness/{size}"), size)
    drawn_labels = spread_labels(labels, NUM_SAMPLES)
    key = randomness.purpose_key(SEED, randomness.Purpose.START)
    x_T = randomness.row_normal(key, 0, jnp.arange(NUM_SAMPLES), images.shape[1:])
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


def main() -> None:
    """Measure every size, print the table, and write the results."""
    results = {str(size): measure(size) for size in SIZES}
    print("size     fixed                   flawed")
    for size, recipes in results.items():
        ratios = [recipe["std_ratio"] for recipe in recipes.values()]
        cells = ["{value:.3f} [{low:.3f}, {high:.3f}]".format(**ratio) for ratio in ratios]
        print(f"{size:<8} " + "   ".join(cells))
    assert all(r["flawed"]["std_ratio"]["value"] < r["fixed"]["std_ratio"]["value"]
               for r in results.values())  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    command = "python -m experiments.ideal_brightness"
    RESULTS.write_text(json.dumps({"command": command, "sizes": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
