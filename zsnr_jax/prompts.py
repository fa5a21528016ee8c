"""Prompts from a file: lines of text, or of JSON with a negative prompt each."""

from pathlib import Path
from typing import NamedTuple

from zsnr_jax import files
from zsnr_jax.errors import UsageError


class Prompt(NamedTuple):
    """What a picture should show, and what it must not."""

    text: str
    negative: str = ""


def read_prompts(path: Path) -> list[Prompt]:
    """Read a .txt file, a prompt on each line, or a .jsonl file of {"prompt": .., "negative": ..}.

    Raises: UsageError where the file is missing, broken or empty, or a prompt is.
    """
    name, remedy = f"evaluation.prompts={path}", "give a .txt or .jsonl file"
    try:
        lines = files.read_text(path, remedy, name=name).split("\n")
    except FileNotFoundError as error:
        raise UsageError(f"{name} cannot be read ({files.reason(error)}): {remedy}.") from error
    read = _read_json if path.suffix == ".jsonl" else lambda line, where: Prompt(line.strip())
    prompts = [read(line, f"line {i} of {path}") for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f"{path} holds no prompt: write one on each line.")
    return prompts


def _read_json(line: str, where: str) -> Prompt:
    try:
        found = files.parse_json(line)
        text, negative = found["prompt"], found.get("negative", "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f'{where} is no {{"prompt": "...", "negative": "..."}} ({files.reason(error)}): '
            "mend it."
        ) from error
    if not isinstance(text, str) or not text.strip() or not isinstance(negative, str):
        raise UsageError(f"{where} has an empty prompt, or one that is no text: mend it.")
    if any("\ud800" <= sign <= "\udfff" for sign in text + negative):
        raise UsageError(f"{where} holds half of a surrogate pair, which is no sign: mend it.")
    return Prompt(text.strip(), negative.strip())
