"""Memory that a step has freed stays with the process, and the next step takes it again.

XLA allocates what a program needs anew at every call. On a CPU the C library takes that from the
kernel and gives it back after each, and the kernel zeroes every page of it: half the time of the
main job's training step.
"""

import ctypes
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
# The top of a heap is never given back, and what fits into a heap is not allocated apart from it.
_OPTIONS = ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0))
_USERS_CHOICE = ("MALLOC_", "GLIBC_TUNABLES")
_ASYNC_DISPATCH = "jax_cpu_enable_async_dispatch"


def only_cpus() -> bool:
    """Whether JAX can compute on nothing but CPUs here; nothing is started to find out."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not entry_points(group="jax_plugins") and find_spec("libtpu") is None


def keep_freed_memory() -> bool:
    """Keep it; before the first computation. What the environment says of malloc comes first.

    Only the main thread's heap can hold large arrays, so programs on one CPU run in the thread that
    calls them. Other threads keep heaps of their own: all in one, they wait for each other, and for
    searches among the pieces that compiling has left, a quarter of a training step.

    The process stays as large as it ever was. Returns: whether the C library took it.
    """
    chosen = any(name.startswith(_USERS_CHOICE) for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has all of these
    if mallopt is None or not all(mallopt(*option) for option in _OPTIONS):
        return False
    if _ASYNC_DISPATCH.upper() not in os.environ:
        jax.config.update(_ASYNC_DISPATCH, False)
    return True
