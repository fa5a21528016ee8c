"""Checkpoints of a run: state, and the record of what it belongs to, by Orbax.

Beside the arrays each checkpoint holds a JSON record: the diffusion process, the network's sizes
and the fingerprint of the data. A run continues, and a sample is drawn, only where they agree.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zsnr_jax.errors import UsageError
from zsnr_jax.train.state import TrainState

FORMAT = 1  # of the record and of the tree of arrays; another one is refused, not guessed at


class Checkpoints:
    """The checkpoints in one folder. Saving goes on in the background until `close`."""

    def __init__(self, folder: Path, keep: int = 1, read_only: bool = False):
        """keep: how many of the newest stay; read_only: change nothing, not even stray files."""
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=not read_only,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Copy the state, but for what is frozen, to the host; write it in the background.

        An error of an earlier save is raised here, or by `check` or `close`: never swallowed.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_without_frozen(state)),
            record=ocp.args.JsonSave({"format": FORMAT, **record}),
        )
        if not self._manager.save(step, args=args, force=True):
            raise RuntimeError(f"Orbax did not save step {step} in {self._folder}.")

    def record(self, step: int) -> dict[str, Any]:
        """Read the record of a checkpoint. Raises: UsageError where it is damaged or too new."""
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = self._restore(step, args).record
        if record.get("format") != FORMAT:
            raise UsageError(
                f"checkpoint {step} in {self._folder} has format {record.get('format')}, and this "
                f"version of zsnr_jax reads {FORMAT}: use the version that wrote it."
            )
        return record

    def restore(self, step: int, like: TrainState, shardings: TrainState) -> TrainState:
        """Read the state of a checkpoint, but for what is frozen, which comes back as ().

        Args: like: of the shapes and dtypes; shardings: of every array, on the devices of now;
          those that wrote it do not matter.
        Raises: UsageError where a file is damaged or an array does not fit.
        """
        shapes = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            _without_frozen(like),
            _without_frozen(shardings),
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        return TrainState(**self._restore(step, args).state)

    def check(self) -> None:
        """Raise the error of a save that failed in the background."""
        self._manager.check_for_errors()

    def close(self) -> None:
        """Wait until all is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
            raise UsageError(
                f"checkpoint {step} in {self._folder} cannot be read ({_first_line(error)}): move "
                f"{self._folder / str(step)} away to go on from the one before, or start over in "
                "another --workdir."
            ) from error


def _without_frozen(state: TrainState) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(state))
    return {name: getattr(state, name) for name in fields if name != "frozen"}


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r"[:(]", line)[0].strip()  # what follows is of use to Orbax's authors only
