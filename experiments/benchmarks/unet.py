"""Forward, guided sampling and training of a small Stable Diffusion, beside torch and diffusers.

  python -m experiments.benchmarks.unet [--rounds=5] [--only=forward,sample,train] [--out=FILE.json]

The same weights and shapes, in float32, each variant in turn with the others (`turns`): ours, and
diffusers eager and under torch.compile, each with arrays as they come and channels-last. Ours is
compared with the one of these that it gains least on. First calls are told, too, with all that is
compiled for them, by torch, too; ours once more in a new process, which finds the programs of the
one before. A table, a JSON and a picture of the ratios.
"""

import argparse
import functools
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarks import apart, collect, in_jax, in_torch, options, overview, sd_shaped
from experiments.benchmarks.sd_shaped import Sizes
from experiments.benchmarks.spread import told
from experiments.benchmarks.turns import Make, Run, Timed, about, in_turn
from zsnr_jax import compile_cache, files, plotting

RESULT = Path(__file__).with_suffix(".json")
CALLS = {"forward": 4, "sample": 1, "train": 4}  # in a turn, as they follow each other in use
SIZES = Sizes(batch=8, images=4, steps=25, size=32)
_THERE = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))


def main() -> None:
    """Measure, print, and write the JSON and the picture beside this file."""
    chosen = _arguments()
    command = f"python -m experiments.benchmarks.unet --rounds={chosen.rounds}"
    command += f" --only={','.join(chosen.only)}" if chosen.only != [*CALLS] else ""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        apart.enter(folder)
        weights = sd_shaped.write_weights(folder / "unet")
        rows: dict[str, Any] = {}
        found = {**about(command), **sd_shaped.describe(weights, SIZES), "rows": rows}
        for task in chosen.only:
            variants = _variants(task, folder)
            timed = in_turn(variants, chosen.rounds, CALLS[task])
            again = in_turn({"ours": variants["ours"]}, rounds=0)["ours"].first
            rows[task] = compared(timed) | {"first_call_again": again, "calls": CALLS[task]}
            print(f"{task}: {_line(rows[task])}", flush=True)
            files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")
    if _THERE:
        plotting.save_figure(chosen.out.with_suffix(".png"), draw(rows))


def compared(timed: Mapping[str, Timed]) -> dict[str, Any]:
    """Seconds, first calls and ratios of one task."""
    ours = timed["ours"]
    faster = {name: ours.times_faster_than(x) for name, x in timed.items() if name != "ours"}
    return {
        "rounds": len(ours.seconds),
        "seconds": {name: found.median for name, found in timed.items()},
        "first_call": {name: found.first for name, found in timed.items()},
        "peak_gigabytes": {name: found.peak_gigabytes for name, found in timed.items()},
        "times_faster": faster,
        "best_other": min(faster, key=lambda name: faster[name]["ratio"]) if faster else None,
    }


def draw(rows: Mapping[str, Any]) -> Figure:
    """How many times faster ours is than each other variant, task by task."""
    cells = [cell for cell in collect.unet({"rows": rows}) if cell.unit == collect.TIMES_FASTER]
    figure = Figure(figsize=(7.5, 0.8 + 0.27 * len(cells)), layout="constrained")
    overview.draw_bars(figure.add_subplot(), overview.bars([cell._asdict() for cell in cells]))
    return figure


def _arguments() -> argparse.Namespace:
    parser = options.parser(__doc__, RESULT)
    told = "after the first call of each"
    parser.add_argument("--rounds", type=options.count, default=5, help=told)
    parser.add_argument("--only", type=options.some_of([*CALLS]), default=",".join(CALLS))
    chosen = parser.parse_args()
    if chosen.out == RESULT and chosen.only != [*CALLS]:
        parser.error(f"{RESULT.name} is of all tasks: give --out for a record of some")
    if chosen.out == RESULT and not _THERE:
        parser.error(
            f"{RESULT.name} compares with torch and diffusers: pip install '.[parity]' for them, "
            "or give --out for a record without"
        )
    return chosen


def _variants(task: str, folder: Path) -> dict[str, Make]:
    # First calls are in this order: those that take minutes first, or others would rest as long.
    variants: dict[str, Make] = {
        name: functools.partial(getattr(in_torch, task), name, folder, SIZES)
        for name in (in_torch.VARIANTS if _THERE else ())
    }
    return variants | {"ours": functools.partial(_ours, task, folder)}


def _ours(task: str, folder: Path) -> Run:
    compile_cache.keep_programs()
    return getattr(in_jax, task)(folder, SIZES)


def _line(row: Mapping[str, Any]) -> str:
    took = ", ".join(
        f"{name} {seconds:.2f} s (first {row['first_call'][name]:.1f} s, "
        f"{row['peak_gigabytes'][name]:.1f} GB)"
        for name, seconds in row["seconds"].items()
    )
    took += f", ours again {row['first_call_again']:.1f} s"
    best = row["best_other"]
    return f"{took}; {told(row['times_faster'][best])} times faster than {best}" if best else took


if __name__ == "__main__":
    main()
