"""Seconds until a command begins its work: imports, --help, and a small run cold and warm.

  python -m experiments.benchmarks.startup [--rounds=5] [--runs=2] [--out=FILE.json]

Each in a new process, in turn; a round before the first one, which is not counted, fills the
disk's cache. torch and diffusers stand beside where they are installed. The run is
`configs/brightness.py:smoke`: cold with no compiled programs kept from before, warm with those of
the cold one. Beside them, what the imports of a run are spent on, by package.
"""

import collections
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.benchmarks import apart, options
from experiments.benchmarks.spread import middle_half, told
from experiments.benchmarks.turns import Timed, about
from zsnr_jax import files

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).with_suffix(".json")
RUN, CORE = "import zsnr_jax.modes", "import zsnr_jax.samplers"
DIFFUSERS = "from diffusers import UNet2DConditionModel"
OURS = ("import zsnr_jax", CORE, "import zsnr_jax.main", RUN)
THEIRS = ("import jax", "import torch", DIFFUSERS)
HELP = "python -m zsnr_jax.main --help"
_SMOKE = ("-m", "zsnr_jax.main", "--config=configs/brightness.py:smoke")
_PACKAGES = 8  # that take longest
_IMPORT = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\w+)", re.MULTILINE)  # itself alone


def main() -> None:
    """Measure, print, and write the JSON beside this file."""
    parser = options.parser(__doc__, RESULT)
    help_of_rounds = "of imports, and one before them"
    parser.add_argument("--rounds", type=options.count, default=5, help=help_of_rounds)
    parser.add_argument("--runs", type=options.count, default=2, help="cold, and as many warm")
    chosen = parser.parse_args()
    imports = _imports(chosen.rounds)
    runs = _runs(chosen.runs)
    command = f"python -m experiments.benchmarks.startup --rounds={chosen.rounds}"
    found = {
        **about(command + f" --runs={chosen.runs}"),
        "seconds": {name: middle_half(took.seconds) for name, took in imports.items()}
        | {f"smoke run, {name}": middle_half(seconds) for name, seconds in runs.items()},
        "times_faster": {
            name: {other: imports[name].times_faster_than(imports[other])}
            for name, other in ((RUN, DIFFUSERS), (CORE, "import torch"))
            if other in imports
        },
        "packages": {RUN: packages(_run("-X", "importtime", "-c", RUN))},
    }
    print("\n".join(_lines(found)))
    files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")


def packages(importtime: str) -> dict[str, float]:
    """Seconds by package, of those that take longest. Args: what python -X importtime prints."""
    spent: collections.Counter[str] = collections.Counter()
    for microseconds, package in _IMPORT.findall(importtime):
        spent[package] += int(microseconds)
    return {name: took / 1e6 for name, took in spent.most_common(_PACKAGES)}


def _imports(rounds: int) -> dict[str, Timed]:
    """Each statement, and --help, once a round."""
    there = [x for x in THEIRS if importlib.util.find_spec(x.split()[1])]
    commands = {x: ("-c", x) for x in (*OURS, *there)} | {HELP: tuple(HELP.split()[1:])}
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in tqdm(range(rounds + 1), desc="imports", unit="round"):
        for name, arguments in commands.items():
            took[name].append(_seconds(*arguments))
    return {name: Timed(first, rest, math.nan) for name, (first, *rest) in took.items()}


def _runs(rounds: int) -> dict[str, list[float]]:
    """Small runs, each in a new workdir."""
    took: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in tqdm(range(rounds), desc="runs, cold and warm", unit="round"):
        with tempfile.TemporaryDirectory() as folder:
            alone = apart.environment(Path(folder))
            for name, seconds in took.items():
                workdir = f"--workdir={folder}/{name}"
                seconds.append(_seconds(*_SMOKE, workdir, environment=alone))
    return took


def _seconds(*arguments: str, environment: Mapping[str, str] | None = None) -> float:
    start = time.perf_counter()
    _run(*arguments, environment=environment)
    return time.perf_counter() - start


def _run(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """A new Python, in this environment or, on CPUs, its own. Returns: what it says on stderr."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=environment or {**os.environ, "JAX_PLATFORMS": "cpu"}, text=True,
        capture_output=True,
    )  # fmt: skip
    if done.returncode and "--help" not in arguments:  # after which absl exits with 1
        raise SystemExit(f"error: {' '.join(arguments)} failed: {done.stderr.strip()[-300:]}")
    return done.stderr


def _lines(found: dict[str, Any]) -> list[str]:
    """The table, as it is printed."""
    lines = [f"{name:<44} {told(x)} s" for name, x in found["seconds"].items()]
    for name, others in found["times_faster"].items():
        lines += [f"{name}: {told(x)} times faster than {y}" for y, x in others.items()]
    for name, spent in found["packages"].items():
        most = ", ".join(f"{package} {seconds:.2f} s" for package, seconds in spent.items())
        lines.append(f"{name}, by package: {most}")
    return lines


if __name__ == "__main__":
    main()
