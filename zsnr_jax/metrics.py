"""What a run reports while it trains: metrics.jsonl, the record, and TensorBoard, for the eye."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from zsnr_jax import files


class MetricsWriter:
    """Appends rows to WORKDIR/metrics.jsonl and to TensorBoard files in WORKDIR/tensorboard."""

    def __init__(self, workdir: Path, first_step: int = 0):
        """first_step: where the run goes on; rows past it belong to steps that will be redone."""
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in files.read_rows(self._path) if row["step"] <= first_step]
        files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; it must hold `step`. None stands for "nothing to tell", and NaN stays NaN."""
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(f"train/{name}", value, row["step"])

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a picture, uint8 [H, W, C], to TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()
