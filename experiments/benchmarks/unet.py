"""Forward, guided sampling and training of a small Stable Diffusion, beside torch and diffusers.

  python -m experiments.benchmarks.unet [--rounds=5] [--only=forward,sample,train] [--out=FILE.json]

The same weights and shapes, in float32, each variant in turn with the others (`turns`): ours, and
diffusers eager, on channels-last arrays, and under torch.compile. Ours is compared with the best of
these. First calls are told, too, with all that is compiled for them; ours once more in a new
process, which finds the programs of the one before. A table, a JSON and a picture of the ratios.
"""

import argparse
import functools
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarks import in_jax, in_torch, sd_shaped
from experiments.benchmarks.sd_shaped import Sizes
from experiments.benchmarks.turns import Make, Run, Timed, about, in_turn
from zsnr_jax import compile_cache, files, plotting

RESULT = Path(__file__).with_suffix(".json")
TASKS = {"forward": 5, "sample": 1, "train": 1}  # rounds of each: the shorter, the more
SIZES = Sizes(batch=8, images=4, steps=25, size=32)


def main() -> None:
    """Measure, print, and write the JSON and the picture beside this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="and five times as many forward")
    parser.add_argument("--only", default=",".join(TASKS), help="of forward, sample, train")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    tasks = chosen.only.split(",")
    if unknown := set(tasks) - {*TASKS}:
        parser.error(f"--only={chosen.only} names {unknown.pop()!r}: choose of {', '.join(TASKS)}")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary  # where programs are kept: empty at first
        weights = sd_shaped.write_weights(Path(temporary) / "unet")
        rows = {}
        for task in tasks:
            variants = _variants(task, Path(temporary))
            timed = in_turn(variants, TASKS[task] * chosen.rounds)
            again = in_turn({"ours": variants["ours"]}, rounds=0)["ours"].first
            rows[task] = _row(timed) | {"first_call_again": again}
            print(f"{task}: {_told(rows[task])}", flush=True)
    command = f"python -m experiments.benchmarks.unet --rounds={chosen.rounds}"
    command += f" --only={chosen.only}" if tasks != [*TASKS] else ""
    found = {**about(command), **sd_shaped.describe(weights, SIZES), "rows": rows}
    files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")
    if any(row["times_faster"] for row in rows.values()):
        plotting.save_figure(chosen.out.with_suffix(".png"), draw(rows))


def draw(rows: dict[str, Any]) -> Figure:
    """How many times faster ours is than each other variant, task by task."""
    figure = Figure(figsize=(7.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    bars = [(task, name) for task, row in rows.items() for name in row["times_faster"]]
    for y, (task, name) in enumerate(reversed(bars)):
        found = rows[task]["times_faster"][name]
        spread = [[found["ratio"] - found["low"]], [found["high"] - found["ratio"]]]
        axes.barh(y, found["ratio"], xerr=spread, color="#2a6f97", ecolor="#999999", height=0.7)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_yticks(
        range(len(bars)), [f"{task}, diffusers {name}" for task, name in reversed(bars)]
    )
    axes.set_xlabel("times faster than diffusers; the middle half of the rounds")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _variants(task: str, folder: Path) -> dict[str, Make]:
    variants: dict[str, Make] = {
        "ours": functools.partial(_ours, task, folder),
    }
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch"):
        for name in in_torch.VARIANTS:
            variants[name] = functools.partial(getattr(in_torch, task), name, folder, SIZES)
    return variants


def _ours(task: str, folder: Path) -> Run:
    compile_cache.keep_programs()
    return getattr(in_jax, task)(folder, SIZES)


def _row(timed: dict[str, Timed]) -> dict[str, Any]:
    """Seconds, first calls and ratios of one task."""
    ours = timed["ours"]
    others = {name: found for name, found in timed.items() if name != "ours"}
    return {
        "seconds": {name: found.median for name, found in timed.items()},
        "first_call": {name: found.first for name, found in timed.items()},
        "peak_gigabytes": {name: found.peak_gigabytes for name, found in timed.items()},
        "times_faster": {name: ours.times_faster_than(found) for name, found in others.items()},
        "best_other": min(others, key=lambda name: others[name].median) if others else None,
    }


def _told(row: dict[str, Any]) -> str:
    took = ", ".join(
        f"{name} {seconds:.2f} s (first {row['first_call'][name]:.0f} s, "
        f"{row['peak_gigabytes'][name]:.1f} GB)"
        for name, seconds in row["seconds"].items()
    )
    took += f", ours again {row['first_call_again']:.0f} s"
    if not row["best_other"]:
        return f"{took}; torch and diffusers are not installed"
    best = row["times_faster"][row["best_other"]]
    return f"{took}; {best['ratio']:.2f} [{best['low']:.2f}, {best['high']:.2f}] times faster"


if __name__ == "__main__":
    main()
