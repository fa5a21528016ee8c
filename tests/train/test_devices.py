"""One device and eight train the same network and draw the same images."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "devices.py"
ROOT = SCRIPT.parents[2]


def _run(folder: Path, num_devices: int, precision: str) -> dict[str, np.ndarray]:
    out = folder / f"{precision}_{num_devices}.npz"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(num_devices), str(out), precision]
    subprocess.run(command, env=environment, check=True, timeout=400, capture_output=True)
    return dict(np.load(out))


@pytest.fixture(scope="module", params=["float32", "float64"])
def both(request, tmp_path_factory):
    """What one device and what eight devices found, at one precision."""
    folder = tmp_path_factory.mktemp("devices")
    return request.param, _run(folder, 1, request.param), _run(folder, 8, request.param)


def test_eight_devices_train_as_one_does(both) -> None:
    precision, one, eight = both
    np.testing.assert_array_equal(one["level_count"], eight["level_count"])
    # In float32 only these two: Adam amplifies rounding wherever a true gradient is zero.
    tolerance = {"float32": 1e-5, "float64": 1e-10}[precision]
    np.testing.assert_allclose(one["loss"], eight["loss"], rtol=tolerance)
    np.testing.assert_allclose(one["grad_norm"], eight["grad_norm"], rtol=10 * tolerance)
    if precision == "float64":
        np.testing.assert_allclose(one["params"], eight["params"], rtol=1e-10, atol=1e-10)


def test_eight_devices_draw_the_same_images_as_one(both) -> None:
    _, one, eight = both
    for name in ("samples", "guided"):
        assert one[name].shape == (11, 8, 8, 1)
        assert np.ptp(one[name]) > 0.5
        np.testing.assert_allclose(one[name], eight[name], atol=1e-4)
