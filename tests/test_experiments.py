"""Experiments: each runs in small, and what is on record of each holds its claim.

Those that train networks run in small by `make smoke`.
"""

import importlib
import json
from pathlib import Path

import pytest

from experiments import readme, record
from experiments.record import Experiment, row, run

FOLDER = Path(record.__file__).parent
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.py") if "EXPERIMENT = Experiment(" in path.read_text()
)


def experiment(name: str) -> Experiment:
    return importlib.import_module(f"experiments.{name}").EXPERIMENT


IDEAL = [name for name in NAMES if not experiment(name).trained]


def test_every_experiment_is_in_the_readmes_table() -> None:
    assert sorted(readme.NAMES) == NAMES


@pytest.mark.parametrize("name", IDEAL)
def test_an_experiment_runs_in_small_and_leaves_numbers_and_a_picture(
    name: str, tmp_path: Path
) -> None:
    run(experiment(name), ["--smoke", f"--out={tmp_path}"])
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["name"] == name and found["command"].endswith("--smoke")
    assert all(line.keys() == row("").keys() for line in found["rows"])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_on_record_holds_the_claim(name: str) -> None:
    made = experiment(name)
    found = json.loads((record.RESULTS / f"{name}.json").read_text())
    assert (found["name"], found["place"], found["claim"]) == (made.name, made.place, made.claim)
    assert found["command"] in (FOLDER / f"{name}.py").read_text()
    assert (found["paper"], found["summary"]) == (made.paper, made.summary(found))
    assert (record.RESULTS / f"{name}.png").exists()
    made.check(found)


def test_a_smoke_run_never_overwrites_what_is_on_record(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run(experiment("table1_terminal_snr"), ["--smoke"])
    assert "give it a folder by --out=" in capsys.readouterr().err


def test_a_surprise_is_on_record_before_it_is_told(tmp_path: Path) -> None:
    made = experiment("table1_terminal_snr")

    def surprised(results: dict) -> None:
        raise AssertionError("not so")

    with pytest.raises(AssertionError, match="not so"):
        run(made._replace(check=surprised), [f"--out={tmp_path}"])
    assert json.loads((tmp_path / f"{made.name}.json").read_text())["holds"] is False
