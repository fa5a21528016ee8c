"""What the benchmarks' commands have in common: options, refused before anything is measured."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path


def parser(doc: str | None, result: Path) -> argparse.ArgumentParser:
    """Of a benchmark: the first line of its docstring, and --out, which is `result` by default."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--out", type=_to_write, default=result, help="a JSON")
    return made


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def some_of(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """Names with commas between them."""

    def names(text: str) -> list[str]:
        told = text.split(",")
        if unknown := [name for name in told if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: choose of {', '.join(allowed)}")
        return told

    return names


def _to_write(text: str) -> Path:
    path = Path(text)
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder that can be written to")
    return path
