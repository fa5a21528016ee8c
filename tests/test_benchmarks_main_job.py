"""The main job's benchmark, on checkouts that do nothing but take their time."""

import json
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import main_job

RUN = """
import json, pathlib, sys, time
workdir = pathlib.Path(sys.argv[2].removeprefix("--workdir="))
workdir.mkdir()
time.sleep({seconds})
rows = [
    {{"step": 40 * i + 40, "steps_per_second": rate, "loss": 1 / (i + 1)}}
    for i, rate in enumerate((1, 40, 50, 20))
]
(workdir / "metrics.jsonl").write_text("\\n".join(map(json.dumps, rows)))
values = {{name: {{"value": {ratio}}} for name in {names}}}
(workdir / "results.json").write_text(json.dumps({{"metrics": values}}))
"""


def checkout(folder: Path, body: str) -> Path:
    (folder / "zsnr_jax").mkdir(parents=True)
    (folder / "zsnr_jax" / "__init__.py").touch()
    (folder / "zsnr_jax" / "main.py").write_text(body)
    return folder


def measure(monkeypatch, ours: Path, other: Path, out: Path) -> dict:
    monkeypatch.setattr(main_job, "ROOT", ours)
    arguments = ["main_job", f"--other={other}", "--rounds=1", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", arguments)
    main_job.main()
    return json.loads(out.read_text())


def test_each_checkout_is_run_by_itself(tmp_path: Path, monkeypatch) -> None:
    quick, slow = (
        checkout(tmp_path / name, RUN.format(seconds=s, ratio=ratio, names=main_job.METRICS))
        for name, s, ratio in (("quick", 0.1, 0.9), ("slow", 2.1, 0.4))
    )
    found = measure(monkeypatch, quick, slow, tmp_path / "out.json")
    (ours,), (other,) = found["runs"]["ours"], found["runs"]["other"]
    assert other["seconds"] - ours["seconds"] == pytest.approx(2, abs=1)
    assert found["times_faster"] == pytest.approx(other["seconds"] / ours["seconds"])
    assert (ours["brightness/std_ratio"], other["brightness/std_ratio"]) == (0.9, 0.4)
    assert ours["seconds_of_a_step"] == 1 / 40  # the first row's steps compile
    assert (ours["steps"], ours["loss"]) == (160, (1 / 2 + 1 / 3 + 1 / 4) / 3)


def test_a_run_that_fails_ends_it_with_its_last_line(tmp_path: Path, monkeypatch) -> None:
    broken = checkout(tmp_path / "broken", "raise SystemExit('error: the disk is full')")
    with pytest.raises(SystemExit, match="error: the run of .*broken failed: error: the disk"):
        measure(monkeypatch, broken, broken, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_folder_that_is_no_checkout_is_an_error(tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        measure(monkeypatch, tmp_path, tmp_path, tmp_path / "out.json")
    assert "holds no zsnr_jax: name the folder of a checkout" in capsys.readouterr().err
