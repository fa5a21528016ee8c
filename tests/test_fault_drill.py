"""The drill sees what it is there to see; and its report on record adds up."""

import json
import random
from pathlib import Path

import pytest

from experiments.fault_drill import faults, report
from experiments.fault_drill.__main__ import REPORT
from experiments.fault_drill.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A workdir with two checkpoints, of two files each."""
    for step in (5, 10):
        folder = tmp_path / "life" / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "arrays").write_bytes(bytes(range(256)) * 8)
        (folder / "record").write_text("{}")
    return Run(tmp_path / "life", tmp_path / "compiled", "pmap")


def _bits(run: Run, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.checkpoints / str(step)).iterdir()}


@pytest.mark.parametrize("damage", faults.TO_FILES)
@pytest.mark.parametrize("seed", range(3))
def test_a_fault_is_done_to_the_newest_whole_checkpoint_alone(damage, seed: int, run: Run) -> None:
    before = {step: _bits(run, step) for step in run.steps()}
    _, wrong = damage(run, random.Random(seed))
    assert not wrong and run.whole() == [5] and run.damaged == {10}
    assert _bits(run, 5) == before[5]
    now = _bits(run, 10)
    changed = [name for name in before[10] if now.get(name) != before[10][name]]
    assert len(changed) == 1
    if damage is faults.flip_bits:
        pairs = zip(now[changed[0]], before[10][changed[0]], strict=True)
        assert 1 <= sum((a ^ b).bit_count() for a, b in pairs) <= 8


def test_a_checkpoint_that_changes_by_itself_is_seen(run: Run) -> None:
    assert run.look() == [] and run.look() == []
    (run.checkpoints / "5" / "record").write_text("{ }")
    assert run.look() == ["checkpoint 5 changed by itself"]


def test_one_that_was_damaged_and_is_written_anew_is_not(run: Run) -> None:
    assert run.look() == []
    faults.truncate(run, random.Random(0))
    assert run.look() == []
    run.damaged.clear()  # set aside, and saved again
    assert run.look() == []


def test_what_was_lost_is_told_from_a_wrong_code() -> None:
    codes = ["SIGTERM: SIGTERM made it exit with -15", "lost host: the other process exited with 1"]
    assert report.lost(codes) == []
    losses = [
        "it ended with another array w",
        "it went on from step 5, and step 10 was whole",
        "of damaged checkpoints [5] nothing is left",
        "checkpoint 5 changed by itself",
        "lost host: the other process did not notice",
        "full disk: it did not save once there was room",
    ]
    assert report.lost([*codes, *losses]) == losses


def test_the_report_on_record_adds_up_and_nothing_was_lost() -> None:
    found = json.loads(REPORT.read_text())
    assert found["total"] == report.total(found["parts"])
    assert len({part["seed"] for part in found["parts"]}) == len(found["parts"])
    for part in found["parts"]:
        assert report.lost(part["wrong"]) == [] and part["runs_ended"] > 0
        assert part["machine"] and part["date"] and part["commit"]
    assert found["total"]["all"] >= 500
    kinds = {"kill -9", "SIGTERM", "flipped bits", "truncated file", "deleted file", "full disk",
             "lost host"}  # fmt: skip
    assert found["total"]["faults"].keys() >= kinds
