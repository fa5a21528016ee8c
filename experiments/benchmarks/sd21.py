"""Training and guided sampling at Stable Diffusion 2.1's size on one GPU, beside torch.

  python -m experiments.benchmarks.sd21 [--only=train,sample] [--variants=ours,torch] [--first=4]
    [--most=256] [--rounds=5] [--dtype=bfloat16] [--out=FILE.json] [--go-on]

At 512x512: latents of 64x64. The training step is loss, gradient, clipping, AdamW and the average,
computed in bfloat16 with weights in float32; the sampler is DDIM in 50 guided trailing steps, with
weights in bfloat16. torch: diffusers under torch.compile, channels-last, by autocast. Same weights.

Each variant has the device to itself, for batches that double until its memory is out; then ours
and torch's take turns at the largest batch at which both fit. A table, a JSON, written after every
batch, and a picture. --go-on measures only what is not in the JSON yet. --tiny is a small network,
on whatever there is.
"""

import argparse
import functools
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from experiments.benchmarks import sd21_report, sd21_sides
from experiments.benchmarks.sd21_sides import VARIANTS
from experiments.benchmarks.sd_shaped import Sizes
from experiments.benchmarks.turns import Make, OutOfMemory, Timed, about, in_turn
from zsnr_jax import architectures, files, plotting

RESULT = Path(__file__).with_suffix(".json")
TASKS = ("train", "sample")
SIZES = Sizes(batch=1, images=1, steps=50, size=64)
TINY = Sizes(batch=1, images=1, steps=2, size=8)
_SHARE = 0.9  # of the memory, which two processes may fill


def main() -> None:
    """Measure, print, and write the JSON and the picture beside this file."""
    chosen = _arguments()
    config = (architectures.TINY if chosen.tiny else architectures.SD21)["unet"]
    sizes = (TINY if chosen.tiny else SIZES)._replace(width=config["cross_attention_dim"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        facts = _alone(sd21_sides.prepare, folder, config, sizes)
        found = {
            **about(_command(chosen)),
            **facts,
            **{"steps": sizes.steps, "size": sizes.size, "dtype": chosen.dtype},
            **_measured_before(chosen.out if chosen.go_on else None, facts),
        }
        makes = functools.partial(sd21_sides.make, folder, sizes, chosen.dtype)
        for _ in measure(found, chosen, makes):
            files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")
    print("\n".join(sd21_report.table(found)))
    plotting.save_figure(chosen.out.with_suffix(".png"), sd21_report.draw(found))


def measure(
    found: dict[str, Any], chosen: argparse.Namespace, makes: Callable[..., Make]
) -> Iterator[None]:
    """Add to found["points"] and found["beside"] what is not there yet; one yield for each.

    Args: makes(task, variant, batch, alone): what a process is to make ready.
    """
    done = {(row["task"], row["variant"], row["batch"]) for row in found["points"]}
    for task in chosen.only:
        for variant in chosen.variants:
            if task == "sample" and VARIANTS[variant].remat:  # nothing is stored
                continue
            for row in doubling(
                lambda batch: in_turn({variant: makes(task, variant, batch, True)}, chosen.rounds),  # noqa: B023
                chosen.first,
                chosen.most,
                {batch for *key, batch in done if key == [task, variant]},
            ):
                found["points"].append({"task": task, "variant": variant, **row})
                yield
        if {"ours", "torch"} <= {*chosen.variants} and task not in found["beside"]:
            batch = largest_for_both(found["points"], task, found["memory_gigabytes"])
            if batch is not None:
                pair = {name: makes(task, name, batch, False) for name in ("ours", "torch")}
                found["beside"][task] = {"batch": batch, **_beside(in_turn(pair, chosen.rounds))}
                yield


def doubling(
    run: Callable[[int], dict[str, Timed]], first: int, most: int, done: set[int]
) -> Iterator[dict[str, Any]]:
    """Run with batches that double, until memory is out or they are past `most`.

    Args: done: batches to leave out. Yields: a row of each.
    """
    batch = first
    while batch <= most:
        if batch not in done:
            try:
                (timed,) = run(batch).values()
            except OutOfMemory as error:
                yield {"batch": batch, "out_of_memory": str(error)[:300]}
                return
            yield {"batch": batch, **_times(timed)}
        batch *= 2


def largest_for_both(
    points: list[dict[str, Any]], task: str, memory_gigabytes: float | None
) -> int | None:
    """The largest batch at which ours and torch's fit beside each other; None: there is none."""
    peaks = {
        name: {
            row["batch"]: row["peak_gigabytes"]
            for row in points
            if (row["task"], row["variant"]) == (task, name) and "seconds" in row
        }
        for name in ("ours", "torch")
    }
    room = _SHARE * (memory_gigabytes or float("inf"))
    both = peaks["ours"].keys() & peaks["torch"].keys()
    fit = [batch for batch in both if sum(peak[batch] for peak in peaks.values()) <= room]
    return max(fit, default=None)


def _times(timed: Timed) -> dict[str, Any]:
    return {
        "seconds": timed.median,
        "calls": timed.seconds,
        "first_call": timed.first,
        "peak_gigabytes": timed.peak_gigabytes,
    }


def _beside(timed: dict[str, Timed]) -> dict[str, Any]:
    seconds = {name: found.median for name, found in timed.items()}
    return {"seconds": seconds, "times_faster": timed["ours"].times_faster_than(timed["torch"])}


def _measured_before(path: Path | None, facts: dict[str, Any]) -> dict[str, Any]:
    """Points on record, of the same device and network."""
    if path is None or not path.exists():
        return {"points": [], "beside": {}}
    before = json.loads(path.read_text())
    if differing := [key for key, value in facts.items() if before[key] != value]:
        raise SystemExit(f"{path} has another {differing[0]}: choose another --out.")
    return {key: before[key] for key in ("points", "beside")}


def _alone(run: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def _command(chosen: argparse.Namespace) -> str:
    told = f"python -m experiments.benchmarks.sd21 --only={','.join(chosen.only)}"
    told += f" --variants={','.join(chosen.variants)} --first={chosen.first} --most={chosen.most}"
    told += f" --rounds={chosen.rounds} --dtype={chosen.dtype}"
    return told + (" --tiny" if chosen.tiny else "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [name for name, kind in VARIANTS.items() if sd21_sides.installed() or not kind.torch]
    for flag, allowed in (("--only", TASKS), ("--variants", names)):
        parser.add_argument(flag, default=",".join(allowed), help=f"of {', '.join(allowed)}")
    parser.add_argument("--first", type=int, default=4, help="batch, and images drawn at once")
    parser.add_argument("--most", type=int, default=256, help="batch, which memory may not let be")
    parser.add_argument("--rounds", type=int, default=5, help="after the first call of each")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--go-on", action="store_true", help="with what --out has already")
    parser.add_argument("--tiny", action="store_true", help="a small network")
    chosen = parser.parse_args()
    for key, allowed in (("only", TASKS), ("variants", names)):
        setattr(chosen, key, getattr(chosen, key).split(","))
        if unknown := {*getattr(chosen, key)} - {*allowed}:
            parser.error(f"--{key} names {unknown.pop()!r}: choose of {', '.join(allowed)}")
    return chosen


if __name__ == "__main__":
    main()
