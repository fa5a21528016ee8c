"""What saving costs the main job: its steps with a checkpoint among them, and without, in turn.

  python -m experiments.benchmarks.checkpoint_cost [--blocks=8] [--steps=50] [--out=FILE.json]

Blocks of steps alternate in one process, each long enough for its checkpoint to be written in the
background. The difference is what one checkpoint costs, blocking and in the background, digests
included; its share is of the steps between two checkpoints of the recipe.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from configs import brightness
from experiments.benchmarks import options
from experiments.benchmarks.spread import middle_half, told
from experiments.benchmarks.turns import about
from zsnr_jax import build, files, host_memory, xla_options
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.train.step import repeat_step

RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Measure, print and write the JSON beside this file."""
    parser = options.parser(__doc__, RESULT)
    parser.add_argument("--blocks", type=options.count, default=8, help="of each kind")
    parser.add_argument("--steps", type=options.count, default=50, help="of a block")
    chosen = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        plain, saving, blocking = measure(chosen.blocks, chosen.steps, Path(folder))
    every = brightness.get_config().train.save_every
    cost = [b - a for a, b in zip(plain, saving)]
    command = f"python -m experiments.benchmarks.checkpoint_cost --blocks={chosen.blocks}"
    found = {
        **about(f"{command} --steps={chosen.steps}"),
        "seconds_of_a_step": middle_half([seconds / chosen.steps for seconds in plain]),
        "seconds_of_a_checkpoint": middle_half(cost),
        "of_which_blocking": middle_half(blocking),
        "share_of_training": middle_half(
            [c / (every * seconds / chosen.steps) for c, seconds in zip(cost, plain)]
        ),
        "steps_between_checkpoints": every,
    }
    print("\n".join(_lines(found)))
    files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")


def measure(blocks: int, steps: int, folder: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each block without a checkpoint and with one, and those that saving blocked."""
    host_memory.keep_freed_memory()
    xla_options.tune_for_cpus()
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


def _lines(found: dict[str, Any]) -> list[str]:
    """The table, as it is printed."""
    return [
        f"a step        {told(found['seconds_of_a_step'], 4)} s",
        f"a checkpoint  {told(found['seconds_of_a_checkpoint'])} s, "
        f"of which blocking {told(found['of_which_blocking'])} s",
        f"of training   {told(found['share_of_training'], 3)}, "
        f"with one in {found['steps_between_checkpoints']} steps",
    ]


if __name__ == "__main__":
    main()
