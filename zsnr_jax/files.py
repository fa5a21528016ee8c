"""Files that a run writes: whole, or as they were before. Files from anywhere: read within limits.

Whoever made a file may have made it to do harm. So it must be a regular file, its size is looked at
before it is read, JSON is taken strictly, and what an error or a value says is shown on one line.
"""

import collections
import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zsnr_jax.errors import UsageError

MAX_TEXT = 2**24  # bytes; the longest of a model's folder, tokenizer.json, has 4 million
MAX_ROWS = 2**28  # bytes of a metrics.jsonl: half a million rows
_DEEPEST = 32  # levels of JSON in JSON; ours and those of models have 5
_DIGITS = 64  # of a whole number in JSON; "no limit" is written with 31
# What comes of values that are of another kind, or of another size, than they should be.
_BROKEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_SHOWN, _SAID = 80, 200  # signs of a value, and of an error, in a sentence


def write_text(path: Path, text: str) -> None:
    """Write a file at once: a kill leaves the old one or the new one, never half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same, of bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk, say


def read_bytes(path: Path, most: int) -> bytes:
    """All of a regular file of at most `most` bytes.

    Links are followed: caches of models are made of them.
    Raises: OSError, of which `strerror` says why, for what is no such file.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if about.st_size > most:
        said = f"its {about.st_size} bytes are more than the {most} that such a file may have"
        raise OSError(errno.EFBIG, said)
    with path.open("rb") as file:
        return file.read(about.st_size)


def read_text(path: Path, remedy: str, most: int = MAX_TEXT, name: str | None = None) -> str:
    """All of a text file in UTF-8.

    Args: remedy: what to do about one that is broken.  most: bytes.  name: for the sentence; the
      path by default.
    Raises: FileNotFoundError, since what that means is the caller's; else UsageError.
    """
    with readable(name or path, remedy):
        return read_bytes(path, most).decode("utf-8-sig")


def read_json(path: Path, remedy: str, finite: bool = True) -> Any:
    """The value in a JSON file. Args and errors as of `read_text`, and `finite` of `parse_json`."""
    with readable(path, remedy):
        return parse_json(read_text(path, remedy), finite)


@contextlib.contextmanager
def readable(name: str | Path, remedy: str) -> Iterator[None]:
    """Tell in one sentence what a broken file brings about where it is read, and its values used.

    Args: name: the file.  remedy: as of `read_text`.
    """
    try:
        yield
    except (UsageError, FileNotFoundError):
        raise
    except _BROKEN as error:
        raise UsageError(f"{name} cannot be read ({reason(error)}): {remedy}.") from error


def parse_json(text: str, finite: bool = True) -> Any:
    """The value of a JSON text, strictly: each key once, and nothing nested deeply.

    Args: finite: refuse numbers that are not; what we write may hold NaN where nothing was found.
    Raises: ValueError.
    """
    number = _finite if finite else float
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=number,
            parse_float=number,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    level, depth = [value], 1
    while level := [part for whole in level for part in _parts(whole)]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"its values are nested deeper than {_DEEPEST} levels")
    return value


def reason(error: BaseException) -> str:
    """What an error says, for a sentence: its first line, not for long, nothing unprintable."""
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    line = next(iter(said.splitlines()), "") or type(error).__name__
    line = "".join(sign if sign.isprintable() else "?" for sign in line).rstrip(".:; ")
    return line if len(line) <= _SAID else f"{line[:_SAID]}.."


def shown(value: Any) -> str:
    """A value of a file, for a sentence: as `repr` has it, on one line, and not for long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}.."


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl by step; of a step that stands twice, the last.

    None where the file is missing; a last line that a kill cut short is left out.
    Raises: UsageError where another line is broken, or the file cannot be read.
    """
    try:
        lines = read_text(path, "delete it or mend it", MAX_ROWS).rstrip("\n").split("\n")
    except FileNotFoundError:
        return []
    by_step = {}
    for i, line in enumerate(lines):
        try:
            row = _row(line)
            by_step[row["step"]] = row
        except ValueError as error:
            if i + 1 < len(lines):
                said = f"line {i + 1} of {path} cannot be read ({reason(error)})"
                raise UsageError(f"{said}: mend or delete the line.") from error
    return [by_step[step] for step in sorted(by_step)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings under their full names: {"sampler.eta": 0.0, ...}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return leaves


def _row(line: str) -> dict[str, Any]:
    """A row of metrics, in which the loss of a step that went wrong may be NaN."""
    try:
        row = json.loads(line, parse_int=_whole) if len(line) <= MAX_TEXT else None
    except RecursionError:
        row = None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError("it is no row with a step")
    for name, value in row.items():
        parts = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, int | float | str) for part in parts):
            raise ValueError(f"its {shown(name)} is no number")
    return row


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it has the key {shown(twice)} twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"it has a number that is not finite, {shown(text)}")
    return number


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"it has a number of {len(text)} digits")
    return int(text)


def _parts(value: Any) -> Sequence[Any]:
    """The values in a list or an object, that are lists or objects."""
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in within if isinstance(part, dict | list)]
