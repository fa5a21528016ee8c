"""The benchmark of Stable Diffusion's size: that it runs, and what it tells of its times."""

import argparse
import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import in_torch, sd21, sd21_report, sd21_sides, sd21_sweep, sd_shaped
from experiments.benchmarks.sd_shaped import Setting
from experiments.benchmarks.turns import OutOfMemory, Run, Timed, in_turn
from zsnr_jax import architectures

CONFIG = architectures.TINY["unet"] | {  # of one resolution: what is compiled takes the time
    "block_out_channels": [32],
    "attention_head_dim": [2],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}
SIZES = sd21.TINY._replace(width=CONFIG["cross_attention_dim"])
TASKS = pytest.mark.parametrize("task", sd21.TASKS)


def _row(variant: str, batch: int, gigabytes: float | None) -> dict[str, Any]:
    row = {"task": "train", "variant": variant, "batch": batch}
    if gigabytes is None:
        return row | {"out_of_memory": "no"}
    return row | {"seconds": 0.5, "first_call": 60.0, "peak_gigabytes": gigabytes}


def _found(*points: dict[str, Any], **others: Any) -> dict[str, Any]:
    facts = {"peak_flops": 1e6, "forward_flops": 1e4, "steps": 50, "memory_gigabytes": 80.0}
    return {**facts, "points": [*points], "beside": {}, **others}


@TASKS
def test_our_side_runs_in_halves(task: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "")
    sd_shaped.write_weights(tmp_path / "unet", CONFIG)
    run = sd21_sides.ours(task, tmp_path, SIZES, Setting("bfloat16", task == "train"))
    run()
    run()
    assert run.peak_bytes() > 1e7


@pytest.mark.skipif(not sd21_sides.installed(), reason="torch and diffusers are not installed")
@TASKS
def test_the_side_of_torch_runs_in_halves(task: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    sd_shaped.write_weights(tmp_path / "unet", CONFIG)
    setting = Setting("bfloat16", remat=task == "train")
    run = sd21_sides.theirs(task, tmp_path, SIZES, setting, "channels_last")
    run()
    assert run.peak_bytes() > 1e7
    if task == "train":  # which keeps float32, and computes in halves
        assert in_torch._read("eager", tmp_path, setting).dtype.itemsize == 4


def test_it_writes_a_table_and_a_picture_and_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(architectures.TINY, "unet", CONFIG)
    out = tmp_path / "found.json"
    told = ["sd21", "--tiny", "--only=sample", "--variants=ours", "--first=1", "--rounds=2"]
    monkeypatch.setattr(sys, "argv", [*told, "--most=1", f"--out={out}"])
    sd21.main()
    (row,) = json.loads(out.read_text())["points"]
    assert row["batch"] == 1 and len(row["calls"]) == 2 and row["peak_gigabytes"] > 0.01
    assert "| sample | ours | 1 |" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 1000

    monkeypatch.setattr(sys, "argv", [*told, "--most=1", f"--out={out}", "--go-on"])
    monkeypatch.setattr(sd21_sweep, "in_turn", lambda *_: pytest.fail("it measured anew"))
    sd21.main()
    assert json.loads(out.read_text())["points"] == [row]
    text = out.read_text().replace(str(json.loads(out.read_text())["weights"]), "7")
    out.write_text(text)
    with pytest.raises(SystemExit, match="another weights"):
        sd21.main()


def _needs(batch: int) -> Run:
    """A run that finds memory for three rows, as JAX tells it."""

    def run() -> None:
        if batch > 3:
            raise RuntimeError(
                f"RESOURCE_EXHAUSTED: Out of memory while trying to allocate {batch}"
            )

    return run


def test_batches_double_until_memory_is_out() -> None:
    def run(batch: int) -> Timed:
        return in_turn({"ours": functools.partial(_needs, batch)}, 2)["ours"]

    rows = [*sd21_sweep.doubling(run, 1, 64, [_row("ours", 1, 1.0)])]
    assert [row["batch"] for row in rows] == [2, 4]
    assert "seconds" in rows[0] and rows[1]["out_of_memory"].startswith("RuntimeError: RESOURCE")
    assert not [*sd21_sweep.doubling(run, 4, 64, [_row("ours", 4, None)])]  # that is on record


def _lacking() -> Run:
    raise MemoryError


def _broken() -> Run:
    raise ValueError("a fault of its own")


def test_memory_that_lacks_before_the_first_call_is_told_and_other_errors_are_no_want_of_it() -> (
    None
):
    with pytest.raises(OutOfMemory, match="MemoryError"):
        in_turn({"a": _lacking}, 2)
    with pytest.raises((EOFError, ConnectionError)):  # the error itself is on the console
        in_turn({"a": _broken}, 2)


def test_ours_and_theirs_take_turns_where_both_fit() -> None:
    points = [
        *(_row("ours", batch, 10.0 * batch) for batch in (1, 2, 4)),
        *(_row("torch", batch, 15.0 * batch) for batch in (1, 2, 4)),
        *(_row(variant, 8, None) for variant in ("ours", "torch")),
        _row("ours_remat", 16, 1.0),
    ]
    assert sd21_sweep.fit_together(points, "train", 120.0) == [4, 2, 1]  # 100 of 108
    assert sd21_sweep.fit_together(points, "train", 80.0) == [2, 1]
    assert sd21_sweep.fit_together(points, "train", None) == [4, 2, 1]
    assert (
        sd21_sweep.fit_together(points, "train", 20.0)
        == sd21_sweep.fit_together(points, "sample", None)
        == []
    )


def _arguments(*arguments: Any) -> Any:
    return arguments


def test_measuring_goes_through_all_that_is_asked_for(monkeypatch) -> None:
    asked = []

    def in_turn(makes: dict[str, Any], rounds: int) -> dict[str, Timed]:
        asked.append([*makes.values()])
        if len(makes) == 2 and asked[-1][0][2] == 2:
            raise OutOfMemory("beside each other, after all")
        return {name: Timed(9.0, [2.0 if name == "torch" else 1.0] * rounds, 1.0) for name in makes}

    monkeypatch.setattr(sd21_sweep, "in_turn", in_turn)
    chosen = argparse.Namespace(
        only=["train", "sample"],
        variants=["ours", "ours_remat", "torch"],
        first=1,
        most=2,
        rounds=3,
    )
    found = _found(_row("ours", 1, 1.0))
    assert len([*sd21_sweep.measure(found, chosen, _arguments)]) == 11
    assert asked[:3] == [
        [("train", "ours", 2, True)],
        [("train", "ours_remat", 1, True)],
        [("train", "ours_remat", 2, True)],
    ]
    assert asked[5:7] == [
        [("train", "ours", batch, False), ("train", "torch", batch, False)] for batch in (2, 1)
    ]
    assert found["beside"]["train"]["times_faster"]["ratio"] == 2
    assert not any("remat" in row["variant"] for row in found["points"] if row["task"] == "sample")


def test_utilisation_counts_what_the_network_has_to_compute() -> None:
    row = _row("ours_remat", 4, 1.0)  # 8 images a second
    assert sd21_report.utilisation(row, _found()) == pytest.approx(8 * 3e4 / 1e6)
    drawn = row | {"task": "sample"}
    assert sd21_report.utilisation(drawn, _found(peak_flops=1e9)) == pytest.approx(8 * 1e6 / 1e9)
    assert sd21_report.utilisation(row, _found(peak_flops=None)) is None


def test_the_table_and_the_picture_tell_where_memory_was_out() -> None:
    points = [_row("ours", 4, 10.0), _row("ours", 8, None)]
    times_faster = {"ratio": 1.5, "low": 1.25, "high": 1.75}
    found = _found(*points, beside={"train": {"batch": 4, "times_faster": times_faster}})
    lines = sd21_report.table(found)
    assert lines[2] == "| train | ours | 4 | 0.5 | 8 | 24.0% | 60 | 10.0 |"
    assert lines[3].startswith("| train | ours | 8 | out of memory")
    assert lines[4].endswith("ours is 1.50 [1.25, 1.75] times as fast as torch")
    speed, memory = sd21_report.draw(found).axes
    np.testing.assert_array_equal(speed.lines[0].get_xydata(), [[4, 8.0]])
    np.testing.assert_array_equal(memory.lines[1].get_xydata(), [[8, 0.0]])


def test_operations_are_of_one_image(tmp_path: Path, monkeypatch) -> None:
    """Most weights meet each of its places: 64, or as many as there are tokens."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")
    facts = sd21_sides.prepare(tmp_path, CONFIG, SIZES._replace(batch=8))
    params = facts["weights"]
    assert 2 * 16 * params < facts["forward_flops"] < 2 * 64 * params
    assert (facts["device"]["torch"] is None) == (not importlib.util.find_spec("diffusers"))
