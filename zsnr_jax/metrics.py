"""What a run reports while it trains: lines of JSON, the record, and TensorBoard, for the eye."""

import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from zsnr_jax import files


class MetricsWriter:
    """Writes WORKDIR/metrics.jsonl, skipped.jsonl, samples/ and the files of TensorBoard.

    A disk that is full does not stop the run: what it refuses is kept, and written later.
    """

    def __init__(self, workdir: Path, first_step: int = 0):
        """first_step: where the run goes on; rows past it belong to steps that will be redone."""
        self._rows = _Lines(workdir / "metrics.jsonl", first_step)
        # Of steps counted from 0: that of `first_step` is the first to be redone.
        self._skipped = _Lines(workdir / "skipped.jsonl", first_step - 1)
        self._pictures = _Pictures(workdir / "samples")
        self._board = _Board(workdir / "tensorboard", first_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; it must hold `step`. None stands for "nothing to tell"."""
        self._rows.write(row)
        scalars = {f"train/{k}": x for k, x in row.items() if isinstance(x, float)}
        self._board.show(row["step"], *(summary.scalar(*pair) for pair in scalars.items()))

    def write_skipped(self, row: dict[str, Any]) -> None:
        """Add a step that was not finite, as words where JSON has no number."""
        self._skipped.write({k: str(x) if isinstance(x, float) else x for k, x in row.items()})

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Write a picture, uint8 [H, W, C], as samples/step_NNNNNN.png and to TensorBoard."""
        self._pictures.write(f"step_{step:06d}.png", image)
        self._board.show(step, summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Write what a full disk has refused so far."""
        for part in (self._rows, self._skipped, self._pictures):
            part.flush()

    def close(self) -> None:
        """Write what is left."""
        self.flush()


class _Pictures:
    """PNG files in a folder; those that a full disk refuses wait in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, bytes] = {}

    def write(self, name: str, image: np.ndarray) -> None:
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        self._pending[name] = png.getvalue()
        self.flush()

    def flush(self) -> None:
        """Write all that is pending."""
        for name, content in list(self._pending.items()):
            try:
                files.write_bytes(self._folder / name, content)
                del self._pending[name]
            except OSError as error:
                told = f"{self._folder / name} waits to be written ({error.strerror})."
                warnings.warn(told, stacklevel=3)


class _Board:
    """TensorBoard's files, which go without what a full disk refuses: the rows have it.

    Written at once: SummaryWriter has a thread for it, which dies of a full disk, and a `close`
    that then waits for that thread for ever.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder, self._first_step = folder, first_step
        self._files = 0
        self._writer: EventsWriter | None = None

    def show(self, step: int, *shown: Any) -> None:
        """Add values and pictures of a step, to a new file where the last one has failed."""
        event = _event(step)
        for values in shown:
            event.summary.MergeFrom(values)
        try:
            self._writer = self._writer or self._open()
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            self._writer = None
            warnings.warn(f"TensorBoard goes without a value ({error.strerror}).", stacklevel=3)

    def _open(self) -> EventsWriter:
        """A new file; the first of a run says that what others show of its steps is void."""
        self._folder.mkdir(exist_ok=True)
        writer = EventsWriter(str(self._folder / "events"), f".{self._files}")
        if not self._files:
            event = _event(self._first_step)
            event.session_log.status = event.session_log.START
            writer.write_event(event)
        self._files += 1
        return writer


def _event(step: int) -> Any:
    make = vars(event_pb2)["Event"]  # made when protobuf starts: type checkers do not see it
    return make(wall_time=time.time(), step=step)


class _Lines:
    """A file of rows that grows, and never ends in half a row for long."""

    def __init__(self, path: Path, last_step: int) -> None:
        """last_step: rows past it are cut."""
        self._path = path
        kept = [_line(row) for row in files.read_rows(path) if row["step"] <= last_step]
        if path.exists():
            files.write_text(path, "".join(kept))
        self._size = sum(len(line.encode()) for line in kept)
        self._pending: list[str] = []

    def write(self, row: dict[str, Any]) -> None:
        self._pending.append(_line(row))
        self.flush()

    def flush(self) -> None:
        """Write all that is pending, where an earlier try may have left half of it."""
        if not self._pending:
            return
        text = "".join(self._pending).encode()
        try:
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.seek(self._size)
                file.write(text)
                file.truncate()
        except OSError as error:
            told = f"rows of {self._path} wait to be written ({error.strerror})."
            warnings.warn(told, stacklevel=3)
            return
        self._size += len(text)
        self._pending = []


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
