"""What `sd21` measures: batches that double until memory is out, and then both sides in turn."""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.benchmarks.sd21_sides import VARIANTS
from experiments.benchmarks.turns import Make, OutOfMemory, Timed, in_turn

_PAIR = ("ours", "torch")
_SHARE = 0.9  # of the memory, which two processes may fill


def measure(
    found: dict[str, Any], chosen: argparse.Namespace, makes: Callable[..., Make]
) -> Iterator[None]:
    """Add to found["points"] and found["beside"] what is not there yet; one yield for each.

    Args: makes(task, variant, batch, alone): what a process is to make ready.
    """
    for task in chosen.only:
        for variant in chosen.variants:
            if task == "sample" and VARIANTS[variant].remat:  # nothing is stored
                continue
            mine = [r for r in found["points"] if (r["task"], r["variant"]) == (task, variant)]
            run = functools.partial(_alone_on_it, makes, task, variant, chosen.rounds)
            for row in doubling(run, chosen.first, chosen.most, mine):
                found["points"].append({"task": task, "variant": variant, **row})
                yield
        if {*_PAIR} <= {*chosen.variants} and task not in found["beside"]:
            batches = fit_together(found["points"], task, found["memory_gigabytes"])
            found["beside"] |= _first_that_fits(makes, task, batches, chosen.rounds)
            yield


def doubling(
    run: Callable[[int], Timed], first: int, most: int, done: Sequence[dict[str, Any]] = ()
) -> Iterator[dict[str, Any]]:
    """Run with batches that double, until memory is out or they are past `most`.

    Args: done: rows of earlier calls. Yields: a row of each other batch.
    """
    known = {row["batch"] for row in done}
    most = min([most, *(row["batch"] for row in done if "seconds" not in row)])
    for batch in itertools.takewhile(lambda batch: batch <= most, _doubled(first)):
        if batch in known:
            continue
        try:
            yield {"batch": batch, **_times(run(batch))}
        except OutOfMemory as error:
            yield {"batch": batch, "out_of_memory": str(error)[:300]}
            return


def fit_together(
    points: Sequence[dict[str, Any]], task: str, memory_gigabytes: float | None
) -> list[int]:
    """The batches at which ours and torch's fit together, by their peaks; largest first."""
    peaks = {
        name: {
            row["batch"]: row["peak_gigabytes"]
            for row in points
            if (row["task"], row["variant"]) == (task, name) and "seconds" in row
        }
        for name in _PAIR
    }
    room = _SHARE * (memory_gigabytes or float("inf"))
    both = set.intersection(*map(set, peaks.values()))
    fit = [batch for batch in both if sum(peak[batch] for peak in peaks.values()) <= room]
    return sorted(fit, reverse=True)


def _first_that_fits(
    makes: Callable[..., Make], task: str, batches: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Ours and torch's in turn, at the first of these batches for which there is memory."""
    for batch in batches:
        try:
            timed = in_turn({name: makes(task, name, batch, False) for name in _PAIR}, rounds)
        except OutOfMemory:
            continue
        seconds = {name: found.median for name, found in timed.items()}
        faster = timed["ours"].times_faster_than(timed["torch"])
        return {task: {"batch": batch, "seconds": seconds, "times_faster": faster}}
    return {}


def _alone_on_it(
    makes: Callable[..., Make], task: str, variant: str, rounds: int, batch: int
) -> Timed:
    """A variant with the device to itself."""
    return in_turn({variant: makes(task, variant, batch, True)}, rounds)[variant]


def _doubled(first: int) -> Iterator[int]:
    return (first << doublings for doublings in itertools.count())


def _times(timed: Timed) -> dict[str, Any]:
    return {
        "seconds": timed.median,
        "calls": timed.seconds,
        "first_call": timed.first,
        "peak_gigabytes": timed.peak_gigabytes,
    }
