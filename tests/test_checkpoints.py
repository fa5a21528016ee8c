"""Checkpoints come back bit for bit, or are refused in one sentence."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsnr_jax import parallel
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.errors import UsageError
from zsnr_jax.train.state import TrainState, init_state

RECORD = {"process": {"prediction": "v"}}


def _state(value: float = 1.5) -> TrainState:
    params = {"w": jnp.linspace(0, value, 1000), "b": jnp.zeros(3)}
    return init_state(params, optax.adam(1e-3)).replace(step=jnp.int32(7))


def _restore(checkpoints: Checkpoints, make_state=_state) -> TrainState:
    like = jax.eval_shape(make_state)
    return checkpoints.restore(7, like, parallel.make_placement("pmap").shardings(like))


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


def test_a_checkpoint_cut_short_is_refused_with_its_folder_and_the_remedy(tmp_path: Path) -> None:
    _save(tmp_path, 7)
    victim = _largest_file(tmp_path / "7" / "state")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UsageError, match=r"checkpoint 7 in .* cannot be read .* move .*7 away"):
        _restore(checkpoints)
    checkpoints.close()


def test_a_record_cut_short_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, 7)
    victim = tmp_path / "7" / "record" / "metadata"
    victim.write_text(victim.read_text()[:10])
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UsageError, match="cannot be read"):
        checkpoints.record(7)
    checkpoints.close()


def test_another_format_is_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("zsnr_jax.checkpoints.FORMAT", 99)
    _save(tmp_path, 7)
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UsageError, match="has format 99, and this version of zsnr_jax reads 1"):
        checkpoints.record(7)
    checkpoints.close()


def test_an_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, 7)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UsageError, match="cannot be read"):
        _restore(checkpoints, lambda: init_state(jnp.zeros(2), optax.adam(1e-3)))
    checkpoints.close()
