"""All benchmarks, one after another, and what they found in one table, one JSON and one picture.

  python -m experiments.benchmarks [--only=startup,unet] [--other=FOLDER] [--quick] [--out=FOLDER]
  python -m experiments.benchmarks --collect [--out=FOLDER]

Each is a process of its own, by its own command. `main_job` is run where --other names a checkout
to compare with. Leaves benchmarks.json and benchmarks.png beside the JSONs of all, by default in
this folder. --quick takes few rounds, to see that all run; its results go to a temporary folder.
--collect only reads the JSONs there are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.benchmarks import options, overview
from experiments.benchmarks.collect import collect, table
from zsnr_jax import files, plotting

HERE = Path(__file__).parent
BENCHMARKS: dict[str, list[str]] = {  # in this order; the options that make each quick
    "startup": ["--rounds=2", "--runs=1"],
    "compiles": [],
    "main_job": ["--rounds=1", "--variant=smoke"],
    "data_rate": ["--rounds=2", "--batches=50"],  # beside the main job's need
    "ceiling": ["--rounds=2"],
    "layers": ["--rounds=2"],
    "unet": ["--rounds=2"],
    "checkpoint_cost": ["--blocks=2", "--steps=10"],
    "scale": ["--devices=1,2"],
}


def main() -> None:
    """Run what is asked for, and collect all that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*BENCHMARKS]
    parser.add_argument("--only", type=options.some_of(names), help=f"of {','.join(names)}")
    parser.add_argument("--other", type=Path, help="a checkout of another version, for main_job")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, help="where the JSONs go, and are")
    chosen = parser.parse_args()
    if "main_job" in (chosen.only or []) and not chosen.other:
        parser.error("main_job compares two versions: give --other, the folder of another checkout")
    out = chosen.out or (Path(tempfile.mkdtemp(prefix="benchmarks.")) if chosen.quick else HERE)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out={out} cannot be made: {error.strerror}")
    if chosen.collect and not any(out.glob("*.json")):
        parser.error(f"--out={out} holds no results: run some, or name their folder")
    failed = [] if chosen.collect else run(chosen.only or names, out, chosen.other, chosen.quick)
    write(collect(out), out)
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} failed")


def run(names: list[str], out: Path, other: Path | None, quick: bool) -> list[str]:
    """Run benchmarks, the next where one fails too. Returns: those that failed."""
    failed = []
    for name in (progress := tqdm(names, unit="benchmark")):
        if name == "main_job" and other is None:
            continue
        progress.set_description(name)
        start = time.perf_counter()
        done = subprocess.run(arguments(name, out, other, quick), cwd=HERE.parents[1])
        failed += [name] * (done.returncode != 0)
        tqdm.write(f"-- {name}: {time.perf_counter() - start:.0f} s")
    return failed


def arguments(name: str, out: Path, other: Path | None, quick: bool) -> list[str]:
    """The command of one."""
    told = [f"--out={out.resolve() / name}.json", *(BENCHMARKS[name] if quick else [])]
    if name == "main_job" and other is not None:
        told.append(f"--other={other.resolve()}")
    return [sys.executable, "-m", f"experiments.benchmarks.{name}", *told]


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """Print the table; write the JSON and the picture."""
    text = table(rows)
    print(text)
    found = {"rows": rows, "table": text}
    files.write_text(out / "benchmarks.json", json.dumps(found, indent=1) + "\n")
    plotting.save_figure(out / "benchmarks.png", overview.draw(rows))
    print(f"Written: {out / 'benchmarks.json'} and .png")


if __name__ == "__main__":
    main()
