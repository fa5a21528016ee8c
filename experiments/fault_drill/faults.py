"""The faults of the drill: what is done to a run, and what it owes in return.

Each function takes the run and returns the kind of fault, as the report counts it, and what went
wrong; nothing did where that is empty.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.fault_drill.run import HEARTBEAT, Host, Run, wait_for
from zsnr_jax.errors import Preempted

Outcome = tuple[str, list[str]]  # the kind, and what went wrong

_PATIENCE = 90  # seconds in which a process has to do what it owes, on a slow machine
_TO_FIND = 300  # seconds for which hosts look for each other, by JAX's default
_GONE = (75, -signal.SIGABRT)  # the codes of a host that has lost another


def kill(run: Run, hosts: list[Host], rng: random.Random) -> Outcome:
    """kill -9, of every process."""
    del run, rng
    for host in hosts:
        host.send(signal.SIGKILL)
    return "kill -9", _all_end(hosts)


def ask_to_end(run: Run, hosts: list[Host], rng: random.Random) -> Outcome:
    """A signal to one process, upon which all have to save and end, with the code for it."""
    del run
    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    rng.choice(hosts).send(number)
    wrong = _all_end(hosts)
    allowed = {0, Preempted.exit_code}
    early = {-number} if "parameters" not in hosts[0].said else set()  # Python is still starting
    for host in hosts:
        if host.process.returncode not in allowed | early | ({*_GONE} if early else set()):
            wrong.append(f"{number.name} made it exit with {host.process.returncode}")
    return number.name, wrong


def lose_host(run: Run, hosts: list[Host], rng: random.Random) -> Outcome:
    """kill -9 of one process of two: the other has to notice, and end.

    As a rule it says who is gone; JAX's runtime may be quicker, and abort, or crash, which is told.
    """
    del run
    lost = rng.randrange(len(hosts))
    hosts[lost].send(signal.SIGKILL)
    other = hosts[1 - lost]
    wrong = []
    found = "parameters" in other.said or "Gloo" in other.said
    if not other.ends_within((HEARTBEAT if found else _TO_FIND) + _PATIENCE):
        wrong.append("the other process did not notice")
        other.send(signal.SIGKILL)
    elif other.process.returncode not in (0, *_GONE, -signal.SIGSEGV, *([] if found else [1])):
        wrong.append(f"the other process exited with {other.process.returncode}")
    hosts[lost].process.wait()
    crashed = other.process.returncode == -signal.SIGSEGV
    return "lost host, JAX crashed" if crashed else "lost host", wrong


def fill_disk(run: Run, hosts: list[Host], rng: random.Random) -> Outcome:
    """No room, or no longer files than so many bytes; then room again, and the run has to save."""
    room = rng.randrange(2_000_000)
    fill = _ballast if os.path.ismount(run.folder.parent) else _file_limit
    with fill(run, hosts, room):
        wait_for(lambda: "not saved" in hosts[0].said or not hosts[0].runs, rng.uniform(1, 6))
    if not hosts[0].runs:
        code = hosts[0].process.returncode
        fine = code == 0 or (code == 1 and "error: " in hosts[0].said)
        return "full disk", [] if fine else [f"a full disk made it exit with {code}"]
    before = run.steps()
    saved = wait_for(lambda: run.steps() != before or not hosts[0].runs, _PATIENCE)
    return "full disk", [] if saved else ["it did not save once there was room"]


def truncate(run: Run, rng: random.Random) -> Outcome:
    """Cut a file of the newest checkpoint short."""
    path = _victim(run, rng)
    with path.open("r+b") as file:
        file.truncate(rng.randrange(max(path.stat().st_size, 1)))
    return "truncated file", []


def flip_bits(run: Run, rng: random.Random) -> Outcome:
    """Flip one to eight bits in a file of the newest whole checkpoint."""
    path = _victim(run, rng)
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return "flipped bits", []


def delete(run: Run, rng: random.Random) -> Outcome:
    """Delete a file of the newest whole checkpoint."""
    _victim(run, rng).unlink()
    return "deleted file", []


TO_FILES: list[Callable[[Run, random.Random], Outcome]] = [truncate, flip_bits, delete]


def _victim(run: Run, rng: random.Random) -> Path:
    """A file of the newest whole checkpoint: the arrays' as often as any of the others."""
    step = run.whole()[-1]
    run.damaged.add(step)
    files = sorted(p for p in (run.checkpoints / str(step)).rglob("*") if p.is_file())
    large = [path for path in files if path.stat().st_size > 1000]
    return rng.choice(large if large and rng.random() < 0.5 else files)


def _all_end(hosts: list[Host]) -> list[str]:
    late = [i for i, host in enumerate(hosts) if not host.ends_within(_PATIENCE)]
    for host in hosts:
        host.send(signal.SIGKILL)
        host.process.wait()
    return [f"process {i} did not end" for i in late]


@contextlib.contextmanager
def _ballast(run: Run, hosts: list[Host], room: int) -> Iterator[None]:
    """Fill the file system of the run but for so many bytes."""
    del hosts
    path = run.folder.parent / "ballast"
    try:
        with contextlib.suppress(OSError), path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(path.parent).free - room)
        yield
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _file_limit(run: Run, hosts: list[Host], room: int) -> Iterator[None]:
    """Refuse the processes longer files than so many bytes, as a quota would."""
    del run
    for host, limit in [(host, room // 10) for host in hosts]:
        _set_file_limit(host, limit)
    try:
        yield
    finally:
        for host in hosts:
            _set_file_limit(host, resource.RLIM_INFINITY)


def _set_file_limit(host: Host, limit: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        hard = resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (limit, hard))


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of so many bytes at a folder, where this user may mount one.

    Yields: whether there is one. Without it, processes are refused long files instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
