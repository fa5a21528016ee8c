"""Checkpoints come back bit for bit, or are refused in one sentence."""

import dataclasses
import resource
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from zsnr_jax import parallel
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.errors import DamagedError, NotSavedError, UsageError
from zsnr_jax.train.state import TrainState, init_state

RECORD = {"process": {"prediction": "v"}}


def _state(value: float = 1.5) -> TrainState:
    params = {"w": jnp.linspace(0, value, 1000), "b": jnp.zeros(3)}
    return init_state(params, optax.adam(1e-3)).replace(step=jnp.int32(7))


def _restore(checkpoints: Checkpoints, make_state=_state) -> TrainState:
    like = jax.eval_shape(make_state)
    shardings = parallel.make_placement("pmap").shardings(like)
    return checkpoints.restore(7, checkpoints.record(7), like, shardings)


def _save(folder: Path, *steps: int, keep: int = 3) -> None:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, _state(step), RECORD)
    checkpoints.close()


def test_state_and_record_come_back_bit_for_bit(tmp_path: Path) -> None:
    _save(tmp_path, 7)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.latest_step() == 7
    assert checkpoints.record(7)["process"] == RECORD["process"]
    restored = _restore(checkpoints)
    jax.tree.map(np.testing.assert_array_equal, restored, _state(7))
    checkpoints.close()


def test_what_is_frozen_is_not_in_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, _state().replace(frozen={"text_encoder": jnp.ones(5)}), RECORD)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert _restore(checkpoints).frozen == ()
    assert not [path for path in tmp_path.rglob("*") if "text_encoder" in path.name]
    checkpoints.close()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_an_empty_folder_has_no_latest_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    checkpoints.close()


def _largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_checkpoint_cut_short_is_damaged(tmp_path: Path) -> None:
    _save(tmp_path, 7)
    victim = _largest_file(tmp_path / "7" / "state")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(DamagedError, match=r"checkpoint 7 in .* is damaged"):
        _restore(checkpoints)
    checkpoints.close()


def test_a_record_cut_short_is_damaged(tmp_path: Path) -> None:
    _save(tmp_path, 7)
    victim = tmp_path / "7" / "record" / "metadata"
    victim.write_text(victim.read_text()[:10])
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(DamagedError):
        checkpoints.record(7)
    checkpoints.close()


@pytest.mark.parametrize("old, new", [('"v"', '"x"'), ('"digests"', '"digestz"')])
def test_a_record_that_was_altered_is_damaged(tmp_path: Path, old: str, new: str) -> None:
    _save(tmp_path, 7)
    victim = tmp_path / "7" / "record" / "metadata"
    assert old in victim.read_text()
    victim.write_text(victim.read_text().replace(old, new, 1))
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(DamagedError, match="its record is not as it was written"):
        checkpoints.record(7)
    checkpoints.close()


def test_an_array_that_was_altered_is_named(tmp_path: Path) -> None:
    """By writing the arrays anew, as no flipped bit would: Orbax reads them without complaint."""
    _save(tmp_path, 7)
    tree = {f.name: getattr(_state(7), f.name) for f in dataclasses.fields(TrainState)[:-1]}
    tree["params"]["b"] = tree["params"]["b"].at[1].set(1e-30)
    shutil.rmtree(tmp_path / "7" / "state")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "7" / "state", tree)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(DamagedError, match=r"\(params/b is not as it was written\)"):
        _restore(checkpoints)
    checkpoints.close()


def test_a_damaged_checkpoint_is_set_aside_and_its_step_can_be_saved_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    _save(folder, 6)
    for place in ("7", "7-2"):
        _save(folder, 7)
        checkpoints = Checkpoints(folder)
        assert checkpoints.set_aside(7) == tmp_path / "damaged" / place
        assert checkpoints.steps() == [6]
        checkpoints.close()
    assert len(list((tmp_path / "damaged").iterdir())) == 2
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.set_aside(6) is None and checkpoints.steps() == [6]
    checkpoints.close()


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every=2)
    for step in range(1, 6):
        checkpoints.save(step, _state(step), RECORD)
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "5"]


@pytest.mark.parametrize(
    "error, told",
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo"), "Gloo"),
        (ValueError("UNKNOWN: Gloo"), "Gloo"),  # as JAX raises where hosts wait for each other
        (ValueError("RESOURCE_EXHAUSTED: disk"), "checkpoint 1 was not saved"),  # TensorStore's
        (OSError("disk"), "checkpoint 1 was not saved"),
    ],
)
def test_among_hosts_a_failed_save_ends_this_one_and_a_lost_host_is_not_called_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    checkpoints = Checkpoints(tmp_path)

    def fail(*_: object, **__: object) -> None:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    monkeypatch.setattr(checkpoints, "_open", lambda: pytest.fail("it would wait for the others"))
    with pytest.raises(type(error) if told == "Gloo" else NotSavedError, match=told):
        checkpoints.save(1, _state(), RECORD)
    checkpoints.close()  # at once


@pytest.mark.parametrize(
    "error, found",
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo"), jax.errors.JaxRuntimeError),
        (ValueError("UNKNOWN: Gloo"), ValueError),
        (ValueError("DATA_LOSS: a chunk"), DamagedError),
    ],
)
def test_among_hosts_a_lost_one_is_not_called_a_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, found: type[Exception]
) -> None:
    _save(tmp_path, 7)
    checkpoints = Checkpoints(tmp_path, read_only=True)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(found) as raised:
        checkpoints.record(7)
    assert type(raised.value) is found  # a DamagedError is a ValueError


def test_a_save_that_fails_is_told_once_and_can_be_repeated(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, _state(), RECORD)
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # longer files are refused
    try:
        with pytest.raises(NotSavedError, match="checkpoint 2 was not saved"):
            checkpoints.save(2, _state(), RECORD)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.steps() == [1]
    checkpoints.check()
    _save_again(checkpoints, 2)
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def _save_again(checkpoints: Checkpoints, step: int) -> None:
    """Threads of the save that failed may still write to its folder, for a moment."""
    for _ in range(20):
        try:
            checkpoints.save(step, _state(), RECORD)
            return checkpoints.wait()
        except NotSavedError:
            time.sleep(0.1)
    raise AssertionError("it cannot be saved again")


def test_what_there_is_no_room_for_is_not_begun(tmp_path: Path, monkeypatch) -> None:
    room = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(NotSavedError, match=r"has 0.00 GB free and it takes 0.00 GB: make room"):
        checkpoints.save(1, _state(), RECORD)
    checkpoints.close()
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("zsnr_jax.checkpoints.FORMAT", 99)
    _save(tmp_path, 7)
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(
        UsageError, match="has format 99, and this version of zsnr_jax reads 1 and 2"
    ):
        checkpoints.record(7)
    checkpoints.close()


def test_a_checkpoint_of_an_older_version_is_read_and_not_verified() -> None:
    """Written by version 0.4.0, whose format was 1: `_save(folder, 7)` of this file."""
    folder = Path(__file__).parent / "golden" / "checkpoint_of_0.4"
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.record(7) == {"format": 1, **RECORD}
    with pytest.warns(UserWarning, match="checkpoint 7 .* holds no digests: not verified"):
        restored = _restore(checkpoints)
    jax.tree.map(np.testing.assert_array_equal, restored, _state(7))
    checkpoints.close()


def test_an_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, 7)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(DamagedError):
        _restore(checkpoints, lambda: init_state(jnp.zeros(2), optax.adam(1e-3)))
    checkpoints.close()
