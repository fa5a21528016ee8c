"""The main path, end to end, and what a user sees who got something wrong."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from zsnr_jax import main
from zsnr_jax.files import read_rows

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/brightness.py:smoke"


def run(*arguments: str, devices: int = 1, timeout: int = 500) -> subprocess.CompletedProcess[str]:
    """python -m zsnr_jax.main, as a user would."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-m", "zsnr_jax.main", *arguments],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, timeout=timeout, text=True,
        capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished smoke run."""
    workdir = tmp_path_factory.mktemp("run") / "smoke"
    done = run(SMOKE, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert str(workdir / "report.html") in done.stdout
    return workdir


def test_a_run_leaves_everything_it_promises(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["step"] == 20 and results["num_samples"] == 64
    assert set(results["metrics"]) >= {"brightness/std_ratio", "brightness/mean_recovery"}
    assert results["ideal"]["this"]["std_ratio"] > results["ideal"]["flawed"]["std_ratio"]
    rows = read_rows(trained / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert all(np.isfinite(row["loss_at_T"]) and len(row["loss_by_level"]) == 10 for row in rows)
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["10", "20"]
    for name in ("samples", "guided", "data", "ideal_flawed", "step_000010"):
        assert np.ptp(np.asarray(Image.open(trained / "samples" / f"{name}.png"))) > 0
    archive = np.load(trained / "samples" / "samples.npz")
    assert archive["images"].shape == (64, 16, 16, 3) and archive["images"].dtype == np.uint8
    assert (trained / "report.html").stat().st_size > 10_000


def _restored(workdir: Path, step: int):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((workdir / "checkpoints" / str(step) / "state").absolute())


def test_a_killed_run_resumes_as_the_run_that_was_never_stopped(
    trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "killed"
    command = [sys.executable, "-m", "zsnr_jax.main", SMOKE, f"--workdir={workdir}"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not (workdir / "checkpoints" / "10").exists():
            assert process.poll() is None, "the run ended before its first checkpoint"
            time.sleep(0.05)
        process.kill()
    done = run(SMOKE, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "Going on from step 10 of 20" in done.stdout
    whole, parts = _restored(trained, 20), _restored(workdir, 20)
    assert len(jax.tree.leaves(whole)) > 100
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    for mine, theirs in zip(
        read_rows(trained / "metrics.jsonl"), read_rows(workdir / "metrics.jsonl"), strict=True
    ):
        assert (mine["loss"], mine["loss_at_T"]) == (theirs["loss"], theirs["loss_at_T"])


def on_hosts(hosts: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """python -m zsnr_jax.main --multihost, as SLURM starts it, by processes of 4 devices in all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={4 // hosts}"
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(hosts)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "zsnr_jax.main", "--multihost", *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | slurm | {"XLA_FLAGS": flags, "JAX_COORDINATOR_PORT": str(port),
                                      "SLURM_PROCID": str(host), "SLURM_LOCALID": str(host)},
        )
        for host in range(hosts)
    ]  # fmt: skip


def test_two_hosts_learn_what_one_does_lose_one_and_four_go_on_from_what_is_whole(
    tmp_path: Path, monkeypatch
) -> None:
    alone, workdir = tmp_path / "alone", tmp_path / "shared"
    small = ["--config.model.channels=(16,)", "--config.model.attention=(False,)",
             "--config.evaluation.num_samples=8", "--config.sampler.num_steps=2",
             "--config.train.save_every=5"]  # fmt: skip
    assert run(SMOKE, f"--workdir={alone}", *small).returncode == 0
    command = (SMOKE, f"--workdir={workdir}", *small)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    hosts = on_hosts(2, *command, "--config.parallel.heartbeat=20")
    while not (workdir / "checkpoints" / "10").exists():
        assert all(host.poll() is None for host in hosts), [host.communicate() for host in hosts]
        time.sleep(0.05)
    hosts[1].kill()
    _, told = hosts[0].communicate(timeout=100)  # the heartbeat, and time to notice
    assert hosts[0].returncode in (75, -signal.SIGABRT), told
    # By us, or by JAX where it was quicker.
    assert any(name in told for name in ("host 1 of 2", "Task 1", "heartbeats):\n1")), told
    hosts[1].communicate()
    newest = max(int(path.name) for path in (workdir / "checkpoints").glob("*[0-9]"))
    _cut_short(workdir / "checkpoints" / str(newest))
    sliced = on_hosts(4, *command, "--config.parallel.mode=fsdp")
    said = [host.communicate(timeout=500) for host in sliced]
    assert [host.returncode for host in sliced] == [0] * 4, [errors for _, errors in said]
    assert not list(tmp_path.glob("programs/*"))  # restored, they would send in another order
    goes_on = f"Going on from step {newest - 5}"
    assert [goes_on in out for out, _ in said] == [True, False, False, False]
    assert json.loads((workdir / "results.json").read_text())["hardware"] == "4 x CPU on 4 hosts"
    for mine, theirs in zip(
        read_rows(alone / "metrics.jsonl"), read_rows(workdir / "metrics.jsonl"), strict=True
    ):
        for name in ("loss", "grad_norm", "loss_at_T"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), (mine["step"], name)


def test_other_hosts_that_are_not_there_are_an_error() -> None:
    assert "--multihost finds no other hosts" in _sentence(run(SMOKE, "--workdir=x", "--multihost"))


def test_samples_can_be_drawn_in_another_way_and_on_other_devices(
    trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "again"
    shutil.copytree(trained, workdir)
    done = run(SMOKE, f"--workdir={workdir}", "--mode=sample", "--config.sampler.num_steps=3",
               "--config.evaluation.num_samples=5", "--config.sampler.eta=1.0",
               devices=8)  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = np.load(workdir / "drawn" / "samples.npz")["images"]
    assert again.shape == (5, 16, 16, 3)


def test_a_warning_is_one_sentence_too(tmp_path: Path) -> None:
    done = run(SMOKE, f"--workdir={tmp_path}", "--mode=sample",
               "--config.loss.weight=min_snr_zero_at_terminal")  # fmt: skip
    first, last = done.stderr.strip().splitlines()
    assert first.startswith("warning: min_snr_zero_at_terminal is 0 at t = T")
    assert last.startswith("error: ")


def _sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence a user sees; no traceback, and a non-zero exit."""
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


MISTAKES = {
    "unknown key": (["--config.sampler.nmu_steps=3"], "no setting 'nmu_steps', is it 'num_steps'?"),
    "wrong type": (["--config.sampler.num_steps=many"], "many"),
    "unknown value": (["--config.sampler.spacing=trailling"], "leading, linspace, trailing"),
    "eps": (["--config.prediction=eps"], "eps-prediction cannot be used with zero terminal SNR"),
    "no steps": (["--config.sampler.num_steps=0"], "from 1 to T = 1000, and it is 0"),
    "too many steps": (["--config.sampler.num_steps=1001"], "from 1 to T = 1000, and it is 1001"),
    "rescale": (["--config.sampler.guidance_rescale=1.5"], "guidance_rescale must be in [0, 1]"),
    "not a flag": (["smoke"], "'smoke' is not a flag"),
    "unknown flag": (["--wrokdir=x"], "wrokdir"),
    "unknown mode": (["--mode=trian"], "train"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_sentence(mistake: str, tmp_path: Path) -> None:
    arguments, message = MISTAKES[mistake]
    assert message in _sentence(run(SMOKE, f"--workdir={tmp_path / 'run'}", *arguments))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "config, message",
    [
        ("configs/brightness.py:smok", "variant 'smok' is unknown"),
        ("configs/nothing.py", "configs/nothing.py"),
    ],
)
def test_a_wrong_config_file_costs_one_sentence(config: str, message: str, tmp_path: Path) -> None:
    assert message in _sentence(run(f"--config={config}", f"--workdir={tmp_path}"))


def test_a_missing_flag_costs_one_sentence() -> None:
    assert "--workdir is missing" in _sentence(run(SMOKE))


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path: Path) -> None:
    done = run(SMOKE, f"--workdir={tmp_path}", "--config.dataset.batch_size=12", devices=8)
    assert "dataset.batch_size=12 cannot be shared evenly by 8 devices" in _sentence(done)


def test_a_file_in_the_place_of_the_workdir_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "cannot be made" in _sentence(run(SMOKE, f"--workdir={tmp_path / 'run'}"))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_workdir_of_another_run_is_refused(trained: Path) -> None:
    done = run(SMOKE, f"--workdir={trained}", "--config.seed=1")
    assert "holds a different run, with seed=0 where this one has 1" in _sentence(done)


def test_sampling_under_a_contradicting_process_is_refused(trained: Path) -> None:
    done = run(SMOKE, f"--workdir={trained}", "--mode=sample", "--config.prediction=x0")
    sentence = _sentence(done)
    assert "prediction='v'" in sentence and "prediction='x0'" in sentence


def test_sampling_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    done = run(SMOKE, f"--workdir={tmp_path}", "--mode=sample")
    assert "train there first" in _sentence(done)


def _cut_short(checkpoint: Path) -> None:
    files = [p for p in checkpoint.rglob("*") if p.is_file()]
    victim = max(files, key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:100])


def test_a_damaged_checkpoint_is_passed_over_and_kept(trained: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "cut"
    shutil.copytree(trained, workdir)
    _cut_short(workdir / "checkpoints" / "20")
    few = ("--mode=sample", "--config.sampler.num_steps=1", "--config.evaluation.num_samples=2")
    done = run(SMOKE, f"--workdir={workdir}", *few)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "is damaged" in done.stdout and "Going back to step 10." in done.stdout
    assert (workdir / "checkpoints" / "20").is_dir()  # sampling moves nothing
    _cut_short(workdir / "checkpoints" / "10")
    for arguments in (few, ()):  # nor does training, with nothing to go on from
        refused = run(SMOKE, f"--workdir={workdir}", *arguments)
        assert "no checkpoint is whole" in _sentence(refused)
    assert len(list((workdir / "checkpoints").iterdir())) == 2


def test_a_read_that_was_given_up_ends_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorStore tells an event loop that is closed; a task of such a loop is thrown away."""

    async def read() -> None:
        return

    told: list[str] = []
    monkeypatch.setattr(sys, "__unraisablehook__", lambda told_of: told.append(told_of.exc_value))
    task = read()
    for of, message in ((None, "Event loop is closed"), (task, "damaged"), (None, "another")):
        main._unraisable(SimpleNamespace(object=of, exc_value=message))
    task.close()
    assert told == ["another"]


def test_help_helps() -> None:
    done = run("--help")
    text = done.stdout + done.stderr
    for words in ("--config", "--workdir", "--mode", "Train, evaluate or sample", "goes on when"):
        assert words in text
