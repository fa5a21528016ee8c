"""Memory that a step has freed stays with the process, and the next step takes it again.

XLA allocates what a program needs anew at every call. On a CPU the C library takes that from the
kernel and gives it back after each, and the kernel zeroes every page of it: a fifth of the time of
the main job's training step.
"""

import ctypes
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
# The top of the heap is never given back, nothing is allocated apart from the heap, and there is
# one, since those of further threads cannot hold large arrays.
_OPTIONS = ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1))
_USERS_CHOICE = ("MALLOC_", "GLIBC_TUNABLES")


def only_cpus() -> bool:
    """Whether JAX can compute on nothing but CPUs here; nothing is started to find out."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not entry_points(group="jax_plugins") and find_spec("libtpu") is None


def keep_freed_memory() -> bool:
    """Keep it; before threads start. Settings of the user's environment for malloc come first.

    The process stays as large as it ever was. Returns: whether the C library took it.
    """
    chosen = any(name.startswith(_USERS_CHOICE) for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has all of these
    return mallopt is not None and all(mallopt(*option) for option in _OPTIONS)
