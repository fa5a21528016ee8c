"""What a figure was measured on, in words."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The processor, and how many of its cores are here."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    return f"{os.cpu_count()} cores of {cpu}"
