"""Compiled programs, kept in the user's cache folder: a repeated command need not compile again.

That is most of the time until the first step. JAX's own settings come first, above all
JAX_COMPILATION_CACHE_DIR for another folder, and JAX_ENABLE_COMPILATION_CACHE=false for none.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

MAX_BYTES = 4 * 2**30  # of all programs; those not used for longest go first
_WORTH_KEEPING = 0.1  # seconds that a program took to compile


def keep_programs() -> Path | None:
    """From now on, keep what is compiled. Returns: where; None where JAX has its own settings.

    A folder that cannot be written to costs time, and nothing else.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return None
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = caches / "zsnr_jax" / "compiled" / _machine()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # which tells that nobody knows of a home
        return None
    ours = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": MAX_BYTES,
        "jax_persistent_cache_min_compile_time_secs": _WORTH_KEEPING,
    }
    for name, value in ours.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    return folder


def keep_none_between_cpus() -> None:
    """Neither keep nor read programs, whatever is set, where processes on CPUs compute together.

    Only the first host finds what it has kept. By jaxlib 0.10 a program for CPUs that was restored
    reduces in another order than the same one just compiled, so that hosts receive what they did
    not wait for, and gloo aborts the process. To be called when the hosts are joined.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)


def _machine() -> str:
    """The processor, in a few letters: hosts may share a home, and not each other's programs."""
    processor = platform.machine() + platform.processor()
    if (told := Path("/proc/cpuinfo")).exists():  # where `platform` knows but the family
        lines = told.read_text().splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(processor.encode()).hexdigest()[:12]
