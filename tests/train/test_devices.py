"""One device and eight, by pmap and by fsdp, train the same network and draw the same images."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "devices.py"
ROOT = SCRIPT.parents[2]
# Devices, mode, mesh and microbatches, besides one device that takes each batch whole.
WAYS = {
    "float32": {"pmap": (8, "pmap", "-", 1), "fsdp": (8, "fsdp", "-", 1)},
    "float64": {"pmap": (8, "pmap", "-", 1), "fsdp, accumulated": (8, "fsdp", "2x4", 2)},
}


def _run(folder: Path, precision: str, devices: int, *way: str | int) -> dict[str, np.ndarray]:
    out = folder / f"{len(list(folder.iterdir()))}.npz"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(devices), str(out), precision, *map(str, way)]
    subprocess.run(command, env=environment, check=True, timeout=400, capture_output=True)
    return dict(np.load(out))


@pytest.fixture(scope="module", params=WAYS)
def one(request, tmp_path_factory):
    """What one device found, at one precision."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, _run(folder, request.param, 1, "pmap", "-", 1)


@pytest.fixture(scope="module", params=[0, 1])
def both(request, one):
    """What one device found, and what another way did."""
    precision, folder, found = one
    name, way = list(WAYS[precision].items())[request.param]
    return precision, name, found, _run(folder, precision, *way)


def test_every_way_trains_as_one_device_does(both) -> None:
    precision, _, one, other = both
    np.testing.assert_array_equal(one["level_count"], other["level_count"])
    # In float32, where Muon is the rule, only these: it amplifies rounding in small directions.
    tolerance = {"float32": 1e-5, "float64": 1e-10}[precision]
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=tolerance)
    np.testing.assert_allclose(one["at_T"], other["at_T"], rtol=10 * tolerance)
    np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=10 * tolerance)
    if precision == "float64":
        np.testing.assert_allclose(one["params"], other["params"], rtol=1e-10, atol=1e-10)


def test_every_way_draws_the_same_images(both) -> None:
    _, _, one, other = both
    for name in ("samples", "guided"):
        assert one[name].shape == (11, 8, 8, 1)
        assert np.ptp(one[name]) > 0.5
        np.testing.assert_allclose(one[name], other[name], atol=1e-4)


def test_by_fsdp_most_of_the_state_lies_in_slices(both) -> None:
    precision, way, one, other = both
    assert one["values_sliced"] == 0
    # Parameters and averages make up "params"; Adam has as much again, and Muon half of it.
    share = other["values_sliced"] / (
        {"float32": 1.5, "float64": 2}[precision] * one["params"].size
    )
    assert share > 0.8 if "fsdp" in way else share == 0
