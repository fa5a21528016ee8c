"""Devices and hosts: the only file that names them.

Data parallelism by `jax.pmap`: every device holds the whole state and a slice of the batch. The
state has no device axis; pmap takes and returns it as one replicated value (axis None), so that a
checkpoint does not know how many devices wrote it.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from zsnr_jax.errors import UsageError

AXIS = "batch"  # the name under which devices share a batch


def host() -> int:
    """This process's number, 0..num_hosts()-1."""
    return jax.process_index()


def num_hosts() -> int:
    """How many processes share the run."""
    return jax.process_count()


def require_one_host() -> None:
    """Refuse several hosts, who would all write the same files. Raises: UsageError."""
    if num_hosts() > 1:
        raise UsageError(
            f"this version trains on the devices of one host, and there are {num_hosts()}: start "
            "it on one."
        )


def require_divisible(batch_size: int, name: str) -> None:
    """Refuse a batch that the devices cannot share evenly. Raises: UsageError."""
    if batch_size % jax.device_count():
        raise UsageError(
            f"{name}={batch_size} cannot be shared evenly by {jax.device_count()} devices: make it "
            f"a multiple of {jax.device_count()}."
        )


def replicated() -> jax.sharding.NamedSharding:
    """The placement of a state: whole, on every device, as the steps return it."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def replicate(state: Any) -> Any:
    """Put a state where the steps return it; left elsewhere, the second step compiles again."""
    return jax.device_put(state, replicated())


def parallel_step(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Place (state, batches) -> (state, metrics) on all devices; the state's buffers are reused.

    The batches are [steps, rows, ...]: each one's rows are split over this host's devices. Metrics
    must come back reduced over `AXIS`.
    """
    placed = jax.pmap(step, axis_name=AXIS, in_axes=(None, 1), out_axes=None, donate_argnums=0)
    return lambda state, batches: placed(state, split_rows(batches, axis=1))


def parallel_probe(probe: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Place (state, batch) -> reduced value on all devices; the state is kept."""
    placed = jax.pmap(probe, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
    return lambda state, batch: placed(state, split_rows(batch))


def parallel_rows(function: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], np.ndarray]:
    """Place (shared, rows) -> rows on this host's devices: for sampling.

    `shared` is a pytree that every device gets whole, `rows` one whose leaves are split.
    """
    placed = jax.pmap(function, in_axes=(None, 0), devices=jax.local_devices())

    def on_all(shared: Any, rows: Any) -> np.ndarray:
        out = np.asarray(placed(shared, split_rows(rows)))
        return out.reshape(-1, *out.shape[2:])

    return on_all


def round_up(rows: int) -> int:
    """The least number of rows, at least `rows`, that this host's devices share evenly."""
    return -(-rows // jax.local_device_count()) * jax.local_device_count()


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
