"""The sums between two log lines: the same, wherever a run was stopped."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax.train.step import NUM_LEVEL_BINS
from zsnr_jax.train.window import Skipped, Window

RNG = np.random.default_rng(0)
LOSS = RNG.uniform(0, 1, 12).astype(np.float32)
NORM = RNG.uniform(0, 9, 12).astype(np.float32)
COUNT = np.eye(NUM_LEVEL_BINS, dtype=np.float32)[np.arange(12) % 4]  # bins 4 and up stay empty
BAD = [5, 6]


def _metrics(steps: slice, bad: list[int]) -> dict:
    finite = ~np.isin(np.arange(12), bad)
    loss = np.where(finite, LOSS, np.nan)
    whole = {
        "loss": loss,
        "grad_norm": NORM,
        "finite": finite,
        "level_loss_sum": loss[:, None] * COUNT,
        "level_count": COUNT,
    }
    return {name: jnp.asarray(x[steps]) for name, x in whole.items()}


def _told(window: Window, bad: list[int], start: int = 0, stop: int = 12, size: int = 2) -> list:
    skipped = []
    for i in range(start, stop, size):
        skipped += window.add(_metrics(slice(i, i + size), bad))
    return skipped + window.settle()


def test_a_row_tells_the_means_of_its_steps() -> None:
    window = Window(0, 0)
    assert _told(window, []) == []
    row = window.close()
    assert row["loss"] == pytest.approx(LOSS.astype(np.float64).mean(), rel=1e-12)
    assert row["grad_norm"] == pytest.approx(NORM.astype(np.float64).mean(), rel=1e-12)
    by_level = [LOSS[i::4].astype(np.float64).mean() for i in range(4)]
    assert row["loss_by_level"] == pytest.approx(by_level + [None] * (NUM_LEVEL_BINS - 4))
    assert (row["skipped"], window.updates) == (0, 12)
    assert row["steps_per_second"] > 0


def test_a_pause_does_not_count() -> None:
    window = Window(0, 0)
    with window.paused():
        time.sleep(0.5)
        paused = window.to_dict()["seconds"]
    _told(window, [])
    assert paused < 0.4 and window.close()["steps_per_second"] > 12 / 0.4


def test_skipped_steps_are_told_and_count_for_no_mean() -> None:
    window = Window(100, 90)
    skipped = _told(window, BAD)
    assert [s.step for s in skipped] == [105, 106] and np.isnan(skipped[0].loss)
    assert isinstance(skipped[0], Skipped) and skipped[0].grad_norm == NORM[5]
    row = window.close()
    kept = np.delete(LOSS, BAD).astype(np.float64)
    assert row["loss"] == pytest.approx(kept.mean(), rel=1e-12)
    assert (row["skipped"], window.updates) == (2, 100)


def test_skipped_steps_in_a_row_are_counted_across_rows() -> None:
    window = Window(0, 0)
    _told(window, [8, 10, 11])
    assert window.skipped_in_a_row == 2
    window.close()
    assert window.skipped_in_a_row == 2
    _told(window, list(range(1, 12)))
    assert window.skipped_in_a_row == 11


def test_a_window_without_a_finite_step_tells_none() -> None:
    window = Window(0, 0)
    _told(window, list(range(12)))
    row = window.close()
    assert row["loss"] is None and row["grad_norm"] is None and row["skipped"] == 12
    assert row["loss_by_level"] == [None] * NUM_LEVEL_BINS


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_window_that_was_stopped_tells_what_one_that_was_not_does(stop: int) -> None:
    whole, first = Window(0, 0), Window(0, 0)
    _told(whole, BAD, size=3)
    _told(first, BAD, 0, stop, size=1)
    saved = json.loads(json.dumps(first.to_dict()))
    second = Window(stop, first.updates, saved)
    _told(second, BAD, stop, 12, size=1)
    assert second.updates == whole.updates
    mine, theirs = whole.close(), second.close()
    assert mine.pop("steps_per_second") > 0 and theirs.pop("steps_per_second") > 0
    assert mine == theirs  # to the bit
