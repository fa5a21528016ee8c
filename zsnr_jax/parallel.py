"""Devices and hosts: the only file that names them.

Two placements of one pure step. By `pmap` every device holds the whole state and a slice of the
batch. By `fsdp` each device holds a slice of the state as well, and XLA gathers what it computes
with: a state need not fit one device. In neither has the state an axis for devices, so that a
checkpoint does not know how many devices wrote it, nor by which placement.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # no public name tells which hosts still answer
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zsnr_jax import files
from zsnr_jax.errors import LostHostError, UsageError

_A_DAY = 24 * 60 * 60
_TIME_TO_ANSWER = 5  # seconds in which all hosts notice that one is gone
_STATUS = ("UNKNOWN: ", "UNAVAILABLE: ", "DEADLINE_EXCEEDED: ", "ABORTED: ")  # of XLA's errors
AXIS = "batch"  # the name under which pmapped devices share a batch
MODES = ("pmap", "fsdp")
_REPLICA, _SHARD = "replica", "shard"  # axes of an fsdp mesh; the batch lies along both
# One replica lies in so many slices at most: with more, fewer arrays have an axis that they divide,
# and more would lie whole on every device (of Stable Diffusion's UNet 1 part in 10000 with 64
# slices, and 82 % with 1024).
_MOST_SLICES = 64
_SMALL = 1024  # values: what is no larger is left whole, being cheaper to keep than to gather


def start_hosts(heartbeat: int) -> None:
    """Join the processes of a TPU pod or a SLURM job; to be called before any computation.

    They are found by JAX (`jax.distributed.initialize` without arguments).
    Args: heartbeat: seconds of silence after which a host counts as lost, and the others end.
    Raises: UsageError where they are not found, or do not answer.
    """
    try:
        # The first host may measure samples for hours while the others wait for it to end.
        jax.distributed.initialize(
            heartbeat_timeout_seconds=heartbeat, shutdown_timeout_seconds=_A_DAY
        )
    except Exception as error:  # of many types, one for each kind of cluster
        reason = files.reason(error)
        raise UsageError(
            f"--multihost finds no other hosts ({reason}): start it on every host of a TPU pod, or "
            "by srun in a SLURM job, or leave it out on a single host."
        ) from error


@contextlib.contextmanager
def hosts_may_be_lost() -> Iterator[None]:
    """End with a message that names the host that is gone, where a computation fails for that.

    Where devices wait in silence instead of failing, as on TPUs, JAX ends the process by itself
    after the heartbeat, by SIGABRT, and its message names the task.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not is_between_hosts(error):
            raise
        lost = _silent_hosts()
        if not lost:
            raise
        names = " and ".join(map(str, lost))
        raise LostHostError(
            f"host {names} of {num_hosts()}, counted from 0, is gone ({files.reason(error)}): "
            "repeat the command, on any number of hosts."
        ) from error


def is_between_hosts(error: Exception) -> bool:
    """Whether an error may be that of hosts that could not meet, since one is gone.

    JAX raises most of them as JaxRuntimeError, and those of `sync_global_devices` as ValueError.
    """
    of_runtime = isinstance(error, jax.errors.JaxRuntimeError)
    return num_hosts() > 1 and (of_runtime or str(error).startswith(_STATUS))


def _silent_hosts() -> list[int]:
    """The hosts that do not answer within a few seconds; all others ask at the same time."""
    client: Any = distributed.global_state.client
    try:
        client.key_value_set(f"alive/{host()}", "", allow_overwrite=True)
        time.sleep(_TIME_TO_ANSWER)
        answered = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get("alive/")}
    except jax.errors.JaxRuntimeError:
        return [0]  # it keeps the answers
    return sorted(set(range(num_hosts())) - answered)


def host() -> int:
    """This process's number, 0..num_hosts()-1."""
    return jax.process_index()


def num_hosts() -> int:
    """How many processes share the run."""
    return jax.process_count()


def is_first_host() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def wait_for_hosts(name: str) -> None:
    """Wait until every host has come to the place of this name."""
    if num_hosts() > 1:
        multihost_utils.sync_global_devices(name)


def require_divisible(batch_size: int, name: str) -> None:
    """Refuse a batch that the devices cannot share evenly. Raises: UsageError."""
    if batch_size % jax.device_count():
        raise UsageError(
            f"{name}={batch_size} cannot be shared evenly by {jax.device_count()} devices: make it "
            f"a multiple of {jax.device_count()}."
        )


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a run's arrays lie on devices. `axis_name` is what a step must reduce over, if any."""

    mode: str
    mesh: Mesh

    @property
    def axis_name(self) -> str | None:
        """Of `train.step.make_train_step`: by fsdp, and on one device, a step sees the whole batch.

        XLA copies what it reduces even where there is one device alone.
        """
        return AXIS if self.mode == "pmap" and self.num_devices > 1 else None

    @property
    def num_devices(self) -> int:
        """Over all hosts."""
        return self.mesh.size

    @property
    def whole(self) -> NamedSharding:
        """All of an array on every device."""
        return NamedSharding(self.mesh, P())

    def shardings(self, state: Any) -> Any:
        """Where the leaves of a state, or their shapes, lie: a pytree of NamedSharding."""
        if self.mode == "pmap":
            return jax.tree.map(lambda _: self.whole, state)
        return jax.tree.map(lambda x: NamedSharding(self.mesh, self._sliced(x.shape)), state)

    def put(self, state: Any) -> Any:
        """A state, equal on every host, where the steps return it.

        What lies on the devices of several hosts already, as a restored state, stays there.
        """
        shardings = self.shardings(state)
        if num_hosts() == 1:
            return jax.device_put(state, shardings)
        return jax.tree.map(_put_on_hosts, state, shardings)

    def gather(self, tree: Any) -> Any:
        """A pytree with every array whole on every device; what lies so already is not copied."""
        joined = self.join(tree)
        leaves = jax.tree.leaves(joined)
        if all(isinstance(x, jax.Array) and x.sharding == self.whole for x in leaves):
            return joined
        return _identity(self.whole)(joined)

    def gather_inside(self, tree: Any) -> Any:
        """Within a program: weights whole on every device, before they are used.

        Left to itself, XLA sends activations around instead wherever it thinks that is less.
        """
        if self.mode == "pmap":
            return tree
        return jax.lax.with_sharding_constraint(tree, self.whole)

    def scatter_inside(self, tree: Any) -> Any:
        """Within a program: gradients like the parameters, in the slices that they lie in."""
        if self.mode == "pmap":
            return tree
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def join(self, tree: Any) -> Any:
        """What the steps return, as arrays over all hosts; by pmap each host has its own."""
        if num_hosts() == 1 or self.mode == "fsdp":
            return tree
        return multihost_utils.host_local_array_to_global_array(tree, self.mesh, P())

    def step(self, step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Place (state, batches) -> (state, metrics); the state's buffers are reused.

        The batches are this host's rows, [steps, rows, ...]. By pmap the metrics must come back
        reduced over `axis_name`.
        """
        if self.mode == "pmap":
            self._require_all_devices()
            placed = jax.pmap(
                step, axis_name=AXIS, in_axes=(None, 1), out_axes=None, donate_argnums=0
            )
            return lambda state, batches: placed(state, split_rows(batches, axis=1))

        placed = jax.jit(self._sharded(step), donate_argnums=0)
        return lambda state, batches: placed(state, self.rows(batches, axis=1))

    def lower_step(
        self, step: Callable[[Any, Any], Any], state: Any, batches: Any
    ) -> jax.stages.Lowered:
        """The program of `step` for shapes of a state and of whole batches; nothing is run.

        The devices need not be there. (By pmap it is the program that pmap makes of a step.)
        """
        if self.mode == "pmap":
            program = jax.shard_map(
                step, mesh=self.mesh, in_specs=(P(), P(None, AXIS)), out_specs=P(), check_vma=False
            )
        else:
            program = self._sharded(step)
        state = _placed(state, self.shardings(state))
        batches = _placed(batches, jax.tree.map(lambda _: self.row_sharding(axis=1), batches))
        return jax.jit(program, donate_argnums=0).lower(state, batches)

    def lower_draw(
        self, function: Callable[[Any, Any], jax.Array], shared: Any, rows: Any
    ) -> jax.stages.Lowered:
        """The program of `draw` for shapes of what is shared and of all rows; nothing is run."""
        shared = _placed(shared, jax.tree.map(lambda _: self.whole, shared))
        rows = _placed(rows, jax.tree.map(lambda _: self.row_sharding(), rows))
        return self._mapped(function).lower(shared, rows)

    def probe(self, probe: Callable[..., Any]) -> Callable[[Any, Any], Any]:
        """Place (state, batch) -> one value; the state is kept, and the rows are this host's."""
        if self.mode == "pmap":
            self._require_all_devices()
            placed = jax.pmap(probe, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
            return lambda state, batch: placed(state, split_rows(batch))
        placed = jax.jit(probe)
        return lambda state, batch: placed(state, self.rows(batch))

    def draw(self, function: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], np.ndarray]:
        """Place (shared, rows) -> rows over all devices; every host gives, and gets, all rows.

        Args: function: of `shared`, whole on every device (see `gather`), and of a device's rows.
        """
        placed = self._mapped(function)
        place = lambda x: _put_on_hosts(x, self.row_sharding())  # noqa: E731
        return lambda shared, rows: np.asarray(placed(shared, jax.tree.map(place, rows)))

    def rows(self, batch: Any, axis: int = 0) -> Any:
        """This host's rows of a batch as slices of one array over all devices."""
        sharding = self.row_sharding(axis)
        make = jax.make_array_from_process_local_data
        return jax.tree.map(lambda x: make(sharding, np.asarray(x)), batch)

    def row_sharding(self, axis: int = 0) -> NamedSharding:
        """Rows at `axis`, evenly over all devices."""
        return NamedSharding(self.mesh, P(*[None] * axis, self.mesh.axis_names))

    def _require_all_devices(self) -> None:
        """A pmap of some would leave its rows to the others as well, and reduce nothing."""
        if self.num_devices != jax.device_count():
            raise UsageError(
                f"by pmap a step runs on all {jax.device_count()} devices, and this placement has "
                f"{self.num_devices}: make it of all, or by fsdp."
            )

    def _sharded(self, step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def sharded(state: Any, batches: Any) -> Any:
            state, metrics = step(state, batches)
            return jax.lax.with_sharding_constraint(state, self.shardings(state)), metrics

        return sharded

    def _mapped(self, function: Callable[[Any, Any], jax.Array]) -> Any:
        rows = P(self.mesh.axis_names)
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=(P(), rows), out_specs=rows, check_vma=False
        )
        return jax.jit(mapped, out_shardings=self.whole)

    def _sliced(self, shape: Sequence[int]) -> P:
        """The largest axis that the shards divide is sliced; the first of several."""
        shards = self.mesh.shape[_SHARD]
        fitting = [n if n % shards == 0 else 0 for n in shape]
        if math.prod(shape) <= _SMALL or not any(fitting):
            return P()
        axis = fitting.index(max(fitting))
        return P(*[None] * axis, _SHARD)


def make_placement(
    mode: str, mesh: Sequence[int] = (), devices: Sequence[Any] | None = None
) -> Placement:
    """Lay a mesh over devices.

    Args:
      mode: pmap or fsdp.
      mesh: of fsdp, (replicas, slices): each replica of the state lies in as many slices. Empty:
        as many slices as there are devices, but 64 at most, and as many replicas as that makes.
      devices: all of them, if None.
    Raises: UsageError for an unknown mode, or a mesh that is not of all devices.
    """
    chosen = np.array(jax.devices() if devices is None else devices)
    if mode not in MODES:
        raise UsageError(f"parallel.mode {mode!r} is unknown: choose {' or '.join(MODES)}.")
    if mode == "pmap" and mesh:
        raise UsageError(
            f"parallel.mesh={tuple(mesh)} is of fsdp, and parallel.mode is pmap: set it to ()."
        )
    if mode == "pmap":  # its own mesh: a state that lay on another would be compiled for once more
        return Placement(mode, Mesh(chosen.reshape(-1), (AXIS,)))
    sizes = tuple(mesh) or _default_mesh(chosen.size)
    if len(sizes) != 2 or min(sizes) < 1:
        raise UsageError(f"parallel.mesh={sizes} must be (replicas, slices), or ().")
    if math.prod(sizes) != chosen.size:
        raise UsageError(
            f"parallel.mesh={sizes} is of {math.prod(sizes)} devices, and there are "
            f"{chosen.size}: make (replicas, slices) multiply to {chosen.size}, or set it to ()."
        )
    return Placement(mode, Mesh(chosen.reshape(sizes), (_REPLICA, _SHARD)))


def _default_mesh(devices: int) -> tuple[int, int]:
    slices = devices if devices <= _MOST_SLICES else math.gcd(devices, _MOST_SLICES)
    return devices // slices, slices


def parallel_rows(function: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], np.ndarray]:
    """Place (shared, rows) -> rows on this host's devices, for work that hosts do apart.

    `shared` is a pytree that every device gets whole, `rows` one whose leaves are split.
    """
    placed = jax.pmap(function, in_axes=(None, 0), devices=jax.local_devices())

    def on_all(shared: Any, rows: Any) -> np.ndarray:
        out = np.asarray(placed(shared, split_rows(rows)))
        return out.reshape(-1, *out.shape[2:])

    return on_all


def round_up(rows: int, devices: int | None = None) -> int:
    """The least number of rows, at least `rows`, that this host's devices share evenly."""
    devices = jax.local_device_count() if devices is None else devices
    return -(-rows // devices) * devices


def split_rows(batch: Any, axis: int = 0) -> Any:
    """[..., rows, ...] -> [..., devices, rows / devices, ...] at `axis`, on every leaf."""
    devices = jax.local_device_count()

    def split(x: Any) -> Any:
        x = np.asarray(x)
        rows = x.shape[axis]
        return x.reshape(*x.shape[:axis], devices, rows // devices, *x.shape[axis + 1 :])

    return jax.tree.map(split, batch)


def describe() -> str:
    """The hardware in words, for results: kind and number of devices, and of hosts."""
    device = jax.devices()[0]
    kind = f"{device.platform.upper()} {device.device_kind}".replace("CPU cpu", "CPU")
    hosts = f" on {num_hosts()} hosts" if num_hosts() > 1 else ""
    return f"{jax.device_count()} x {kind}{hosts}"


@functools.cache
def _identity(sharding: NamedSharding) -> Any:
    """A program that only moves."""
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def _placed(shapes: Any, shardings: Any) -> Any:
    """Shapes that say where they lie."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _put_on_hosts(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every host has whole, as one over the devices of all."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x  # it lies so already: a checkpoint was read into it
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
