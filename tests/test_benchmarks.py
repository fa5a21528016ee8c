"""Benchmarks: that they run, in turn; what they find is not for tests."""

import functools
import itertools
import time
from pathlib import Path

import pytest

from experiments.benchmarks import in_jax, layers, sd_shaped, unet
from experiments.benchmarks.turns import Run, Timed, in_turn
from zsnr_jax import architectures


def _make(path: Path, name: str):
    """A variant that writes down what it does, and when it is done; in a process of its own."""

    def do(what: str, seconds: float) -> None:
        with path.open("a") as file:
            file.write(f"{what}{name} ")
        time.sleep(seconds)
        with path.open("a") as file:
            file.write(f"{name} ")

    do("ready", 0.5)
    return functools.partial(do, "run", 0.01)


def test_variants_get_ready_and_run_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "order"
    timed = in_turn({name: functools.partial(_make, path, name) for name in "ab"}, rounds=3)
    told = path.read_text().split()
    assert told[:4] == ["readya", "a", "readyb", "b"]
    runs = told[4::2]  # a first call of each, and three rounds, of which one goes backwards
    assert runs == ["runa", "runb"] * 2 + ["runb", "runa"] + ["runa", "runb"]
    assert told[5::2] == [name.removeprefix("run") for name in runs]
    assert all(len(found.seconds) == 3 and found.median >= 0.01 for found in timed.values())
    assert all(0.01 < found.peak_gigabytes < 10 for found in timed.values())


def test_ratios_are_of_neighbours_in_time() -> None:
    slow_minute = Timed(9.0, [1.0, 10.0, 2.0], 1.0)
    found = slow_minute.times_faster_than(Timed(9.0, [2.0, 30.0, 8.0], 1.0))
    assert found == {"ratio": 3.0, "low": 2.5, "high": 3.5}
    one_round = Timed(9.0, [1.0], 1.0).times_faster_than(Timed(9.0, [3.0], 1.0))
    assert one_round == {"ratio": 3.0, "low": 3.0, "high": 3.0}


def _wait() -> Run:
    times = itertools.count()
    return lambda: time.sleep(0.5 if next(times) in (0, 2) else 0.1)


def test_a_turn_of_several_calls_tells_the_seconds_of_one() -> None:
    timed = in_turn({"a": _wait}, rounds=1, calls=3)["a"]
    assert 0.5 <= timed.first < 0.9 and (0.7 / 3) <= timed.median < 0.5


def _hold(megabytes: int):
    return lambda: b"1" * megabytes * 10**6


def test_memory_is_what_a_process_held_itself() -> None:
    held = bytearray(600 * 10**6)  # which a new process's rusage would count from the start
    timed = in_turn(
        {"little": functools.partial(_hold, 1), "much": functools.partial(_hold, 200)}, 1
    )
    del held
    little, much = timed["little"].peak_gigabytes, timed["much"].peak_gigabytes
    assert little < 0.5 and much - little == pytest.approx(0.2, abs=0.02)


def test_ours_is_compared_with_what_it_gains_least_on() -> None:
    timed = {  # by medians alone the last one would be the best
        "ours": Timed(9.0, [1.0, 1.4, 2.0], 1.0),
        "eager": Timed(1.0, [0.9, 1.5, 1.6], 1.0),
        "compiled": Timed(8.0, [1.2, 1.45, 2.6], 1.0),
    }
    row = unet.compared(timed)
    assert row["best_other"] == "eager" and row["rounds"] == 3
    assert row["times_faster"]["eager"]["ratio"] == pytest.approx(0.9)
    assert row["first_call"]["compiled"] == 8.0
    assert len(unet.draw({"train": row}).axes[0].patches) == 2


@pytest.mark.parametrize("task", ["forward", "sample", "train"])
def test_our_side_runs_in_small(task: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sd_shaped, "CONFIG", architectures.TINY["unet"])
    assert sd_shaped.write_weights(tmp_path / "unet") > 0
    sizes = sd_shaped.Sizes(batch=2, images=2, steps=2, size=8)
    run = getattr(in_jax, task)(tmp_path, sizes)
    run()
    run()


@pytest.mark.parametrize(
    "layer, shape",
    [
        ("attention", (1, 4, 5, 2, 3)),
        ("feed-forward", (2, 3, 8)),
        ("norm", (1, 2, 2, 6, 3)),
        ("convolution", (1, 4, 4, 2, 3)),
    ],
)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_each_layer_is_timed(layer: str, shape: tuple[int, ...], gradient: bool, name: str) -> None:
    layers._make(name, layers.Case(layer, shape, gradient))()
