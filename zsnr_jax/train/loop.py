"""The loop around the pure step: data in; metrics, pictures and checkpoints out."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from zsnr_jax import parallel
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.metrics import MetricsWriter
from zsnr_jax.train.state import TrainState
from zsnr_jax.train.step import Batch, Metrics, repeat_step


class LoopOptions(NamedTuple):
    """How long to train and how often to report: the `train` section of the config."""

    num_steps: int
    steps_per_dispatch: int
    log_every: int
    sample_every: int  # 0: never
    save_every: int
    keep: int


def train(
    state: TrainState,
    *,
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    probe: Callable[[TrainState, Batch], jax.Array],
    learning_rate: Callable[[int], Any],
    batches: Iterator[Batch],
    draw_grid: Callable[[TrainState], np.ndarray],
    checkpoints: Checkpoints,
    record: dict[str, Any],
    workdir: Path,
    options: LoopOptions,
    placement: parallel.Placement,
) -> TrainState:
    """Train from `state.step` to the last step. Killed anywhere, it goes on from a checkpoint.

    Args:
      state: its buffers are reused; do not touch it afterwards.
      step, probe: pure functions, reduced over `placement.axis_name`; placed on devices here.
      learning_rate: of a step, to be logged.
      batches: this host's, from `state.step` on.
      draw_grid: a picture of samples, uint8 [H, W, C].
      record: what a checkpoint says of itself.
    Returns: the state after the last step, which is also saved.
    """
    stride = options.steps_per_dispatch
    place_step = placement.step(repeat_step(step, stride))
    place_probe = placement.probe(probe)
    first = int(state.step)
    state = placement.put(state)
    writer = MetricsWriter(workdir, first) if parallel.is_first_host() else None
    window = _Window()
    progress = tqdm(
        total=options.num_steps, initial=first, desc="training", unit="step",
        disable=writer is None,
    )  # fmt: skip

    for done in range(first + stride, options.num_steps + 1, stride):
        rows = [next(batches) for _ in range(stride)]
        state, metrics = place_step(state, _stack(rows))
        window.add(metrics)
        progress.update(stride)
        is_last = done == options.num_steps
        pause = time.perf_counter()
        if done % options.log_every == 0 or is_last:
            row = {"step": done, **window.close(), "learning_rate": float(learning_rate(done - 1))}
            pause = time.perf_counter()
            at_T = float(place_probe(state, rows[-1]))
            row["loss_at_T"] = at_T if math.isfinite(at_T) else None
            if writer is not None:
                writer.write(row)
            checkpoints.check()
            progress.set_postfix(loss=f"{row['loss']:.3f}", at_T=f"{at_T:.3f}")
        if options.sample_every and done % options.sample_every == 0 and not is_last:
            grid = draw_grid(state)
            if writer is not None:
                _save_grid(grid, done, workdir, writer)
        if done % options.save_every == 0 or is_last:
            checkpoints.save(done, placement.join(state), record)
        window.leave_out(time.perf_counter() - pause)
    progress.close()
    if writer is not None:
        writer.close()
    return state


class _Window:
    """Metrics since the last log line. They stay on the device until they are asked for."""

    def __init__(self) -> None:
        self._metrics: list[Metrics] = []
        self._start = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Do not count time that was not spent on training."""
        self._start += seconds

    def add(self, metrics: Metrics) -> None:
        """Take the metrics of one dispatch, [steps] each."""
        if self._metrics:  # let the devices run one dispatch ahead of the host, no further
            jax.block_until_ready(self._metrics[-1])
        self._metrics.append(metrics)

    def close(self) -> dict[str, Any]:
        """The window's means, by level too (None where no row fell), and a fresh window."""
        host = jax.device_get(self._metrics)
        metrics = {name: np.concatenate([m[name] for m in host]) for name in host[0]}
        seconds = time.perf_counter() - self._start
        sums = metrics["level_loss_sum"].sum(axis=0)
        counts = metrics["level_count"].sum(axis=0)
        self._metrics, self._start = [], time.perf_counter()
        return {
            "loss": float(metrics["loss"].mean()),
            "loss_by_level": [
                float(s / n) if n else None for s, n in zip(sums, counts, strict=True)
            ],
            "grad_norm": float(metrics["grad_norm"].mean()),
            "steps_per_second": len(metrics["loss"]) / seconds,
        }


def _stack(batches: list[Batch]) -> dict[str, np.ndarray]:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _save_grid(grid: np.ndarray, step: int, workdir: Path, writer: MetricsWriter) -> None:
    writer.image("samples", grid, step)
    Image.fromarray(grid).save(workdir / "samples" / f"step_{step:06d}.png")
