"""Not a test: two hosts of four devices each lay arrays, run programs, and write what came out.

python tests/two_hosts.py HOST PORT OUT, with four forced CPU devices in XLA_FLAGS; for each HOST, 0
and 1, at the same time. They find each other on this machine, at PORT. OUT is JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import digests, hlo, parallel
from zsnr_jax.parallel import Placement
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train.optimizer import make_optimizer
from zsnr_jax.train.state import init_state
from zsnr_jax.train.step import Objective, make_train_step, repeat_step

WAYS = {"pmap": ("pmap", ()), "fsdp": ("fsdp", (2, 4))}
# Of a network of two products: two are large enough to be sliced, and two are not.
SHAPES = {"in": (64, 128), "label": (4, 128), "out": (128, 64), "bias": (1, 64)}
BATCH = 32


def network(params: Any, x_t: jax.Array, timestep: jax.Array, label: jax.Array, keys: Any = None):
    """Two products of an image of 64 pixels."""
    del timestep, keys
    hidden = jnp.tanh(x_t.reshape(len(x_t), -1) @ params["in"] + params["label"][label])
    return (hidden @ params["out"] + params["bias"]).reshape(x_t.shape)


def programs(placement: Placement) -> dict[str, Any]:
    """What the training step and a draw hold and send, lowered for shapes alone."""
    optimizer = make_optimizer(lambda step: 1e-3, 0.9, 0.99, 0.0, 1.0)
    objective = Objective(network, DiffusionProcess(), null_condition=3)
    step = make_train_step(
        objective, optimizer, 0.9, 0, placement.axis_name, 1, placement.gather_inside,
        placement.scatter_inside,
    )  # fmt: skip
    shape = lambda *of, dtype=jnp.float32: jax.ShapeDtypeStruct(of, dtype)  # noqa: E731
    state = jax.eval_shape(
        lambda: init_state({name: jnp.zeros(size) for name, size in SHAPES.items()}, optimizer)
    )
    batches = {"image": shape(1, BATCH, 8, 8, 1)} | {
        name: shape(1, BATCH, dtype=jnp.int32) for name in ("label", "index")
    }
    draw = lambda shared, rows: rows @ shared  # noqa: E731
    return {
        "step": cost(placement.lower_step(repeat_step(step, 1), state, batches)),
        "draw": cost(placement.lower_draw(draw, shape(64, 128), shape(16, 64))),
    }


def cost(lowered: jax.stages.Lowered) -> dict[str, Any]:
    compiled = lowered.compile()
    memory, work = hlo.read_memory(compiled), hlo.read_work(compiled.as_text() or "", 8)
    assert memory is not None
    return {
        "arguments": memory.arguments,
        "aliased": memory.aliased,
        "traffic": {kind.kind: kind.size for kind in work.traffic},
    }


def arrays(placement: Placement) -> dict[str, Any]:
    """A state that is put, stepped, joined, gathered and drawn with; rows differ by host."""
    state = {"w": np.arange(2048, dtype=np.float32).reshape(64, 32), "b": np.array([7], np.float32)}
    put = placement.put(state)

    def step(state: Any, batches: Any) -> Any:
        """Adds a sum over all rows, in which each row has a weight of its own."""
        x = batches["x"][0]
        total = (x * x).sum()
        if placement.axis_name is not None:
            total = jax.lax.psum(total, placement.axis_name)
        return {"w": state["w"] + total, "b": state["b"]}, {"total": total}

    rows = np.arange(8, dtype=np.float32) + 8 * parallel.host()
    again = placement.put(put)  # as a checkpoint that was read
    of_put = digests.of_tree(put)
    local = [[s.data.shape for s in x["w"].addressable_shards] for x in (put, again)]
    stepped, metrics = placement.step(step)(put, {"x": rows[None]})
    joined, gathered = placement.join(stepped), placement.gather(stepped)
    draw = placement.draw(lambda shared, rows: rows * shared["w"][0, 1])
    return {
        "local": local,
        "total": float(metrics["total"]),
        "devices of joined": len(joined["w"].sharding.device_set),
        "gathered": np.asarray(gathered["w"].addressable_data(3)).tolist(),
        "small": np.asarray(gathered["b"].addressable_data(0)).tolist(),
        "digests": of_put,
        "drawn": draw(gathered, np.arange(16, dtype=np.float32)).tolist(),
        "rows": [np.ravel(s.data).tolist() for s in placement.rows(rows).addressable_shards],
    }


def main(host: int, port: int, out: Path) -> None:
    """Run all."""
    jax.distributed.initialize(f"localhost:{port}", 2, host)
    found: dict[str, Any] = {
        "first": parallel.is_first_host(),
        "hosts": parallel.num_hosts(),
        "words": parallel.describe(),
    }
    for way, arguments in WAYS.items():
        placement = parallel.make_placement(*arguments)
        parallel.wait_for_hosts(way)
        found[way] = arrays(placement)
        if parallel.is_first_host():
            found[way] |= programs(placement)
    local = lambda shared, rows: rows + shared  # noqa: E731
    found["apart"] = parallel.parallel_rows(local)(np.float32(host), np.arange(8.0)).tolist()
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
