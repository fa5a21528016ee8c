"""Checkpoints of a run that can be trusted: state, and the record of what it belongs to, by Orbax.

Beside the arrays each checkpoint holds a JSON record: the diffusion process, the network's sizes,
the fingerprint of the data, the progress of the log, and the digest of every array. A run goes on,
and a sample is drawn, only where all agree. Orbax names a checkpoint once it is whole; what damages
it afterwards, a disk or a hand, the digests tell.

The folder:  STEP/  whole checkpoints;  *.orbax-checkpoint-tmp*  what a kill left, and is removed.
Beside it:   damaged/STEP  what was found damaged, which nothing here ever deletes.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zsnr_jax import digests, files, parallel
from zsnr_jax.errors import DamagedError, NotSavedError, UsageError
from zsnr_jax.train.state import TrainState

FORMAT = 2  # of the record and of the tree of arrays
_WITHOUT_DIGESTS = 1  # the format before: read, and not verified
_MAX_RECORD = 2**26  # bytes; that of Stable Diffusion has half a million
_SPARE = 1.1  # free space asked for, in sizes of the state


class Checkpoints:
    """The checkpoints in one folder. Saving goes on in the background until `close`."""

    def __init__(
        self, folder: Path, keep: int = 1, keep_every: int = 0, read_only: bool = False
    ) -> None:
        """Args: keep: how many of the newest stay; keep_every: of which steps all stay as well, 0
        of none; read_only: change nothing, not even stray files.
        """
        self._folder, self._read_only = folder, read_only
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            enable_async_checkpointing=not read_only,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = self._open()
        self._saving: int | None = None  # the step that is written in the background, if any
        self._failed = False  # whether a save did, whose threads may write for a moment longer

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, newest first."""
        return sorted(self._manager.all_steps(read=True), reverse=True)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return next(iter(self.steps()), None)

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Copy the state, but for what is frozen, to the host; write it in the background.

        Raises: NotSavedError where this or an earlier save failed; another may be tried.
        """
        tree = _without_frozen(state)
        self._require_space(step, tree)
        record = {"format": FORMAT, **record, "digests": digests.of_tree(tree)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),
            record=ocp.args.JsonSave(record | {"sha256": _sha256(record)}),
        )
        try:
            self._manager.wait_until_finished()  # the error of an earlier save is its own
            self._remove_unfinished()
            self._saving = step
            saved = self._manager.save(step, args=args, force=True)
        except Exception as error:  # of many types, Orbax's and TensorStore's
            self._give_up(error)
        if not saved:
            raise NotSavedError(f"checkpoint {step} was not saved: {self._folder} has later ones.")

    def check(self) -> None:
        """Raise the error of a save that failed in the background: NotSavedError, once."""
        try:
            self._manager.check_for_errors()
        except Exception as error:  # as in `save`
            self._give_up(error)

    def wait(self) -> None:
        """Wait until all is written. Raises: NotSavedError where that failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in `save`
            self._give_up(error)

    def close(self) -> None:
        """`wait`, and end."""
        if self._failed and parallel.num_hosts() > 1:
            return  # the others wait for this save; that its host is gone, they will be told
        self.wait()
        self._manager.close()

    def record(self, step: int) -> dict[str, Any]:
        """Read the record of a checkpoint.

        Raises: DamagedError where it is not as it was written; UsageError where its format is of
          another version.
        """
        path = self._folder / str(step) / "record" / "metadata"
        if path.exists() and path.stat().st_size > _MAX_RECORD:
            raise self._damaged(step, f"its record has {path.stat().st_size} bytes")
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = self._restore(step, args).record
        version = record.get("format") if isinstance(record, dict) else None
        if version == _WITHOUT_DIGESTS:
            return record
        if version != FORMAT:
            raise UsageError(
                f"checkpoint {step} in {self._folder} has format {version}, and this version of "
                f"zsnr_jax reads {_WITHOUT_DIGESTS} and {FORMAT}: use the version that wrote it."
            )
        if record.pop("sha256", None) != _sha256(record):
            raise self._damaged(step, "its record is not as it was written")
        return record

    def restore(
        self, step: int, record: dict[str, Any], like: TrainState, shardings: TrainState
    ) -> TrainState:
        """Read the state of a checkpoint, but for what is frozen, which comes back as ().

        Args: record: its own, by `record`; like: of the shapes and dtypes; shardings: of every
          array, on the devices of now; those that wrote it do not matter.
        Raises: DamagedError where a file is damaged, or an array is not as it was written.
        """
        shapes = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            _without_frozen(like),
            _without_frozen(shardings),
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        tree = self._restore(step, args).state
        if (expected := record.get("digests")) is None:
            told = (
                f"checkpoint {step} is of version 0.4 or older and holds no digests: not verified."
            )
            warnings.warn(told, stacklevel=2)
        else:
            wrong = digests.differing(digests.of_tree(tree), expected)
            if wrong:
                reason = f"{wrong[0]} is not as it was written"
                more = f", and {len(wrong) - 1} more arrays" if len(wrong) > 1 else ""
                raise self._damaged(step, reason + more)
        return TrainState(**tree)

    def set_aside(self, step: int) -> Path | None:
        """Move a damaged checkpoint out of the way, where it can be looked at; then `reload`.

        Returns: whereto; None where nothing may be changed, and it stays.
        """
        if self._read_only:
            return None
        shelf = self._folder.parent / "damaged"
        shelf.mkdir(exist_ok=True)
        taken = len(list(shelf.glob(f"{step}*")))
        place = shelf / (f"{step}-{taken + 1}" if taken else str(step))
        shutil.move(self._folder / str(step), place)
        return place

    def reload(self) -> None:
        """Look at the folder anew. Where one host has changed it, every host needs that.

        A host that goes by an older list would refuse to save a step that another one saves.
        """
        self._manager.reload()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._folder.absolute(), options=self._options)

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
            if parallel.is_between_hosts(error):
                raise  # a host that is gone damages no file
            raise self._damaged(step, _gist(error)) from error

    def _damaged(self, step: int, reason: str) -> DamagedError:
        return DamagedError(f"checkpoint {step} in {self._folder} is damaged ({reason})")

    def _require_space(self, step: int, tree: Any) -> None:
        """Refuse to begin what the disk has no room for: half of it would fill the rest."""
        needed = _SPARE * sum(x.nbytes for x in jax.tree.leaves(tree))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise NotSavedError(
                f"checkpoint {step} was not saved, since {self._folder} has {free / 1e9:.2f} GB "
                f"free and it takes {needed / 1e9:.2f} GB: make room there."
            )

    def _remove_unfinished(self) -> None:
        """Remove what a failed save left, as far as that goes; nothing is being saved now."""
        for folder in self._folder.glob("*.orbax-checkpoint-tmp") if self._failed else ():
            shutil.rmtree(folder, ignore_errors=True)

    def _give_up(self, error: Exception) -> None:
        """Forget the save that failed, remove what it left, and tell of it.

        Orbax would list its step as saved, and refuse to save it again.
        """
        step, self._saving, self._failed = self._saving, None, True
        if parallel.num_hosts() > 1:  # which open a manager together, and the others are not here
            if parallel.is_between_hosts(error):
                raise error  # `parallel.hosts_may_be_lost` asks who is gone
        else:
            with contextlib.suppress(Exception):  # it may tell the same error again
                self._manager.close()
            # A new manager would trip over files that appear in a folder while it removes it.
            self._options = dataclasses.replace(self._options, cleanup_tmp_directories=False)
            self._manager = self._open()
            self._remove_unfinished()
        raise NotSavedError(
            f"checkpoint {step} was not saved to {self._folder} ({_gist(error)}): make room "
            "there, or make it writable."
        ) from error


def _without_frozen(state: TrainState) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(state))
    return {name: getattr(state, name) for name in fields if name != "frozen"}


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _gist(error: Exception) -> str:
    """What Orbax says, but for what is of use to its authors only."""
    return re.split(r"[:(]", files.reason(error))[0].strip()
