"""The loop around the step: stopped, starved and fed with NaN, it ends as it would have."""

import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsnr_jax import parallel, preemption
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.errors import NotFiniteError, NotSavedError, Preempted
from zsnr_jax.files import read_rows
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train import loop
from zsnr_jax.train.state import TrainState, init_state
from zsnr_jax.train.step import Objective, make_probe, make_train_step

STEPS = 12
OPTIONS = loop.LoopOptions(
    num_steps=STEPS, steps_per_dispatch=1, log_every=4, sample_every=6, save_every=5, keep=9,
    keep_every=0, max_skipped=2,
)  # fmt: skip
PLACEMENT = parallel.make_placement("pmap")
OPTIMIZER = optax.adam(0.1)


def _network(params, x_t, timestep, label, dropout_keys=None):
    """A constant to learn for each label."""
    del timestep, dropout_keys
    return jnp.broadcast_to(params[label][:, None, None, None], x_t.shape)


OBJECTIVE = Objective(_network, DiffusionProcess(), null_condition=3)
STEP = make_train_step(OBJECTIVE, OPTIMIZER, 0.9, 0, PLACEMENT.axis_name)
PROBE = make_probe(OBJECTIVE, 0, PLACEMENT.axis_name)


def _batches(start: int, happens: dict[int, Any]) -> Iterator[Any]:
    """Batches from a step on. What happens before a step: a call, or a value put into a pixel."""
    for step in range(start, STEPS):
        image = np.random.default_rng(step).uniform(-1, 1, (8, 4, 4, 1)).astype(np.float32)
        event = happens.get(step)
        if callable(event):
            event()
        elif event is not None:
            image[3, 1, 1] = event
        yield {
            "image": image,
            "label": np.arange(8, dtype=np.int32) % 3,
            "index": np.arange(8, dtype=np.int32),
        }


def _fresh() -> TrainState:
    return init_state(jnp.zeros(4), OPTIMIZER)


def _resume(checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any] | None]:
    step = checkpoints.latest_step()
    return (_fresh(), None) if step is None else _read(checkpoints, step)


def _read(checkpoints: Checkpoints, step: int) -> tuple[TrainState, dict[str, Any]]:
    like = jax.eval_shape(_fresh)
    record = checkpoints.record(step)
    return checkpoints.restore(step, record, like, PLACEMENT.shardings(like)), record["window"]


def _train(workdir: Path, happens: dict[int, Any] | None = None, **options: Any) -> TrainState:
    (workdir / "samples").mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9)
    try:
        state, window = _resume(checkpoints)
        parts = loop.Parts(
            step=STEP,
            probe=PROBE,
            learning_rate=lambda updates: 0.1 * updates,
            levels=lambda step: np.full(8, 100 + step),
            draw_grid=lambda state: np.zeros((4, 4, 3), np.uint8),
            checkpoints=checkpoints,
            record={"process": {}},
            workdir=workdir,
        )
        batches = _batches(int(state.step), happens or {})
        chosen = OPTIONS._replace(**options)
        return jax.device_get(loop.train(state, batches, parts, chosen, PLACEMENT, window))
    finally:
        checkpoints.close()


def _rows(workdir: Path) -> list[dict[str, Any]]:
    return [row | {"steps_per_second": 0} for row in read_rows(workdir / "metrics.jsonl")]


def _steps(workdir: Path) -> list[int]:
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())  # others a failed save left


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, _train(workdir)


@pytest.fixture(autouse=True)
def _signals(monkeypatch):
    """As in a process of its own."""
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    monkeypatch.setattr(preemption._Notice, "received", None)
    preemption.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_logs_draws_and_saves(whole) -> None:
    workdir, state = whole
    assert (int(state.step), int(state.updates)) == (STEPS, STEPS)
    assert [row["step"] for row in _rows(workdir)] == [4, 8, 12]
    assert [row["learning_rate"] for row in _rows(workdir)] == pytest.approx([0.3, 0.7, 1.1])
    assert _steps(workdir) == [5, 10, 12]
    assert [path.name for path in (workdir / "samples").iterdir()] == ["step_000006.png"]
    assert not (workdir / "skipped.jsonl").exists()


@pytest.mark.parametrize("number", preemption.SIGNALS)
@pytest.mark.parametrize("step", [0, 5, 8])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(
    number, step: int, whole, tmp_path: Path
) -> None:
    with pytest.raises(Preempted, match=f"{number.name}: saved at step {step + 1}"):
        _train(tmp_path, {step: lambda: os.kill(os.getpid(), number)})
    assert _steps(tmp_path)[-1] == step + 1
    preemption._Notice.received = None
    state = _train(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    assert _rows(tmp_path) == _rows(whole[0])


def test_a_signal_before_the_last_step_ends_nothing(whole, tmp_path: Path) -> None:
    state = _train(tmp_path, {STEPS - 1: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    with pytest.raises(Preempted, match="SIGTERM while evaluating"):
        preemption.check("evaluating")


def test_a_step_that_is_not_finite_is_skipped_and_told(tmp_path: Path, capsys) -> None:
    state = _train(tmp_path, {2: np.nan, 3: np.inf, 9: np.nan})
    assert (int(state.step), int(state.updates)) == (STEPS, STEPS - 3)
    assert np.isfinite(state.params).all()
    rows = _rows(tmp_path)
    assert [row["skipped"] for row in rows] == [2, 0, 1]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["learning_rate"] == pytest.approx(0.1 * (STEPS - 3 - 1))
    told = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [row["step"] for row in told] == [2, 3, 9]
    assert told[0] == {"step": 2, "loss": "nan", "grad_norm": "nan", "levels": [102] * 8}
    assert "step 9 was skipped: its loss is nan" in capsys.readouterr().err


def test_too_many_in_a_row_end_the_run_with_a_checkpoint_from_before(tmp_path: Path) -> None:
    happens = dict.fromkeys([1, 2, 4, 5, 6, 7], np.nan)
    with pytest.raises(NotFiniteError, match=r"in 4 steps in a row, up to step 7, .*skipped is 2"):
        _train(tmp_path, happens)
    assert _steps(tmp_path)[-1] == 8
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    state, window = _resume(checkpoints)
    checkpoints.close()
    assert (int(state.step), int(state.updates)) == (8, 8 - 6)
    assert window is not None and window["in_a_row"] == 4
    before = _train(tmp_path / "before", {1: np.nan, 2: np.nan}, num_steps=4)
    np.testing.assert_array_equal(state.params, before.params)
    state = _train(tmp_path)  # with other batches it goes on
    assert (int(state.step), int(state.updates)) == (STEPS, STEPS - 6)


def _allow_files_of(size: int) -> None:
    """A disk that refuses longer ones."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def test_a_disk_that_is_full_for_a_while_costs_nothing(whole, tmp_path: Path, capsys) -> None:
    full, room = lambda: _allow_files_of(0), lambda: _allow_files_of(resource.RLIM_INFINITY)
    try:
        with pytest.warns(UserWarning, match=r"wait to be written|TensorBoard goes without"):
            state = _train(tmp_path, {3: full, 9: room})
    finally:
        room()
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    assert _rows(tmp_path) == _rows(whole[0])
    picture = "samples/step_000006.png"
    assert (tmp_path / picture).read_bytes() == (whole[0] / picture).read_bytes()
    assert "checkpoint 5 was not saved" in capsys.readouterr().err
    assert _steps(tmp_path)[-2:] == [10, 12]
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    for step in checkpoints.steps():  # Orbax may write one after all that it says it could not
        assert int(_read(checkpoints, step)[0].step) == step
    checkpoints.close()


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(loop, "_PATIENCE", 3)
    monkeypatch.setattr(loop, "_PAUSE", 0.2)
    try:
        with pytest.raises(NotSavedError, match="checkpoint 12 was not saved"):
            _train(tmp_path, {11: lambda: _allow_files_of(0)})
    finally:
        _allow_files_of(resource.RLIM_INFINITY)
    assert re.search(r"It is tried again for \d s\.", capsys.readouterr().err)
    assert 12 not in _steps(tmp_path)
    assert int(_train(tmp_path).step) == STEPS
