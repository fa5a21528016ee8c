"""What accelerators can do, and topologies of those that are not at hand.

Per chip: usable memory, peak, and bandwidths, each with its public source. XLA compiles for a TPU
topology on any machine where libtpu is installed; nothing runs there.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies

from zsnr_jax.errors import UsageError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator."""

    name: str
    hbm: int  # bytes that a program may use
    peak_flops: float  # of dense products in bfloat16, per second
    hbm_bandwidth: float  # bytes per second
    link_bandwidth: float  # bytes per second that it can send over all its links, one way


# Peak, bandwidths: Google's pages on each TPU (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e), where
# links are given in both directions together: half of that is here. Memory: the limit that the TPU
# compiler of libtpu 0.0.42 names when it refuses a program, a little less than is built in.
_V4 = Chip("TPU v4", round(30.75 * GIB), 275e12, 1228e9, 300e9)  # 32 GiB; 6 links of 50 GB/s
_V5E = Chip("TPU v5e", round(15.75 * GIB), 197e12, 819e9, 200e9)  # 16 GB; 400 GB/s both ways
_V5P = Chip("TPU v5p", round(95.74 * GIB), 459e12, 2765e9, 600e9)  # 95 GB; 1200 GB/s both ways
_V6E = Chip("TPU v6e", round(31.25 * GIB), 918e12, 1640e9, 400e9)  # 32 GB; 800 GB/s both ways
# NVIDIA's data sheets of the SXM modules, dense (half of what they print "with sparsity"). Links
# are NVLink, within one host; the data sheets give both directions together. Memory as built in:
# the share of it that JAX takes is asked of the device.
_A100 = Chip("A100 80GB", 80 * 10**9, 312e12, 2039e9, 300e9)
_H100 = Chip("H100", 80 * 10**9, 989e12, 3350e9, 450e9)
_H200 = Chip("H200", 141 * 10**9, 989e12, 4800e9, 450e9)

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
# Slices that can be had, by the same pages.
_SHAPES: Mapping[str, tuple[Chip, tuple[str, ...]]] = {
    "v4": (_V4, (*_CUBES, "8x16x16")),
    "v5e": (_V5E, _FLAT),
    "v5p": (_V5P, (*_CUBES, "8x16x16", "16x16x16", "16x16x24")),
    "v6e": (_V6E, _FLAT),
}
# What JAX calls them (Device.device_kind).
_KINDS = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H200,
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that programs are compiled for."""

    name: str
    devices: tuple[Any, ...]  # jax devices, or their descriptions
    chip: Chip | None  # None where it is not in the table


def topology(name: str) -> Target:
    """A TPU slice that need not be there, such as "v5e:16x16": one device for each chip.

    Raises: UsageError for a slice that is not known, or where libtpu cannot be used.
    """
    generation, _, shape = name.partition(":")
    if generation not in _SHAPES:
        raise UsageError(
            f"plan.topology {name!r} is unknown: write a TPU and its slice, such as v5e:16x16; the "
            f"TPUs are {', '.join(_SHAPES)}."
        )
    chip, shapes = _SHAPES[generation]
    if shape not in shapes:
        raise UsageError(
            f"plan.topology {name!r} is unknown: {generation} comes in slices of "
            f"{', '.join(shapes)}."
        )
    # A chip has two cores there, which programs use as one.
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except RuntimeError as error:
        raise _refusal(name, str(error)) from error
    return Target(name, tuple(found.devices), chip)


def present() -> Target:
    """The devices of this machine, or of the hosts that share the run."""
    devices = jax.devices()
    chip = of_kind(devices[0].device_kind)
    stats = devices[0].memory_stats() or {}
    if chip is not None and "bytes_limit" in stats:
        chip = dataclasses.replace(chip, hbm=stats["bytes_limit"])
    return Target(devices[0].device_kind, tuple(devices), chip)


def of_kind(device_kind: str) -> Chip | None:
    """The chip of a jax device's kind; None where it is not in the table."""
    return _KINDS.get(device_kind)


# Read by libtpu when it is loaded: ask no metadata server, which only a TPU machine has; say less.
_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}


def _refusal(name: str, reason: str) -> UsageError:
    if "not installed" in reason:
        return UsageError(
            f"plan.topology={name} needs libtpu, the TPU compiler, which is not installed: "
            'pip install "zsnr_jax[tpu]".'
        )
    if "lockfile" in reason:
        return UsageError(
            f"plan.topology={name} needs libtpu, which another process has in use: wait for it, or "
            "set the environment's ALLOW_MULTIPLE_LIBTPU_LOAD=1, since plans run nothing."
        )
    return UsageError(f"libtpu refuses plan.topology={name}: {reason.splitlines()[0]}")
