"""Calls after the first take the memory that the one before has freed."""

import os
import platform
import subprocess
import sys

import pytest

from zsnr_jax import host_memory

SCRIPT = """
import resource, sys
from zsnr_jax import host_memory
if sys.argv[1] == "kept":
    assert host_memory.keep_freed_memory()
import jax, jax.numpy as jnp
program = jax.jit(lambda x: jnp.sort(jnp.sin(x)).sum())  # 32 MB on the way
run = lambda: jax.block_until_ready(program(x))
x = jnp.ones(2**23)
[run() for _ in range(5)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2**23 * 4 // 4096  # of one array


def _faults(how: str) -> int:
    """Pages that the kernel gave to one call."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_call_is_given_few_new_pages() -> None:
    # Not always none: where the heap is in pieces, one array may not fit what another has left.
    assert _faults("kept") < 2 * PAGES
    assert _faults("plain") > 3 * PAGES  # else it is of no use


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
