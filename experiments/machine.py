"""What a figure was measured on, in words: the processor, and the code."""

import os
import platform
import subprocess
from pathlib import Path


def processor() -> str:
    """The processor, and how many of its cores are here."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    return f"{os.cpu_count()} cores of {cpu}"


def commit(checkout: Path) -> str | None:
    """Of the code in a folder, where git can tell; "-dirty" where Python files differ from it."""
    try:
        at = _git(checkout, "describe", "--always")
        changed = _git(checkout, "status", "--porcelain", "--untracked-files=no", "--", "*.py")
    except FileNotFoundError:
        return None
    return at + ("-dirty" if changed else "") if at else None


def _git(checkout: Path, *command: str) -> str:
    told = subprocess.run(["git", *command], cwd=checkout, capture_output=True, text=True)
    return told.stdout.strip()
