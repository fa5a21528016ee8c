"""Run a recipe under many settings, and set the results beside each other.

  python -m zsnr_jax.sweep --config=configs/FILE.py[:variant] --sweep=FILE.py --workdir=DIR
  ... --launch=print   one command for each run, for any cluster
  ... --launch=slurm   an array script, for sbatch

Runs go one after another, each in its own process and folder, DIR/NAME, with its output in log.txt.
What is finished is skipped, and what was broken off goes on, so that the same command repeated
loses nothing. Runs that differ in sampling alone are trained once: the later ones borrow the
checkpoints of any finished run in DIR. Programs that are equal are compiled once, too. (Printed
commands and array scripts run apart, and each trains for itself.) At the end stand a table,
DIR/sweep.json, and a page, DIR/sweep.html.

A sweep file is Python, and runs as such; its `get_sweep()` returns a list of overrides, made by the
four functions below.
"""

import argparse
import importlib.util
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from zsnr_jax import build, files, preemption, report
from zsnr_jax import config as config_lib
from zsnr_jax.errors import Preempted, UsageError

Sweep = list[dict[str, Any]]  # one dictionary of settings for each run

METRICS = ("std_ratio", "mean_recovery", "wasserstein1")  # of brightness, in the table


def grid(name: str, values: Sequence[Any]) -> Sweep:
    """One run for each value of a setting, as grid("sampler.num_steps", [10, 25])."""
    return [{name: value} for value in values]


def cross(*sweeps: Sweep) -> Sweep:
    """Every combination."""
    return [_merged(parts) for parts in itertools.product(*sweeps)]


def zipped(*sweeps: Sweep) -> Sweep:
    """The first of each together, the second of each, and so on; all are of one length."""
    if len({len(sweep) for sweep in sweeps}) > 1:
        raise UsageError(f"zipped sweeps differ in length: {[len(sweep) for sweep in sweeps]}.")
    return [_merged(parts) for parts in zip(*sweeps)]


def chain(*sweeps: Sweep) -> Sweep:
    """One sweep after another."""
    return list(itertools.chain(*sweeps))


class PlannedRun(NamedTuple):
    """A run of a sweep, before or after it was done."""

    name: str
    workdir: Path
    overrides: dict[str, Any]
    settings: dict[str, Any]  # all of them, resolved, as JSON
    command: list[str]

    @property
    def training(self) -> str:
        """What its training depends on."""
        return _training(self.settings)


def plan(config: str, sweep: Sweep, workdir: Path) -> list[PlannedRun]:
    """Name every run, and check its settings, before any of them starts.

    Args: config: FILE.py[:variant], as of `zsnr_jax.main`.
    Raises: UsageError, naming the run, for a setting that is unknown or wrong, or two equal runs.
    """
    return [
        plan_run(config, name, overrides, workdir) for name, overrides in zip(_names(sweep), sweep)
    ]


def plan_run(config: str, name: str, overrides: dict[str, Any], workdir: Path) -> PlannedRun:
    """Plan one run, in WORKDIR/NAME. Args and errors as of `plan`."""
    settings = config_lib.to_json(configure(config, name, overrides))
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    folder = workdir / name
    command = ["python", "-m", "zsnr_jax.main", f"--config={config}", f"--workdir={folder}"]
    return PlannedRun(name, folder, overrides, settings, [*command, *flags])


def is_finished(run: PlannedRun) -> bool:
    """Whether the folder of a run holds its results.

    Raises: UsageError where it holds those of other settings.
    """
    if not (run.workdir / "results.json").exists():
        return False
    results = report.load_run(run.workdir).results
    found = config_lib.flat(results["config"])
    for name, value in config_lib.flat(run.settings).items():
        if found.get(name) != value:
            raise UsageError(
                f"{run.workdir} holds a run with {name}={found.get(name)!r} where this one has "
                f"{value!r}: choose another --workdir."
            )
    return results["step"] >= run.settings["train"]["num_steps"]


def run_all(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Do what is not finished, here, one after another; returns those that failed."""
    failed, trained = [], _trained({run.workdir.parent for run in runs})
    for run in (progress := tqdm(runs, desc="sweep", unit="run")):
        progress.set_postfix_str(run.name)
        if is_finished(run):
            continue
        if _launch(run, trained.get(run.training)):
            trained.setdefault(run.training, run.workdir)
        else:
            failed.append(run)
    return failed


def _launch(run: PlannedRun, trained: Path | None) -> bool:
    """Do a run in a process of its own; whether it succeeded.

    Args: trained: a folder with the checkpoints that it would train; None where there is none.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *run.command[1:]]
    link = run.workdir / "checkpoints"
    if link.is_symlink():  # of a time before; its folder may be gone, and is not to be trained in
        link.unlink()
    if trained is not None and not link.exists():
        _borrow(trained, run)
        command.append("--mode=eval")
    with open(run.workdir / "log.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C would reach it twice, which means at once
        )  # fmt: skip
    return _wait(process, run) == 0


def _wait(process: subprocess.Popen[bytes], run: PlannedRun) -> int:
    """Wait for a run, and pass on a signal to end. Raises: Preempted where it ended for one."""
    told = False
    while (code := process.poll()) is None:
        if not told and preemption.requested():
            process.terminate()
            told = True
        time.sleep(0.1)
    if told or code == Preempted.exit_code:
        raise Preempted(f"a signal in the run {run.name}")
    return code


def _trained(folders: Iterable[Path]) -> dict[str, Path]:
    """The finished runs in some folders that have checkpoints of their own, by their training."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/results.json")):
        if _has_own_checkpoints(path.parent):
            results = report.load_run(path.parent).results
            if results["step"] >= results["config"]["train"]["num_steps"]:
                found.setdefault(_training(results["config"]), path.parent)
    return found


def _has_own_checkpoints(workdir: Path) -> bool:
    checkpoints = workdir / "checkpoints"
    return checkpoints.is_dir() and not checkpoints.is_symlink()


def _training(settings: Mapping[str, Any]) -> str:
    """What a run's training depends on."""
    return json.dumps(config_lib.of_training(settings), sort_keys=True)


def _borrow(trained: Path, run: PlannedRun) -> None:
    """Give a run what its evaluation reads: its settings, another's history and checkpoints."""
    files.write_text(run.workdir / "config.json", json.dumps(run.settings, indent=2) + "\n")
    shutil.copy(trained / "metrics.jsonl", run.workdir / "metrics.jsonl")
    (run.workdir / "checkpoints").symlink_to((trained / "checkpoints").resolve())


def require_all(runs: Sequence[PlannedRun], failed: Sequence[PlannedRun]) -> None:
    """Raise: UsageError where runs failed, with where the first of them says why."""
    if failed:
        raise UsageError(
            f"{len(failed)} of {len(runs)} runs failed, {failed[0].name} first: "
            f"{failed[0].workdir / 'log.txt'} says why, and the same command goes on."
        )


def summarize(runs: Sequence[PlannedRun], workdir: Path) -> str:
    """Write sweep.json and sweep.html of the finished runs, and return their table as text."""
    rows = []
    for run in runs:
        results = report.load_run(run.workdir).results
        metrics = {name: results["metrics"][f"brightness/{name}"]["value"] for name in METRICS}
        rows.append({"name": run.name, "overrides": run.overrides, **metrics})
    files.write_text(workdir / "sweep.json", json.dumps(rows, indent=1) + "\n")
    report.write_comparison([run.workdir for run in runs], workdir / "sweep.html")
    width = max(len(run.name) for run in runs)
    lines = [f"{'run':<{width}}" + "".join(f"{name:>15}" for name in METRICS)]
    for line in rows:
        cells = ("-" if line[name] is None else f"{line[name]:.3f}" for name in METRICS)
        lines.append(f"{line['name']:<{width}}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def slurm_script(runs: Sequence[PlannedRun]) -> str:
    """An array job with one task for each run; sbatch takes options before the file's name."""
    commands = "\n".join(f"  {shlex.quote(shlex.join(run.command))}" for run in runs)
    return (
        f"#!/bin/bash\n#SBATCH --job-name=zsnr_jax\n#SBATCH --array=0-{len(runs) - 1}\n"
        f'commands=(\n{commands}\n)\neval "${{commands[$SLURM_ARRAY_TASK_ID]}}"'
    )


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise UsageError(f"the sweep sets {', '.join(sorted(twice))} twice in one run.")
        merged |= part
    return merged


def _names(sweep: Sweep) -> list[str]:
    """What each run is called: what is set in it and not in all runs alike.

    A setting is told by the last part of its name where that is clear.
    """
    if not sweep:
        raise UsageError("the sweep has no runs: its get_sweep() returned an empty list.")
    keys = list(dict.fromkeys(key for overrides in sweep for key in overrides))
    if len(sweep) > 1:
        first = sweep[0].items()
        alike = {k for k, v in first if all(k in other and other[k] == v for other in sweep)}
        keys = [key for key in keys if key not in alike]
    last = [key.rpartition(".")[2] for key in keys]
    called = {key: part if last.count(part) == 1 else key for key, part in zip(keys, last)}
    names = [
        ",".join(f"{called[k]}={v}".replace("/", "-") for k, v in overrides.items() if k in called)
        or "default"
        for overrides in sweep
    ]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"the sweep has the run {twice} twice: leave one out.")
    return names


def configure(config: str, name: str, overrides: dict[str, Any]) -> config_lib.Config:
    """The config of a run, from FILE.py[:variant] and overrides, checked as a whole."""
    file, _, variants = config.partition(":")
    settings = _module(file, "--config").get_config(variants)
    try:
        settings.update_from_flattened_dict(overrides)
    except (KeyError, TypeError, ValueError) as error:
        said = " ".join(str(error).strip("'\"").split())
        raise UsageError(f"the run {name} cannot be set up: {said}") from error
    try:
        build.build(settings)
    except UsageError as error:
        raise UsageError(f"the run {name} cannot be made: {error}") from error
    return settings


def _module(file: str, flag: str) -> Any:
    """A Python file, by its path."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None or not os.path.exists(file):
        raise UsageError(f"there is no Python file {file!r}: {flag} names one.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: Sequence[str] | None = None) -> None:
    """Plan, then launch."""
    preemption.listen()
    parser = argparse.ArgumentParser(
        "zsnr_jax.sweep", description="Run a recipe under many settings."
    )
    parser.add_argument("--config", required=True, help="the recipe: configs/FILE.py[:variant]")
    parser.add_argument("--sweep", required=True, help="a Python file with get_sweep()")
    parser.add_argument("--workdir", required=True, type=Path, help="the folder of all runs")
    parser.add_argument("--launch", choices=("local", "print", "slurm"), default="local")
    options = parser.parse_args(argv)
    sweep = getattr(_module(options.sweep, "--sweep"), "get_sweep", None)
    if sweep is None:
        raise UsageError(f"{options.sweep} has no get_sweep(): it returns the list of overrides.")
    runs = plan(options.config, sweep(), options.workdir)
    if options.launch == "print":
        print("\n".join(shlex.join(run.command) for run in runs))
    elif options.launch == "slurm":
        print(slurm_script(runs))
    else:
        failed = run_all(runs)
        finished = [run for run in runs if run not in failed]
        if finished:
            print(summarize(finished, options.workdir))
        require_all(runs, failed)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
    except Preempted as error:
        print(f"stopped by {error}. Repeat the command to go on.", file=sys.stderr)
        sys.exit(error.exit_code)
