"""HTML for pages that stand by themselves: one file, with all styles and pictures inside."""

import base64
import html
import io
import pathlib
import re
import string
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from zsnr_jax import files
from zsnr_jax.errors import UsageError

_NO_SIGN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # control characters, surrogates
_MAX_PNG = 2**26  # bytes of a picture on a page


def write(path: pathlib.Path, title: str, body: str) -> pathlib.Path:
    """Write a page, and return its path. Args: title: plain text; body: HTML."""
    page = string.Template(_PAGE).substitute(title=text(title), style=_STYLE, body=body)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, page)
    return path


def table(head: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table; heads, names and cells are HTML already."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in lines
    )
    whole = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=scroll>{whole}</div>"


def text(value: Any) -> str:
    """Anything as HTML that shows it; what stands for no sign, as U+FFFD."""
    return html.escape(_NO_SIGN.sub("\ufffd", str(value)))


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that holds all of it. Args: kind: its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture(path: pathlib.Path, remedy: str) -> tuple[str, tuple[int, int]]:
    """A PNG file as an address that holds it, and its width and height.

    Raises: UsageError for another format, and for a file that is missing, broken or too large.
    Args: remedy: what to do about it, for the sentence.
    """
    try:
        content = files.read_bytes(path, _MAX_PNG)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return data_uri(content, "image/png"), image.size
    except UnidentifiedImageError:  # its text has an address in memory
        said = "it has another format"
    except Exception as error:  # PIL's readers raise all kinds
        said = files.reason(error)
    raise UsageError(f"{path} is no readable PNG ({said}): {remedy}.")


def duration(seconds: float | None, what: str) -> str | None:
    """How long something took, in words; None where it is not known."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{what} in {f'{minutes} min ' if minutes else ''}{rest} s"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<main>
$body
<footer class=quiet>Made by zsnr_jax, after
<a href="https://arxiv.org/abs/2305.08891">Common Diffusion Noise Schedules and Sample Steps are
Flawed</a>.</footer>
</main>
</body>
</html>
"""

_STYLE = """
:root { --ink: #1f2328; --quiet: #59636e; --ground: #ffffff; --tint: #f3f5f7; --line: #d5dae0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --quiet: #a0a8b2; --ground: #15181c; --tint: #20252b; --line: #373e47; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 48px; }
h1 { font-size: 34px; line-height: 1.15; margin: 0 0 14px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 44px 0 6px; }
h1, h2, h3, th { overflow-wrap: anywhere; }
h3 { font-size: 16px; margin: 20px 0 0; }
p { margin: 0 0 10px; }
a { color: inherit; }
.eyebrow { color: var(--quiet);
  font: 14px ui-monospace, Menlo, Consolas, monospace; margin: 0 0 4px; }
.verdict { font-size: 21px; line-height: 1.4; max-width: 46em; text-wrap: pretty; }
.quiet { color: var(--quiet); font-weight: normal; font-size: 14px; }
figure { margin: 14px 0 22px; }
figcaption { margin-bottom: 6px; }
img { display: block; max-width: 100%; height: auto; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 12px 32px; align-items: start; margin-top: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: baseline; }
th:first-child { text-align: left; padding-left: 0; font-weight: normal; min-width: 11em; }
thead th { font-size: 13px; font-weight: 600; color: var(--quiet); vertical-align: bottom; }
.aside { display: block; color: var(--quiet); font-size: 13px; }
.sub { padding-left: 1.2em; color: var(--quiet); }
.interval { white-space: nowrap; color: var(--quiet); }
pre { background: var(--tint); border-radius: 8px; padding: 12px 14px; margin: 6px 0 14px;
  overflow-x: auto; font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr);
  gap: 4px 20px; font-size: 14px; }
dt { color: var(--quiet); }
dd { margin: 0; }
summary { cursor: pointer; font-weight: 600; margin-top: 10px; }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 12px; }
@media (max-width: 600px) {
  main { padding: 20px 14px 32px; }
  h1 { font-size: 26px; }
  .verdict { font-size: 18px; }
}
"""
