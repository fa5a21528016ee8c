"""What all benchmarks found, as rows of one table: read from their JSONs alone."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Found = Mapping[str, Any]  # a benchmark's JSON
TIMES_FASTER = "times faster"  # the unit of rows that compare ours with another's


class Cell(NamedTuple):
    """A figure, and what it stands against; low and high are the middle half of the rounds.

    What stands before a colon is drawn as one.
    """

    what: str
    value: float
    unit: str
    against: str = ""
    low: float | None = None
    high: float | None = None


def collect(folder: Path) -> list[dict[str, Any]]:
    """The rows of all benchmarks whose JSON is in the folder, each with how it was made."""
    rows = []
    for name, cells in READERS.items():
        path = folder / f"{name}.json"
        if path.exists():
            found = _read(path)
            made = {
                "command": found["command"],
                "machine": found["machine"],
                "date": found["date"],
            }
            rows += [{**cell._asdict(), **made} for cell in cells(found)]
    return rows


def _read(path: Path) -> Found:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise SystemExit(f"error: {path} is no JSON ({error}): measure it anew.") from None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown; commands and machines under it, each once."""
    lines = ["| what | value | unit | against | middle half | by |", "|---|---|---|---|---|---|"]
    made = list(dict.fromkeys((row["command"], row["machine"], row["date"]) for row in rows))
    for row in rows:
        number = made.index((row["command"], row["machine"], row["date"])) + 1
        cells = [row["what"], f"{row['value']:.3g}", row["unit"], row["against"], spread(row)]
        lines.append(f"| {' | '.join(cells)} | {number} |")
    notes = [
        f"{i}. `{command}`, {machine}, {date}" for i, (command, machine, date) in enumerate(made, 1)
    ]
    return "\n".join([*lines, "", *notes])


def spread(row: Mapping[str, Any]) -> str:
    """The middle half of a row, where it has one."""
    return "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"


def _with_spread(what: str, found: Mapping[str, float], unit: str, against: str = "") -> Cell:
    value = found["median"] if "median" in found else found["ratio"]
    return Cell(what, value, unit, against, found["low"], found["high"])


def _startup(found: Found) -> Iterator[Cell]:
    for name, others in found["times_faster"].items():
        for other, ratio in others.items():
            yield _with_spread(name, ratio, TIMES_FASTER, other)
    for name, seconds in found["seconds"].items():
        yield _with_spread(name, seconds, "s")


def _compiles(found: Found) -> Iterator[Cell]:
    for name, run in found["runs"].items():
        yield Cell(f"smoke run, {name}: programs compiled", run["programs"], "programs")
        yield Cell(f"smoke run, {name}: of them twice", len(run["twice"]), "programs")
        for phase, seconds in run["seconds"].items():
            yield Cell(f"smoke run, {name}: {phase}", seconds, "s")


def _data_rate(found: Found) -> Iterator[Cell]:
    for name, row in found["pipelines"].items():
        if name.startswith("torch"):
            ratio = row["ours_is_times_faster"]
            yield _with_spread("batches of brightness/32", ratio, TIMES_FASTER, name)
        else:
            yield _with_spread(f"batches of {name}", row["per_second"], "batches/s")
            yield Cell(f"batches of {name}", row["times_the_need"], "times the need", "a step")


def _ceiling(found: Found) -> Iterator[Cell]:
    yield _with_spread("large product, float32", found["ceiling_gflops"], "GFLOP/s")
    for name, row in found["programs"].items():
        yield Cell(f"{name}: operations", row["gigaflops"], "GFLOP")
        yield _with_spread(name, row["share_of_ceiling"], "of the ceiling", "large product")


def _layers(found: Found) -> Iterator[Cell]:
    for row in found["rows"]:
        what = f"{row['layer']}{', gradient' if row['gradient'] else ''}"
        what += f": {' x '.join(map(str, row['shape']))}"
        for other, ratio in row["times_faster"].items():
            plain = "plain" if row["layer"] == "feed-forward" else "JAX, Flax"
            against = plain if other == "theirs" else other
            yield _with_spread(what, ratio, TIMES_FASTER, against)


def unet(found: Found) -> Iterator[Cell]:
    """The rows of `unet`, which draws them by itself, too."""
    for task, row in found["rows"].items():
        for other, ratio in row["times_faster"].items():
            yield _with_spread(f"small SD, {task}", ratio, TIMES_FASTER, _spelt(other))
        yield Cell(f"small SD, {task}", row["seconds"]["ours"], "s")


def _spelt(variant: str) -> str:
    return f"diffusers, {variant.replace('compiled_', 'compiled, ').replace('_', ' ')}"


def _main_job(found: Found) -> Iterator[Cell]:
    other = f"version {found['commits']['other']}"
    yield Cell("main job, whole", found["times_faster"], TIMES_FASTER, other)
    for run in found["runs"]["ours"]:
        yield Cell("main job, whole", run["seconds"], "s")
        yield Cell("main job, a step", run["seconds_of_a_step"], "s")


def _checkpoint_cost(found: Found) -> Iterator[Cell]:
    yield _with_spread("checkpoints", found["share_of_training"], "of training")
    yield _with_spread("a checkpoint", found["seconds_of_a_checkpoint"], "s")
    yield _with_spread("a checkpoint, blocking", found["of_which_blocking"], "s")


def _scale(found: Found) -> Iterator[Cell]:
    """Of the most devices and hosts alone; its own tables have the rest."""
    last = {step["mode"]: step for step in found["compiled"]["steps"]}
    for mode, step in last.items():
        if step["sent_of_least"] is not None:
            what = f"sent by a {mode} step on {step['devices']} chips, compiled"
            yield Cell(what, step["sent_of_least"], "times the least")
    row = found["loading"]["fixed_share"][-1]  # a fixed batch is too few rows for so many to time
    yield Cell(f"loading a row, {row['hosts']} hosts", row["ratio"], "times one host's")


def _sd21(found: Found) -> Iterator[Cell]:
    for task, beside in found["beside"].items():
        what = f"Stable Diffusion 2.1, {task}, batch {beside['batch']}"
        yield _with_spread(what, beside["times_faster"], TIMES_FASTER, "diffusers compiled")


READERS: dict[str, Callable[[Found], Iterator[Cell]]] = {
    "startup": _startup,
    "compiles": _compiles,
    "data_rate": _data_rate,
    "ceiling": _ceiling,
    "layers": _layers,
    "unet": unet,
    "sd21": _sd21,
    "main_job": _main_job,
    "checkpoint_cost": _checkpoint_cost,
    "scale": _scale,
}
