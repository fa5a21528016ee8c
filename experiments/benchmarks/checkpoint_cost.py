"""What saving costs the main job: its steps with a checkpoint among them, and without, in turn.

  python -m experiments.benchmarks.checkpoint_cost [--blocks=8] [--steps=50]

Blocks of steps alternate in one process, each long enough for its checkpoint to be written in the
background. The difference is what one checkpoint costs, blocking and in the background, digests
included; its share is of the steps between two checkpoints of the recipe.
"""

import argparse
import datetime
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
from tqdm import tqdm

from configs import brightness
from zsnr_jax import build, parallel
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.train.step import repeat_step

RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Measure, print and write the JSON beside this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=8, help="of each kind")
    parser.add_argument("--steps", type=int, default=50, help="of a block")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain, saving, blocking = measure(chosen.blocks, chosen.steps, Path(folder))
    every = brightness.get_config().train.save_every
    cost = [b - a for a, b in zip(plain, saving)]
    share = [c / (every * a / chosen.steps) for c, a in zip(cost, plain)]
    found = {
        "seconds_of_a_step": statistics.median(plain) / chosen.steps,
        "seconds_of_a_checkpoint": statistics.median(cost),
        "of_which_blocking": statistics.median(blocking),
        "share_of_training": statistics.median(share),
        "share_lowest_and_highest": [min(share), max(share)],
        "steps_between_checkpoints": every,
        "hardware": parallel.describe(),
        "date": datetime.date.today().isoformat(),
        "command": f"python -m experiments.benchmarks.checkpoint_cost --blocks={chosen.blocks} "
        f"--steps={chosen.steps}",
    }
    chosen.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def measure(blocks: int, steps: int, folder: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each block without a checkpoint and with one, and those that saving blocked."""
    run = build.build(brightness.get_config())
    place_step = run.placement.step(repeat_step(run.train_step(run.placement), 1))
    state, batches = run.placement.put(run.init_state()), run.batches(0)
    checkpoints = Checkpoints(folder)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    blocking = []
    for block in tqdm(range(-1, 2 * blocks), unit="block"):  # the first one compiles
        saves = block % 2 == 1
        start = time.perf_counter()
        for i in range(steps):
            batch = {name: x[None] for name, x in next(batches).items()}
            state, metrics = place_step(state, batch)
            jax.block_until_ready(metrics)
            if saves and i == 0:
                before = time.perf_counter()
                checkpoints.save(block + 1, state, run.record)
                blocking.append(time.perf_counter() - before)
        if block >= 0:
            seconds[saves].append(time.perf_counter() - start)
    checkpoints.close()
    return seconds[False], seconds[True], blocking[-blocks:]


if __name__ == "__main__":
    main()
