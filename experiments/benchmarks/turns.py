"""Variants timed in turn, each in a process of its own: what else a machine does meets them alike.

One process a variant, since the threads of two libraries would get in each other's way; it rests
while another gets ready or runs. Ratios are of neighbours in time, so that a slow minute is in both
their terms; every other round goes backwards, so that none always follows the same one.
"""

import contextlib
import datetime
import multiprocessing
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments import machine
from experiments.benchmarks.spread import middle_half

Run = Callable[[], Any]  # does the work once, and comes back when it is done
Make = Callable[[], Run]  # makes ready; a module's function, or a partial of one: it is pickled
_ROOT, _STATUS = Path(__file__).parents[2], Path("/proc/self/status")
_PATIENCE = 60  # seconds that a process may take to end
# How JAX, torch, cuBLAS and Python say it.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "ALLOC_FAILED", "MemoryError")


class OnDevice(NamedTuple):
    """A run that tells the memory it took of a device, of which its process says nothing."""

    run: Run
    peak_bytes: Callable[[], float]

    def __call__(self) -> Any:
        """Run it."""
        return self.run()


class OutOfMemory(Exception):
    """What a variant needs is not there."""


class Timed(NamedTuple):
    """What one variant took."""

    first: float  # seconds of the first call, with all that is compiled for it
    seconds: list[float]  # of the calls after it, one a round
    peak_gigabytes: float  # of its memory: a device's, or its process's with the libraries

    @property
    def median(self) -> float:
        """Of the calls after the first."""
        return statistics.median(self.seconds)

    def times_faster_than(self, other: "Timed") -> dict[str, float]:
        """The other's seconds over these, round by round: the median, and the middle half."""
        ratios = [theirs / mine for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        found = middle_half(ratios)
        return {"ratio": found.pop("median"), **found}


def in_turn(variants: Mapping[str, Make], rounds: int, calls: int = 1) -> dict[str, Timed]:
    """Time each variant once a round, for so many rounds after the first call of each.

    Args: calls: one after another in a turn; the seconds are of one.
    Raises: OutOfMemory where one of them lacks it.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    with contextlib.ExitStack() as workers:
        for name, make in variants.items():
            pipes[name] = workers.enter_context(_worker(context, make))
        told = {name: [_ask(pipe)] for name, pipe in pipes.items()}
        for i in tqdm(range(rounds), desc=" against ".join(variants), unit="round", leave=False):
            for name in reversed(pipes) if i % 2 else pipes:
                told[name].append(_ask(pipes[name], calls))
    return {
        name: Timed(calls[0][0], [seconds for seconds, _ in calls[1:]], calls[-1][1])
        for name, calls in told.items()
    }


def about(command: str) -> dict[str, Any]:
    """What stands beside every figure: how it was made, on what, and when."""
    return {
        "command": command,
        "machine": machine.processor(),
        "commit": machine.commit(_ROOT),
        "date": datetime.date.today().isoformat(),
        "versions": {name: _version(name) for name in ("jax", "flax", "torch", "diffusers")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextlib.contextmanager
def _worker(context: SpawnContext, make: Make) -> Iterator[Connection]:
    """A process that is ready, and serves until it is left; a device's memory is free, then, too.

    Raises: OutOfMemory where it lacked that to get ready.
    """
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make), daemon=True)
    process.start()
    theirs.close()  # or nothing would tell that the process has ended
    try:
        _receive(ours)
        yield ours
    finally:
        ours.close()
        process.join(_PATIENCE)
        process.kill()


def _ask(pipe: Connection, calls: int = 1) -> tuple[float, float]:
    """Seconds of a call, and gigabytes so far."""
    pipe.send(calls)
    return _receive(pipe)


def _receive(pipe: Connection) -> Any:
    """What the process tells. Raises: OutOfMemory where it tells that."""
    told = pipe.recv()
    if isinstance(told, OutOfMemory):
        raise told
    return told


def _serve(pipe: Connection, make: Make) -> None:
    """Say when ready; then run whenever asked, and tell the seconds, until nobody asks."""
    try:
        run = make()
    except Exception as error:
        pipe.send(_refusal(error))
        return
    pipe.send(None)
    while True:
        try:
            calls = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_timed(run, calls))
        except Exception as error:
            pipe.send(_refusal(error))


def _timed(run: Run, calls: int) -> tuple[float, float]:
    """Seconds of a call, and gigabytes so far."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    seconds = (time.perf_counter() - start) / calls
    peak = run.peak_bytes() if isinstance(run, OnDevice) else peak_resident()
    return seconds, peak / 1e9


def peak_resident() -> int:
    """The most bytes that this process has held at a time."""
    if _STATUS.exists():  # on Linux, where rusage counts what its parent had held, too
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _refusal(error: Exception) -> OutOfMemory:
    """What to tell of an error. Raises: it, where it is not for want of memory."""
    told = f"{type(error).__name__}: {error}"
    if any(word in told for word in _OUT_OF_MEMORY):
        return OutOfMemory(told.splitlines()[0])
    raise error
