"""Processes on CPUs that find no compiled programs but those that the benchmark has kept itself."""

import os
from pathlib import Path

_OTHER_CACHES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def environment(folder: Path) -> dict[str, str]:
    """Of a process that is to keep programs in this folder, by JAX or by torch."""
    mine = {name: value for name, value in os.environ.items() if name not in _OTHER_CACHES}
    return mine | {
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


def enter(folder: Path) -> None:
    """Give this process that environment, and so those that it starts."""
    for name in _OTHER_CACHES:
        os.environ.pop(name, None)
    os.environ.update(environment(folder))
