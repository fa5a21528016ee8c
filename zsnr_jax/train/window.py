"""What training has to tell since the last log line, summed so that stops do not show.

The sums are of float64, one step after another, and travel with a checkpoint. A run that is stopped
between two log lines and goes on therefore writes the lines of the run that was never stopped.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from zsnr_jax.train.step import NUM_LEVEL_BINS, Metrics


class Skipped(NamedTuple):
    """A step whose loss or gradient was not finite: it changed nothing."""

    step: int  # counted from 0, as `randomness` counts
    loss: float
    grad_norm: float


@dataclasses.dataclass
class Sums:
    """Over the steps since the last log line, but for those that were skipped."""

    steps: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    grad_norm: float = 0.0
    level_loss: list[float] = dataclasses.field(default_factory=lambda: [0.0] * NUM_LEVEL_BINS)
    level_count: list[float] = dataclasses.field(default_factory=lambda: [0.0] * NUM_LEVEL_BINS)
    skipped: int = 0
    in_a_row: int = 0  # skipped without one between them that was not, up to now


class Window:
    """Takes the metrics of each dispatch; they stay on the device until the next one is sent."""

    def __init__(self, step: int, updates: int, saved: Mapping[str, Any] | None = None) -> None:
        """Args: step, updates: of the state; saved: of `to_dict`, where a run goes on."""
        self._step, self.updates = step, updates
        self._sums = Sums(**(saved or {}))
        self._pending: Metrics | None = None
        self._start: float | None = time.perf_counter()

    @property
    def skipped_in_a_row(self) -> int:
        """How many of the last steps were skipped."""
        return self._sums.in_a_row

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within does not count as time spent on training."""
        self._timed()
        self._start = None
        yield
        self._start = time.perf_counter()

    def add(self, metrics: Metrics) -> list[Skipped]:
        """Take the metrics of one dispatch, [steps] each. Returns: of the dispatch before.

        So the devices run one dispatch ahead of the host, and no further.
        """
        skipped = self.settle()
        self._pending = metrics
        return skipped

    def settle(self) -> list[Skipped]:
        """Wait for what was added last, and count it. Returns: its steps that were skipped."""
        if self._pending is None:
            return []
        on_host: dict[str, np.ndarray] = jax.device_get(self._pending)
        metrics = {name: np.asarray(x, np.float64) for name, x in on_host.items()}
        self._pending, skipped = None, []
        for i, finite in enumerate(metrics["finite"]):
            if finite:
                self._count({name: value[i] for name, value in metrics.items()})
            else:
                row = Skipped(self._step, float(metrics["loss"][i]), float(metrics["grad_norm"][i]))
                skipped.append(row)
                self._sums.skipped += 1
                self._sums.in_a_row += 1
            self._step += 1
        return skipped

    def close(self) -> dict[str, Any]:
        """The window's means, by level too (None of no row), and a fresh window."""
        sums = self._timed()
        total = sums.steps + sums.skipped
        self._sums = Sums(in_a_row=sums.in_a_row)
        return {
            "loss": sums.loss / sums.steps if sums.steps else None,
            "loss_by_level": [
                loss / n if n else None for loss, n in zip(sums.level_loss, sums.level_count)
            ],
            "grad_norm": sums.grad_norm / sums.steps if sums.steps else None,
            "steps_per_second": total / sums.seconds,
            "skipped": sums.skipped,
        }

    def to_dict(self) -> dict[str, Any]:
        """The sums as JSON, for a checkpoint; `settle` first."""
        return dataclasses.asdict(self._timed())

    def _count(self, step: Mapping[str, Any]) -> None:
        sums = self._sums
        sums.steps += 1
        sums.in_a_row = 0
        sums.loss += float(step["loss"])
        sums.grad_norm += float(step["grad_norm"])
        sums.level_loss = (sums.level_loss + step["level_loss_sum"]).tolist()
        sums.level_count = (sums.level_count + step["level_count"]).tolist()
        self.updates += 1

    def _timed(self) -> Sums:
        """The sums with the seconds up to now."""
        if self._start is not None:
            now = time.perf_counter()
            self._sums.seconds += now - self._start
            self._start = now
        return self._sums
