"""Prompts from a file: lines of text, or of JSON with a negative prompt each."""

import json
from pathlib import Path
from typing import NamedTuple

from zsnr_jax.errors import UsageError


class Prompt(NamedTuple):
    """What a picture should show, and what it must not."""

    text: str
    negative: str = ""


def read_prompts(path: Path) -> list[Prompt]:
    """Read a .txt file, a prompt on each line, or a .jsonl file of {"prompt": .., "negative": ..}.

    Raises: UsageError where the file is missing, broken or empty, or a prompt is.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"evaluation.prompts={path} cannot be read ({error}): give a .txt or .jsonl file."
        ) from error
    read = _read_json if path.suffix == ".jsonl" else lambda line, where: Prompt(line.strip())
    prompts = [read(line, f"line {i} of {path}") for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f"{path} holds no prompt: write one on each line.")
    return prompts


def _read_json(line: str, where: str) -> Prompt:
    try:
        found = json.loads(line)
        text, negative = found["prompt"], found.get("negative", "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f'{where} is no {{"prompt": "...", "negative": "..."}} ({error}): mend it.'
        ) from error
    if not isinstance(text, str) or not text.strip() or not isinstance(negative, str):
        raise UsageError(f"{where} has an empty prompt, or one that is no text: mend it.")
    return Prompt(text.strip(), negative.strip())
