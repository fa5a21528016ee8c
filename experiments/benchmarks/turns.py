"""Variants timed in turn, each in a process of its own: what else a machine does meets them alike.

One process a variant, since the threads of two libraries would get in each other's way; it rests
while another runs. Ratios are of neighbours in time, so that a slow minute is in both their terms.
"""

import datetime
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments import machine

Run = Callable[[], Any]  # does the work once, and comes back when it is done
Make = Callable[[], Run]  # makes ready; a module's function, or a partial of one: it is pickled


class Timed(NamedTuple):
    """What one variant took."""

    first: float  # seconds of the first call, with all that is compiled for it
    seconds: list[float]  # of the calls after it, one a round
    peak_gigabytes: float  # of the memory of its process, with the libraries

    @property
    def median(self) -> float:
        """Of the calls after the first."""
        return statistics.median(self.seconds)

    def times_faster_than(self, other: "Timed") -> dict[str, float]:
        """The other's seconds over these, round by round: the median, and the middle half."""
        ratios = [theirs / mine for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        return {"ratio": median, "low": low, "high": high}


def in_turn(variants: Mapping[str, Make], rounds: int) -> dict[str, Timed]:
    """Time each variant once a round, for so many rounds after the first call of each."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, make in variants.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, make), daemon=True).start()
    try:
        told = {name: [_ask(pipe)] for name, pipe in pipes.items()}
        for _ in tqdm(range(rounds), desc=" against ".join(variants), unit="round", leave=False):
            for name, pipe in pipes.items():
                told[name].append(_ask(pipe))
    finally:
        for pipe in pipes.values():
            pipe.close()
    return {
        name: Timed(calls[0][0], [seconds for seconds, _ in calls[1:]], calls[-1][1])
        for name, calls in told.items()
    }


def about(command: str) -> dict[str, Any]:
    """What stands beside every figure: how it was made, on what, and when."""
    return {
        "command": command,
        "machine": machine.processor(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: _version(name) for name in ("jax", "flax", "torch", "diffusers")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ask(pipe: Connection) -> tuple[float, float]:
    """Seconds of a call, and gigabytes so far."""
    pipe.send(None)
    return pipe.recv()


def _serve(pipe: Connection, make: Make) -> None:
    """Run whenever asked, and tell the seconds, until nobody is there to ask."""
    run = make()
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((seconds, kilobytes / 1e6))
