"""What an experiment is made of, and what it leaves: numbers beside the paper's, and a figure.

An experiment's module holds one `EXPERIMENT`, and is run as

  python -m experiments.NAME [--smoke] [--out=FOLDER] [--workdir=FOLDER]

where --workdir is for the experiments that sample trained networks: they train there what is not
yet trained (`experiments/trained.py`). It measures, writes NAME.json and NAME.png into
experiments/results (or FOLDER), prints its table, and only then asserts the direction of the claim,
so that a surprise is on record too. `--smoke` measures less, to see that everything runs; its
numbers mean nothing, and are not asserted. `--redraw` draws what is on record again.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from zsnr_jax import files, parallel, plotting
from zsnr_jax.claims import COLUMNS, cells
from zsnr_jax.errors import UsageError

RESULTS = Path(__file__).parent / "results"


class Experiment(NamedTuple):
    """A claim of the paper, and what is done about it."""

    name: str  # of its module
    place: str  # in the paper: "Section 5.1, Figure 4"
    claim: str  # one sentence
    # smoke -> "rows", as `row` makes them, and whatever the figure needs, as JSON can hold it.
    # (smoke, workdir) -> the same, where the experiment is trained.
    measure: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], Figure]
    check: Callable[[dict[str, Any]], None]  # AssertionError where the claim does not hold
    paper: str  # what the paper gives for it: a number, "argued", "pictures"
    summary: Callable[[dict[str, Any]], str]  # what we find, in a line of the README's table
    trained: bool = False  # it samples networks that are trained in --workdir


def row(what: str, paper: Any = None, predicted: Any = None, ours: Any = None) -> dict[str, Any]:
    """A line of an experiment's table: numbers, lists or words; None where there is none.

    Args: paper: what the paper prints; predicted: by a closed form; ours: measured.
    """
    return {"what": what, "paper": paper, "predicted": predicted, "ours": ours}


def measured(results: dict[str, Any]) -> dict[str, Any]:
    """What was measured, by the words of its row."""
    return {line["what"]: line["ours"] for line in results["rows"]}


def run(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Measure, write, draw, print, assert."""
    parser = argparse.ArgumentParser(description=experiment.claim)
    parser.add_argument("--smoke", action="store_true", help="measure less, and assert nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--redraw", action="store_true", help="measure nothing, draw again")
    if experiment.trained:
        parser.add_argument("--workdir", type=Path, help="of trained networks")
    options = parser.parse_args(arguments)
    if experiment.trained and not (options.workdir or options.redraw):
        parser.error("give the folder of trained networks by --workdir=")
    if options.smoke and options.out.resolve() == RESULTS:
        parser.error("--smoke would overwrite the results on record: give it a folder by --out=")
    path = options.out / f"{experiment.name}.json"
    try:
        record = _on_record(path) if options.redraw else _measure(experiment, options)
    except UsageError as error:
        sys.exit(f"error: {error}")
    record |= _told(experiment)
    write = lambda: files.write_text(path, json.dumps(record, indent=1) + "\n")  # noqa: E731
    options.out.mkdir(parents=True, exist_ok=True)
    write()  # at once: what was measured is not lost by what follows
    print(table(record["rows"]))
    plotting.save_figure(path.with_suffix(".png"), experiment.draw(record))
    if not options.smoke:
        record |= {"summary": experiment.summary(record), "holds": _holds(experiment, record)}
        write()
        experiment.check(record)


def _told(experiment: Experiment) -> dict[str, str]:
    """What a record says before anything is measured."""
    return {name: getattr(experiment, name) for name in ("name", "place", "claim", "paper")}


def _on_record(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): measure, without --redraw.") from error


def _measure(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """The record of an experiment, but for its summary and whether it holds."""
    start = time.perf_counter()
    where = [options.workdir] if experiment.trained else []
    results = experiment.measure(options.smoke, *where)
    return {
        **_told(experiment),
        "summary": None,  # this and whether it holds are told when all is on file
        "command": _command(experiment, options),
        "hardware": parallel.describe(),
        "seconds": round(time.perf_counter() - start, 1),
        "holds": None,
        **results,
    }


def _command(experiment: Experiment, options: argparse.Namespace) -> str:
    words = ["python", "-m", f"experiments.{experiment.name}"]
    words += [f"--workdir={options.workdir}"] if experiment.trained else []
    return " ".join(words + ["--smoke"] * options.smoke)


def _holds(experiment: Experiment, results: dict[str, Any]) -> bool:
    try:
        experiment.check(results)
    except AssertionError:
        return False
    return True


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as text, in columns."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )
