"""The run under test: a tiny network on two devices, of one process or of two, as users start it.

Both ways add up the same two halves of each batch, so that it may change from one to the other and
still has to end with the same bits.
"""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[2]
NUM_STEPS = 60
HEARTBEAT = 10  # seconds
_SETTINGS = {
    "model.channels": "(16,)",
    "model.attention": "(False,)",
    "train.num_steps": NUM_STEPS,
    "train.save_every": 5,
    "train.keep": 4,
    "train.log_every": 3,
    "train.sample_every": 25,
    "sampler.num_steps": 4,
    "evaluation.num_samples": 64,
    "evaluation.batch_size": 16,
    "parallel.heartbeat": HEARTBEAT,
}
_COMMAND = [
    *(sys.executable, "-m", "zsnr_jax.main", "--config=configs/brightness.py:smoke"),
    *(f"--config.{name}={value}" for name, value in _SETTINGS.items()),
]


class Host:
    """One process of a launch."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if there is still something to send it to."""
        if self.runs:
            self.process.send_signal(number)

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class Run:
    """A workdir, and what is known of the checkpoints in it."""

    def __init__(self, folder: Path, compiled: Path, mode: str) -> None:
        """Args: compiled: where JAX keeps compiled programs, for all launches; mode: pmap, fsdp."""
        self.folder, self._compiled, self._mode = folder, compiled, mode
        self.checkpoints = folder / "checkpoints"
        self.launches = 0
        self._known: dict[int, str] = {}  # steps that were whole, and the digest of their files
        self.damaged: set[int] = set()

    def launch(self, hosts: int) -> list[Host]:
        """Start the command, or repeat it, by one process or by two."""
        self.launches += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        return [self._start(host, hosts, port) for host in range(hosts)]

    def steps(self) -> list[int]:
        """Of the finished checkpoints, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit())

    def whole(self) -> list[int]:
        """The finished checkpoints that no fault has touched, oldest first."""
        return [step for step in self.steps() if step not in self.damaged]

    def look(self) -> list[str]:
        """Between launches: what changed in a checkpoint that nothing was done to."""
        before = self._known
        self._known = {step: _digest(self.checkpoints / str(step)) for step in self.whole()}
        return [
            f"checkpoint {step} changed by itself"
            for step, digest in self._known.items()
            if before.get(step, digest) != digest
        ]

    def went_on_from(self, host: Host) -> int | None:
        """The step that a launch says it goes on from; None where it has not said so."""
        found = re.search(r"Going on from step (\d+) of", host.said)
        return int(found[1]) if found else None

    def differences(self, other: "Run") -> list[str]:
        """What differs between two runs that have ended: arrays, log, results and pictures."""
        mine, theirs = self._result(), other._result()
        return [name for name in sorted(mine | theirs) if not _equal(name, mine, theirs)]

    def _start(self, host: int, hosts: int, port: int) -> Host:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // hosts}",
            "JAX_COMPILATION_CACHE_DIR": str(self._compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            # As SLURM starts two processes.
            **({"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": str(hosts), "SLURM_PROCID": str(host),
                "SLURM_LOCALID": str(host), "JAX_COORDINATOR_PORT": str(port)}
               if hosts > 1 else {}),
        }  # fmt: skip
        chosen = [f"--workdir={self.folder}", f"--config.parallel.mode={self._mode}"]
        command = [*_COMMAND, *chosen, *(["--multihost"] * (hosts > 1))]
        log = self._compiled.parent / f"log-{self.folder.name}-{self.launches}-{host}.txt"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        return Host(process, log)

    def _result(self) -> dict[str, Any]:
        state = self.checkpoints / str(NUM_STEPS) / "state"
        found: dict[str, Any] = {f"array {name}": x for name, x in _arrays(state).items()}
        for line in (self.folder / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            del row["steps_per_second"]
            found[f"log of step {row['step']}"] = row
        results = json.loads((self.folder / "results.json").read_text())
        found |= {f"result {name}": value for name, value in results["metrics"].items()}
        for path in (self.folder / "samples").iterdir():
            found[f"file {path.name}"] = path.read_bytes()
        return found


def wait_for(condition: Any, seconds: float) -> bool:
    """Wait until a condition holds. Returns: whether it came to hold in time."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def _digest(folder: Path) -> str:
    """Of all files of a folder and their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _arrays(state: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, as they lie on disk."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(state).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(state, ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree.leaves_with_path(restored)
    return {jax.tree_util.keystr(path): value for path, value in leaves}


def _equal(name: str, mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    if name not in mine or name not in theirs:
        return False
    return np.array_equal(mine[name], theirs[name])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
