"""The loop around the pure step: data in; metrics, pictures and checkpoints out.

It ends in one of four ways: at the last step; where a signal asks it to (saved, `Preempted`); where
too many steps in a row were not finite (saved, `NotFiniteError`); and where the last checkpoint
cannot be written (`NotSavedError`). Killed in any other, it goes on from the newest checkpoint, and
what it then writes is what it would have written had it never been stopped.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from zsnr_jax import parallel, preemption
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.errors import NotFiniteError, NotSavedError, Preempted
from zsnr_jax.metrics import MetricsWriter
from zsnr_jax.train.state import TrainState
from zsnr_jax.train.step import Batch, Metrics, repeat_step
from zsnr_jax.train.window import Skipped, Window

_PATIENCE = 600  # seconds for which the last checkpoint is tried again
_PAUSE = 10  # seconds between


class LoopOptions(NamedTuple):
    """How long to train and how often to report: the `train` section of the config."""

    num_steps: int
    steps_per_dispatch: int
    log_every: int
    sample_every: int  # 0: never
    save_every: int
    keep: int
    keep_every: int  # 0: none but the newest
    max_skipped: int


class Parts(NamedTuple):
    """What the loop calls: of a run, and of the folder it writes to."""

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]  # placed on devices by the loop
    probe: Callable[[TrainState, Batch], Any]  # likewise
    learning_rate: Callable[[int], Any]  # of the updates applied, to be logged
    levels: Callable[[int], np.ndarray]  # of a step's rows, int [B], to be told where it is skipped
    draw_grid: Callable[[TrainState], np.ndarray]  # a picture of samples, uint8 [H, W, C]
    checkpoints: Checkpoints
    record: dict[str, Any]  # what a checkpoint says of itself, but for the log's progress
    workdir: Path


def train(
    state: TrainState,
    batches: Iterator[Batch],
    parts: Parts,
    options: LoopOptions,
    placement: parallel.Placement,
    window: dict[str, Any] | None = None,
) -> TrainState:
    """Train from `state.step` to the last step.

    Args:
      state: its buffers are reused; do not touch it afterwards.
      batches: this host's, from `state.step` on.
      window: what the checkpoint says of the log's progress, where the state is one's.
    Returns: the state after the last step, which is also saved.
    Raises: Preempted, NotFiniteError, NotSavedError.
    """
    return _Loop(state, batches, parts, options, placement, window).run()


class _Loop:
    """One call of `train`."""

    def __init__(
        self,
        state: TrainState,
        batches: Iterator[Batch],
        parts: Parts,
        options: LoopOptions,
        placement: parallel.Placement,
        window: dict[str, Any] | None,
    ) -> None:
        self._first, updates = int(state.step), int(state.updates)
        self._state = placement.put(state)
        self._batches, self._parts = batches, parts
        self._options, self._placement = options, placement
        self._step = placement.step(repeat_step(parts.step, options.steps_per_dispatch))
        self._probe = placement.probe(parts.probe)
        self._window = Window(self._first, updates, window)
        first_host = parallel.is_first_host()
        self._writer = MetricsWriter(parts.workdir, self._first) if first_host else None
        self._unsaved = False  # whether a save is due that failed

    def run(self) -> TrainState:
        options, stride = self._options, self._options.steps_per_dispatch
        progress = tqdm(
            total=options.num_steps, initial=self._first, desc="training", unit="step",
            disable=self._writer is None,
        )  # fmt: skip
        try:
            for done in range(self._first + stride, options.num_steps + 1, stride):
                rows = [next(self._batches) for _ in range(stride)]
                self._state, metrics = self._step(self._state, _stack(rows))
                self._tell(self._window.add(metrics))
                progress.update(stride)
                is_last = done == options.num_steps
                logs = done % options.log_every == 0 or is_last
                if logs:
                    self._tell(self._window.settle())
                with self._window.paused():
                    if logs:
                        self._log(done, rows[-1], progress)
                    if options.sample_every and done % options.sample_every == 0 and not is_last:
                        self._draw(done)
                    self._save_where_due(done)
        finally:
            progress.close()
            if self._writer is not None:
                self._writer.close()
        return self._state

    def _log(self, done: int, batch: Batch, progress: tqdm) -> None:
        """Write the means since the last log line, and the loss at t = T."""
        at_T = float(self._probe(self._state, batch))
        row = {"step": done, **self._window.close()}
        row["learning_rate"] = float(self._parts.learning_rate(max(self._window.updates - 1, 0)))
        row["loss_at_T"] = at_T if math.isfinite(at_T) else None
        if row["loss_at_T"] is None:
            _warn(f"the loss at t = T is {at_T} after step {done}.")
        if self._writer is not None:
            self._writer.write(row)
        loss = math.nan if row["loss"] is None else row["loss"]
        progress.set_postfix(loss=f"{loss:.3f}", at_T=f"{at_T:.3f}")

    def _draw(self, done: int) -> None:
        """Draw a picture of samples, into samples/ and TensorBoard."""
        grid = self._parts.draw_grid(self._state)
        if self._writer is not None:
            self._writer.image("samples", grid, done)

    def _save_where_due(self, done: int) -> None:
        """Save at regular steps and where the loop ends; end it where it is asked to."""
        options = self._options
        if done == options.num_steps:
            return self._save_surely(done, _PATIENCE)
        ends = preemption.requested()
        if self._window.skipped_in_a_row > options.max_skipped:
            self._tell(self._window.settle())  # the step that is still under way may be fine
        skipped = self._window.skipped_in_a_row
        if ends or skipped > options.max_skipped:
            self._save_surely(done, patience=0)
            if ends:
                raise Preempted(f"{preemption.name()}: saved at step {done}")
            raise NotFiniteError(self._diagnosis(done, skipped))
        if done % options.log_every == 0:
            self._try_to(self._parts.checkpoints.check)
        again = self._unsaved and done % options.log_every == 0
        if done % options.save_every == 0 or again:
            self._try_to(lambda: self._save(done))
        return None

    def _save(self, done: int) -> None:
        self._try_to(self._parts.checkpoints.wait)  # for an earlier one, which may have failed
        self._tell(self._window.settle())
        if self._writer is not None:
            self._writer.flush()  # what a checkpoint is past, a resumed run does not write again
        record = self._parts.record | {"window": self._window.to_dict()}
        self._unsaved = False
        self._parts.checkpoints.save(done, self._placement.join(self._state), record)

    def _try_to(self, save: Callable[[], None]) -> None:
        """What fails here is tried again at the next log line: until then training goes on."""
        try:
            save()
        except NotSavedError as error:
            if parallel.num_hosts() > 1:
                raise  # the others do not know, and would wait
            self._unsaved = True
            _warn(f"{error} Training goes on, and it is tried again.")

    def _save_surely(self, done: int, patience: float) -> None:
        """Save and wait until it is written; where that fails, try for so many seconds."""
        give_up = time.monotonic() + patience
        while True:
            try:
                self._save(done)
                return self._parts.checkpoints.wait()
            except NotSavedError as error:
                left = give_up - time.monotonic()
                if left < 0 or parallel.num_hosts() > 1 or preemption.requested():
                    raise
                _warn(f"{error} It is tried again for {left:.0f} s.")
                time.sleep(min(_PAUSE, patience))

    def _tell(self, skipped: list[Skipped]) -> None:
        """Log steps that were not finite, with the levels of their rows."""
        for found in skipped:
            if self._writer is not None:
                levels = self._parts.levels(found.step).tolist()
                self._writer.write_skipped({**found._asdict(), "levels": levels})
                _warn(
                    f"step {found.step} was skipped: its loss is {found.loss}, and the norm of its "
                    f"gradient {found.grad_norm} (levels {min(levels)} to {max(levels)})."
                )

    def _diagnosis(self, done: int, skipped: int) -> str:
        return (
            f"the loss or its gradient was not finite in {skipped} steps in a row, up to step "
            f"{done - 1}, and train.max_skipped is {self._options.max_skipped}: parameters are as "
            f"they were before, and saved as checkpoint {done}; "
            f"{self._parts.workdir / 'skipped.jsonl'} has the levels of each. Start anew with a "
            "lower optimizer.learning_rate, or repeat the command to go on with other batches."
        )


def _stack(batches: list[Batch]) -> dict[str, np.ndarray]:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _warn(text: str) -> None:
    if parallel.is_first_host():
        tqdm.write(f"warning: {text}", file=sys.stderr)
