"""metrics.jsonl: the record of a run, also of one that was killed."""

import json
from pathlib import Path

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
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_cuts_the_rows_it_will_write_again(tmp_path: Path) -> None:
    _write(tmp_path, [1, 2, 3])
    _write(tmp_path, [2], first_step=1)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_rows(path) == [{"step": 1}]
    assert read_rows(tmp_path / "missing.jsonl") == []
