"""Splitting rows over devices."""

import jax
import numpy as np
import pytest

from zsnr_jax import parallel
from zsnr_jax.errors import UsageError


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    parallel.require_divisible(16, "dataset.batch_size")
    with pytest.raises(UsageError, match="dataset.batch_size=12 .* 8 devices"):
        parallel.require_divisible(12, "dataset.batch_size")


def test_rows_are_split_in_order_and_padding_rounds_up(monkeypatch) -> None:
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    split = parallel.split_rows({"x": np.arange(24).reshape(3, 8)}, axis=1)["x"]
    assert split.shape == (3, 4, 2)
    np.testing.assert_array_equal(split[1], [[8, 9], [10, 11], [12, 13], [14, 15]])
    assert [parallel.round_up(n) for n in (1, 4, 5)] == [4, 4, 8]


def test_the_hardware_is_told_in_words() -> None:
    if jax.default_backend() == "cpu":
        assert parallel.describe() == f"{jax.device_count()} x CPU"
