"""Sweeps: their combinations and names, what they refuse, and two real runs."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zsnr_jax import sweep
from zsnr_jax.errors import UsageError
from zsnr_jax.sweep import chain, cross, grid, zipped

ROOT = Path(__file__).parents[1]
CONFIG = f"{ROOT}/configs/brightness.py:smoke"
A, B = grid("sampler.num_steps", [2, 3]), grid("sampler.eta", [0.0, 1.0])


def test_combinations():
    assert cross(A, B) == [
        {"sampler.num_steps": 2, "sampler.eta": 0.0},
        {"sampler.num_steps": 2, "sampler.eta": 1.0},
        {"sampler.num_steps": 3, "sampler.eta": 0.0},
        {"sampler.num_steps": 3, "sampler.eta": 1.0},
    ]
    assert zipped(A, B) == [cross(A, B)[0], cross(A, B)[3]]
    assert chain(A, B) == [*A, *B]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: zipped(A, grid("seed", [0, 1, 2])), r"differ in length: \[2, 3\]"),
        (lambda: cross(A, A), "sets sampler.num_steps twice in one run"),
        (lambda: sweep.plan(CONFIG, [], Path()), "has no runs"),
        (lambda: sweep.plan(CONFIG, chain(A, A), Path()), "has the run num_steps=2 twice"),
        (lambda: sweep.plan(CONFIG, grid("sampler.nmu_steps", [2]), Path()), "nmu_steps=2 cannot"),
        (
            lambda: sweep.plan(CONFIG, grid("sampler.num_steps", ["x"]), Path()),
            "num_steps=x cannot",
        ),
        (
            lambda: sweep.plan(CONFIG, grid("sampler.num_steps", [0]), Path()),
            "the run num_steps=0 cannot be made: .* and it is 0",
        ),
        (lambda: sweep.plan("nothere.py", A, Path()), "no Python file 'nothere.py': --config"),
    ],
)
def test_a_sweep_is_refused_in_one_sentence_before_any_run(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_every_run_has_a_name_a_folder_and_the_command_a_user_would_type(tmp_path):
    varied = zipped(A, grid("train.num_steps", [20, 30]))
    runs = sweep.plan(CONFIG, cross(varied, grid("seed", [7])), tmp_path)
    # Two settings are called num_steps, so that both are told whole; the seed is the same in all.
    assert [run.name for run in runs] == [
        "sampler.num_steps=2,train.num_steps=20",
        "sampler.num_steps=3,train.num_steps=30",
    ]
    assert runs[0].workdir == tmp_path / runs[0].name
    assert shlex.join(runs[0].command) == (
        f"python -m zsnr_jax.main --config={CONFIG} --workdir={runs[0].workdir} "
        "--config.sampler.num_steps=2 --config.train.num_steps=20 --config.seed=7"
    )


def test_runs_that_differ_in_sampling_alone_share_their_training(tmp_path):
    runs = sweep.plan(CONFIG, chain(A, grid("seed", [1])), tmp_path)
    assert runs[0].training == runs[1].training != runs[2].training


def test_results_of_another_recipe_are_not_taken_for_the_sweeps(tmp_path):
    (run,) = sweep.plan(CONFIG, grid("sampler.num_steps", [2]), tmp_path)
    keys = ("config_name", "command", "process", "sampler", "dataset", "metrics")
    found = dict.fromkeys(keys) | {"config": run.settings, "step": 20}
    run.workdir.mkdir()
    (run.workdir / "results.json").write_text(json.dumps(found))
    assert sweep.is_finished(run)
    found["config"] = run.settings | {"seed": 7}  # which the sweep does not set
    (run.workdir / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match="holds a run with seed=7 where this one has 0"):
        sweep.is_finished(run)


def test_an_array_script_runs_its_tasks_command(tmp_path):
    runs = sweep.plan(CONFIG, A, tmp_path / "a folder")
    script = sweep.slurm_script(runs)
    assert "--array=0-1" in script
    dry = script.replace("eval ", "echo ")
    for task, run in enumerate(runs):
        done = subprocess.run(
            ["bash", "-c", dry], env={"SLURM_ARRAY_TASK_ID": str(task)},
            text=True, capture_output=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == shlex.join(run.command)


def finished(folder: Path, settings: dict, step: int = 20) -> None:
    """A run's folder, with its results and checkpoints of its own."""
    keys = ("config_name", "command", "process", "sampler", "dataset", "metrics")
    (folder / "checkpoints").mkdir(parents=True)
    results = dict.fromkeys(keys) | {"config": settings, "step": step}
    (folder / "results.json").write_text(json.dumps(results))
    for name in ("config.json", "metrics.jsonl"):
        (folder / name).write_text("")


def test_the_checkpoints_of_any_finished_run_in_the_folder_are_borrowed(tmp_path, monkeypatch):
    (run,) = sweep.plan(CONFIG, grid("sampler.num_steps", [2]), tmp_path)
    launched = []

    def launch(command, **_):
        launched.append(command)
        return really([sys.executable, "-c", ""])

    really = subprocess.Popen
    monkeypatch.setattr(sweep.subprocess, "Popen", launch)
    finished(tmp_path / "another", run.settings | {"seed": 1})
    finished(tmp_path / "broken off", run.settings, step=10)
    assert sweep.run_all([run]) == [] and "--mode=eval" not in launched.pop()
    finished(tmp_path / "same", run.settings | {"sampler": {"name": "heun"}})
    assert sweep.run_all([run]) == [] and "--mode=eval" in launched.pop()
    assert (run.workdir / "checkpoints").resolve() == tmp_path / "same" / "checkpoints"
    assert json.loads((run.workdir / "config.json").read_text()) == run.settings
    # The lender is gone: nothing is trained through the link that is left.
    (tmp_path / "same" / "results.json").unlink()
    assert sweep.run_all([run]) == [] and "--mode=eval" not in launched.pop()
    assert not (run.workdir / "checkpoints").is_symlink()
    # A run that has begun to train goes on by itself.
    finished(tmp_path / "also the same", run.settings)
    (run.workdir / "checkpoints").mkdir()
    assert sweep.run_all([run]) == [] and "--mode=eval" not in launched.pop()


SWEEP_FILE = """
from zsnr_jax.sweep import cross, grid
def get_sweep():
    tiny = cross(grid("train.num_steps", [10]), grid("evaluation.num_samples", [8]))
    return cross(tiny, grid("sampler.spacing", ["trailing", "linspace"]))
"""


def start(workdir: Path, file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zsnr_jax.sweep", f"--config={CONFIG}", f"--sweep={file}",
         f"--workdir={workdir}"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def launch(workdir: Path, file: Path) -> subprocess.CompletedProcess[str]:
    process = start(workdir, file)
    out, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def test_a_sweep_is_run_once_and_goes_on_where_it_was_broken_off(tmp_path):
    file, workdir = tmp_path / "two.py", tmp_path / "runs"
    file.write_text(SWEEP_FILE)
    asked = start(workdir, file)
    while not list(workdir.glob("*/metrics.jsonl")):
        assert asked.poll() is None
        time.sleep(0.05)
    asked.terminate()
    _, errors = asked.communicate()
    assert asked.returncode == 75 and "Repeat the command to go on." in errors
    (log,) = workdir.glob("*/log.txt")
    assert "stopped by SIGTERM" in log.read_text()  # its run has ended too, and saved
    done = launch(workdir, file)
    assert done.returncode == 0, done.stderr
    rows = json.loads((workdir / "sweep.json").read_text())
    assert [row["overrides"]["sampler.spacing"] for row in rows] == ["trailing", "linspace"]
    assert all(row["name"] in done.stdout for row in rows)
    first, second = (workdir / row["name"] for row in rows)
    assert (second / "checkpoints").is_symlink()  # trained once, since only sampling differs
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    assert results[0]["histogram"] != results[1]["histogram"]
    assert (workdir / "sweep.html").stat().st_size > 10_000
    # Broken off: the second is done again, the first is not touched.
    (second / "results.json").unlink()
    before = (first / "results.json").stat().st_mtime_ns
    assert launch(workdir, file).returncode == 0
    assert (first / "results.json").stat().st_mtime_ns == before
    assert (second / "results.json").exists()
    # Another sweep's folder, and a broken file: one sentence each.
    (second / "results.json").write_text((first / "results.json").read_text())
    refused = launch(workdir, file)
    assert "sampler.spacing='trailing' where this one has 'linspace'" in refused.stderr
    (second / "results.json").write_text("{")
    refused = launch(workdir, file)
    assert (
        refused.stderr.splitlines()[-1].startswith("error: ") and "cannot be read" in refused.stderr
    )
