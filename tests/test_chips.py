"""The table of chips, and topologies that are not at hand."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax import chips
from zsnr_jax.errors import UsageError

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install zsnr_jax[tpu]"
)


@pytest.mark.parametrize(
    "name, words",
    [
        ("v5e", "slices of 2x2"),
        ("v5e:3x3", "4x4"),
        ("v5p:8x8", "8x8x16"),
        ("tpu:4x4", "v4, v5e, v5p, v6e"),
        ("", "such as v5e:16x16"),
    ],
)
def test_an_unknown_slice_is_refused_with_the_known_ones(name, words):
    with pytest.raises(UsageError, match=words):
        chips.topology(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_remedy_is_named():
    with pytest.raises(UsageError, match=r'pip install "zsnr_jax\[tpu\]"'):
        chips.topology("v5e:4x4")


def test_the_devices_at_hand():
    target = chips.present()
    assert target.devices == tuple(jax.devices())
    assert target.chip is None or target.chip.hbm > 0


def test_a_chip_is_known_by_its_kind():
    found = {kind: chips.of_kind(kind) for kind in ("TPU v5 lite", "TPU v5", "NVIDIA H200", "cpu")}
    names = {kind: chip and chip.name for kind, chip in found.items()}
    assert names == {
        "TPU v5 lite": "TPU v5e",
        "TPU v5": "TPU v5p",
        "NVIDIA H200": "H200",
        "cpu": None,
    }


@needs_libtpu
@pytest.mark.parametrize(
    "name, devices", [("v4:4x4x4", 64), ("v5e:16x16", 256), ("v5p:8x8x16", 1024), ("v6e:2x4", 8)]
)
def test_a_slice_has_a_device_for_each_chip(name, devices):
    target = chips.topology(name)
    assert len(target.devices) == devices
    assert {chips.of_kind(device.device_kind) for device in target.devices} == {target.chip}


@needs_libtpu
def test_the_compiler_names_the_memory_in_the_table():
    target = chips.topology("v5e:2x2")
    assert target.chip is not None
    mesh = jax.sharding.Mesh(np.array(target.devices), ("b",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    huge = jax.ShapeDtypeStruct((20 * 2**18, 1024), jnp.float32)  # 20 GiB
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"40.00G.*15.75G"):
        jax.jit(lambda x: x * 2, in_shardings=place).lower(huge).compile()
    assert target.chip.hbm == 15.75 * 2**30
