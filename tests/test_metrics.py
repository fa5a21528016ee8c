"""metrics.jsonl: the record of a run, also of one that was killed."""

import json
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from zsnr_jax.files import read_rows
from zsnr_jax.metrics import MetricsWriter


def _write(workdir: Path, steps: list[int], first_step: int = 0) -> None:
    writer = MetricsWriter(workdir, first_step)
    for step in steps:
        writer.write({"step": step, "loss": step / 10, "loss_at_T": None})
    writer.close()


def test_rows_come_back_as_written_and_none_is_null(tmp_path: Path) -> None:
    _write(tmp_path, [1, 2])
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.1, "loss_at_T": None},
        {"step": 2, "loss": 0.2, "loss_at_T": None},
    ]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_resumed_run_cuts_the_rows_it_will_write_again(tmp_path: Path) -> None:
    _write(tmp_path, [1, 2, 3])
    _write(tmp_path, [2], first_step=1)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_rows(path) == [{"step": 1}]
    assert read_rows(tmp_path / "missing.jsonl") == []


def _events(path: Path) -> list[Any]:
    """What TensorBoard reads of a file: records of a length, its checksum, data, its checksum."""
    content, start, events = path.read_bytes(), 0, []
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        data = content[start + 12 : start + 12 + length]
        events.append(vars(event_pb2)["Event"].FromString(data))
        start += length + 16
    return events


def test_tensorboard_shows_values_and_pictures_and_forgets_what_is_redone(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    writer = MetricsWriter(tmp_path, first_step=4)
    writer.write({"step": 5, "loss": 0.5, "loss_at_T": None, "grad_norm": 2.0})
    writer.image("samples", np.zeros((3, 2, 3), np.uint8), 6)
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    version, start, scalars, picture = _events(path)
    assert version.file_version == "brain.Event:2"
    assert start.step == 5 and start.session_log.status == start.session_log.START
    values = {value.tag: value.simple_value for value in scalars.summary.value}
    assert scalars.step == 5 and values == {"train/loss": 0.5, "train/grad_norm": 2.0}
    shown = picture.summary.value[0].image
    assert picture.step == 6 and (shown.height, shown.width) == (3, 2)


def test_a_full_disk_costs_tensorboard_a_value_and_does_not_hold_up_the_end(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    writer.write({"step": 1, "loss": 0.1})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        with pytest.warns(UserWarning, match="TensorBoard goes without"):
            writer.write({"step": 2, "loss": 0.2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    writer.write({"step": 3, "loss": 0.3})
    writer.close()
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    assert [event.step for event in _events(second)] == [0, 3]  # and does not purge step 1
    assert 0.1 in [round(v.simple_value, 6) for e in _events(first)[:3] for v in e.summary.value]
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
