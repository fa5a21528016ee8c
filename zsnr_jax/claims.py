"""The page of all claims: what the paper says, what a closed form predicts, and what we find.

    python -m zsnr_jax.report experiments/results     writes experiments/results/report.html

It reads the JSON that experiments leave, and the PNG beside each; no model, no JAX.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from zsnr_jax import files, page
from zsnr_jax.errors import UsageError

COLUMNS = ("what", "paper", "predicted", "ours")
_KEYS = (
    "name", "place", "claim", "paper", "summary", "command", "hardware", "seconds", "rows", "holds"
)  # fmt: skip


def load(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of all claims in a folder, by name; other JSON is passed over.

    Raises: UsageError where a file cannot be read, or a record or its picture is not whole.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        record = files.read_json(path, "run its experiment again", finite=False)
        if not isinstance(record, dict) or "claim" not in record:
            continue
        remedy = f"run python -m experiments.{path.stem} again"
        if missing := [key for key in _KEYS if key not in record]:
            raise UsageError(f"{path} lacks {', '.join(missing)}: {remedy}.")
        if record["name"] != path.stem:  # which is the name of its picture too
            name = files.shown(record["name"])
            raise UsageError(f"{path} is of the claim {name}: {remedy}, or rename it.")
        if not path.with_suffix(".png").exists():
            raise UsageError(f"there is no {path.with_suffix('.png')}: {remedy}.")
        records.append(record)
    return records


def write(folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Write the page of a folder's claims, and return its path."""
    records = load(folder)
    held = sum(record["holds"] is True for record in records)
    sections = []
    for record in records:
        remedy = f"run python -m experiments.{record['name']} again"
        with files.readable(folder / f"{record['name']}.json", remedy):
            sections.append(_claim(record, folder / f"{record['name']}.png", remedy))
    body = [
        "<header><h1>The paper's claims, in numbers</h1>"
        f"<p class=verdict>{held} of {len(records)} claims hold as asserted. Each stands with what "
        "the paper prints, what a closed form predicts, what was measured, and the command."
        "</p></header>",
        *sections,
    ]
    return page.write(out, "The paper's claims, in numbers", "\n".join(body))


def _claim(record: Mapping[str, Any], png: pathlib.Path, remedy: str) -> str:
    picture, _ = page.picture(png, remedy)
    verdict = {True: "It holds.", False: "It does not hold here.", None: "Measured in small only."}
    on = ", on networks that were trained before" if "--workdir" in record["command"] else ""
    seconds = f"{page.duration(record['seconds'], 'measured')}{on}"
    summary = record["summary"]
    paper = "" if record["paper"] == "-" else f"The paper: {page.text(record['paper'])}. "
    said = f"<p>{paper}Here: {page.text(summary)}.</p>" if summary else ""
    return (
        f"<section><h2>{page.text(record['claim'])}</h2>"
        f"<p class=quiet>{page.text(record['place'])}. {verdict[record['holds']]}</p>{said}"
        f'<figure><img src="{picture}" alt="{page.text(record["claim"])}"></figure>'
        f"{_table(record['rows'])}<pre>{page.text(record['command'])}</pre>"
        f"<p class=quiet>{page.text(seconds)} on {page.text(record['hardware'])}</p></section>"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [(page.text(what), [page.text(c) for c in rest]) for what, *rest in map(cells, rows)]
    return page.table(["", "the paper", "predicted", "ours"], lines)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text: with seven digits where the paper prints a number, else with four."""
    digits = 7 if isinstance(row["paper"], float) else 4
    return [_shown(row[column], digits) for column in COLUMNS]


def _shown(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(_shown(part, digits) for part in value)
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
