"""XLA takes the kernels that were measured to be faster, and the user's choice comes first."""

import os
import re
import subprocess
import sys

import jaxlib.version
import pytest

from zsnr_jax import xla_options

SCRIPT = """
import sys
from zsnr_jax import xla_options
if sys.argv[1] == "tuned":
    assert xla_options.tune_for_cpus()
import jax, jax.numpy as jnp
conv = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
program = jax.jit(lambda x, w, a: (conv(x, w), a @ a))
shapes = jnp.zeros((32, 8, 8, 96)), jnp.zeros((3, 3, 96, 96)), jnp.zeros((512, 512))
print(program.lower(*shapes).compile().as_text())
"""
on_measured = pytest.mark.skipif(
    not jaxlib.version.__version__.startswith("0.10."), reason="the flag is of jaxlib 0.10"
)


def _kernels(how: str) -> set[str]:
    """What YNNPACK's kernels are taken for, by the names of what its fusions stand for."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {*re.findall(r'%ynn_fusion.*op_name="jit\(<lambda>\)/(\w+)"', done.stdout)}


@on_measured
def test_convolutions_are_left_to_eigen_and_products_are_not() -> None:
    assert _kernels("tuned") == {"dot_general"}
    assert _kernels("plain") == {"dot_general", "conv_general_dilated"}  # else it is of no use


def test_the_users_choice_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = "--xla_cpu_experimental_ynn_fusion_type="
    monkeypatch.setenv("XLA_FLAGS", chosen)
    assert not xla_options.tune_for_cpus()
    assert os.environ["XLA_FLAGS"] == chosen


def test_a_file_of_flags_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "/etc/flags.txt")  # XLA reads what does not begin by -- as one
    assert not xla_options.tune_for_cpus() and os.environ["XLA_FLAGS"] == "/etc/flags.txt"


@on_measured
def test_other_flags_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert xla_options.tune_for_cpus()
    assert os.environ["XLA_FLAGS"].startswith("--xla_force_host_platform_device_count=8 --xla_cpu")
    assert not xla_options.tune_for_cpus()  # once is enough


def test_an_unknown_version_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jaxlib.version, "__version__", "0.99.0")
    assert not xla_options.tune_for_cpus() and os.environ["XLA_FLAGS"] == ""
