"""Text files that a run writes and reads again: whole, or as they were before."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsnr_jax.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write a file at once: a kill leaves the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk, say


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl by step; of a step that stands twice, the last.

    None where the file is missing; a last line that a kill cut short is left out.
    Raises: UsageError where another line is broken.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    by_step = {}
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            by_step[row["step"]] = row
        except (ValueError, KeyError, TypeError) as error:
            if i + 1 < len(lines):
                raise UsageError(
                    f"line {i + 1} of {path} cannot be read ({error}): mend or delete the line."
                ) from error
    return [by_step[step] for step in sorted(by_step)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings under their full names: {"sampler.eta": 0.0, ...}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return leaves
