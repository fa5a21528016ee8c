"""Calls after the first take the memory that the one before has freed."""

import os
import platform
import subprocess
import sys

import pytest

from zsnr_jax import host_memory

SCRIPT = """
import ctypes, resource, sys
from zsnr_jax import host_memory
if sys.argv[1] == "kept":
    assert host_memory.keep_freed_memory()
import jax, jax.numpy as jnp
program = jax.jit(lambda x: jnp.exp(jnp.dot(x, x.T)) @ x)  # 256 MB on the way
run = lambda: jax.block_until_ready(program(x))
x = jnp.ones((2**13, 16))
[run() for _ in range(5)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
ctypes.CDLL(None).malloc_stats()  # to stderr, heap by heap
"""
PAGES = 2**26 * 4 // 4096  # of what is on the way


def _faults(how: str, **environment: str) -> tuple[int, int]:
    """Pages that the kernel gave to one call, and heaps of the process."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout), done.stderr.count("Arena ")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_call_is_given_few_new_pages_and_threads_keep_heaps_of_their_own() -> None:
    pages, heaps = _faults("kept")
    # Not always none: where the heap is in pieces, one array may not fit what another has left.
    assert pages < PAGES / 2
    assert heaps > 1
    assert _faults("plain")[0] >= PAGES  # else it is of no use
    # Where programs run in other threads, whose heaps are too small, as the user may choose.
    assert _faults("kept", JAX_CPU_ENABLE_ASYNC_DISPATCH="true")[0] >= PAGES


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_users_choice_comes_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "4")
    assert not host_memory.keep_freed_memory()


@pytest.mark.parametrize("platforms, expected", [("cpu", True), ("cuda,cpu", False)])
def test_what_jax_is_told_says_where_it_computes(
    platforms: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert host_memory.only_cpus() is expected
