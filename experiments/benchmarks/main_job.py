"""The main job by this version beside another checkout's, whole and in turn.

  python -m experiments.benchmarks.main_job --other=FOLDER [--rounds=2] [--variant=smoke]

Each round runs `configs/brightness.py` by both, one after the other and in the next the other way
round, as a user's first run: in a new workdir, with no compiled programs kept from before. Beside
seconds stand the loss of the last hundred steps and what the runs measured of their samples, so
that a gain in time which costs quality shows.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments import machine
from experiments.benchmarks import apart, options
from experiments.benchmarks.turns import about
from zsnr_jax import files

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).with_suffix(".json")
METRICS = ("brightness/std_ratio", "brightness/mean_recovery", "brightness/wasserstein1")
_LAST = 100  # steps at whose end the loss is told


def main() -> None:
    """Measure, print, and write the JSON beside this file."""
    parser = options.parser(__doc__, RESULT)
    parser.add_argument("--other", type=Path, required=True, help="a checkout of another version")
    parser.add_argument("--rounds", type=options.count, default=2)
    parser.add_argument("--variant", default="", help="of configs/brightness.py")
    chosen = parser.parse_args()
    if not (chosen.other / "zsnr_jax").is_dir():
        parser.error(f"--other={chosen.other} holds no zsnr_jax: name the folder of a checkout")
    checkouts = {"ours": ROOT, "other": chosen.other.resolve()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for i in tqdm(range(chosen.rounds), unit="round"):
        for name in reversed(checkouts) if i % 2 else checkouts:
            runs[name].append(_run(checkouts[name], chosen.variant))
    ours, other = (statistics.median(run["seconds"] for run in runs[name]) for name in checkouts)
    command = f"python -m experiments.benchmarks.main_job --rounds={chosen.rounds}"
    command += f" --variant={chosen.variant}" if chosen.variant else ""
    found = {
        **about(command + " --other=FOLDER"),
        "commits": {name: machine.commit(folder) for name, folder in checkouts.items()},
        "runs": runs,
        "times_faster": other / ours,
    }
    files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def _run(checkout: Path, variant: str) -> dict[str, Any]:
    """Seconds of a run in all and of a training step, and what it measured."""
    config = f"configs/brightness.py:{variant}" if variant else "configs/brightness.py"
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "zsnr_jax.main", f"--config={config}"]
        environment = apart.environment(Path(folder)) | {"PYTHONPATH": str(checkout)}
        start = time.perf_counter()
        done = subprocess.run(
            [*command, f"--workdir={workdir}"],
            cwd=checkout, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if done.returncode:
            last = re.split(r"[\r\n]+", done.stderr.strip())[-1]
            raise SystemExit(f"error: the run of {checkout} failed: {last}")
        rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
        metrics = json.loads((workdir / "results.json").read_text())["metrics"]
    return {
        "seconds": seconds,
        "seconds_of_a_step": 1 / statistics.median(row["steps_per_second"] for row in rows[1:]),
        "steps": rows[-1]["step"],
        "loss": statistics.mean(
            row["loss"] for row in rows if row["step"] > rows[-1]["step"] - _LAST
        ),
        **{name: metrics[name]["value"] for name in METRICS},
    }


if __name__ == "__main__":
    main()
