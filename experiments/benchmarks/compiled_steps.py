"""The training step of a small Stable Diffusion, compiled for TPUs that are not there.

TPU programs, since what a step sends is the TPU compiler's choice: it joins reductions, and turns
some of them into scatters. One block a side, so that a program compiles in seconds.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from configs import sd_tiny
from experiments.benchmarks import collectives
from experiments.benchmarks.collectives import Collective, Traffic
from zsnr_jax import architectures, build, chips, hlo, parallel, planning
from zsnr_jax.build import Run
from zsnr_jax.parallel import Placement
from zsnr_jax.train.step import repeat_step

ROWS = 2  # a device
SLICES = {1: "1x1", 2: "1x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8"}  # of v5e
_BLOCK = {"block_out_channels": [64], "layers_per_block": 1}
_NETWORKS = {
    "unet": architectures.TINY["unet"]
    | _BLOCK
    | {"attention_head_dim": [4], "down_block_types": ["CrossAttnDownBlock2D"],
       "up_block_types": ["CrossAttnUpBlock2D"]},
    "vae": architectures.TINY["vae"]
    | _BLOCK
    | {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]},
    "text_encoder": architectures.TINY["text_encoder"] | {"num_hidden_layers": 1},
}  # fmt: skip
# As plans have it; what a step sends is chosen before what takes the compiler long.
_OPTIONS: Any = {"exec_time_optimization_effort": -1.0}


class Step(NamedTuple):
    """A step as compiled, for one of n devices; bytes."""

    mode: str
    devices: int
    collectives: list[Collective]
    least: Traffic  # that it must send
    state_whole: int
    state_here: int  # as placed
    arguments: int  # the state, the rows, and what tiles of memory round them up to

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with what follows from it."""
        n, sent = self.devices, collectives.traffic(self.collectives, self.devices)
        return {
            **self._asdict(),
            "collectives": [
                {**one._asdict(), "sent": one.sent(n)}
                for one in sorted(self.collectives, key=lambda one: (one.kind, -one.size))
            ],
            "sent": sent._asdict(),
            "least": self.least._asdict(),
            "sent_of_least": sent.total / self.least.total if n > 1 else None,
            "state_of_whole": self.state_here / self.state_whole,
        }


def plan_small(mode: str, devices: int) -> Run:
    """A run of so many devices that trains the small network; it has sizes, and no weights."""
    config = sd_tiny.get_config("smoke")
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in _NETWORKS.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(sizes))
        config.update_from_flattened_dict(
            {"pretrained": folder, "dataset.image_size": 8, "parallel.mode": mode,
             "dataset.batch_size": ROWS * devices, "train.steps_per_dispatch": 1}
        )  # fmt: skip
        return build.plan(config)


def tpus(count: int) -> tuple[Any, ...]:
    """So many chips of v5e, from 1 to 32; one host has as many as it needs."""
    target = chips.topology("v5e:2x2")  # sets libtpu up, too
    shape = SLICES[count]
    if count < 4:  # less than what is sold as a slice, but a host may have as few
        bounds = [*map(int, shape.split("x")), 1]
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"v5e:{shape}", chips_per_host_bounds=bounds
        )
        return tuple(found.devices)
    return target.devices if count == 4 else chips.topology(f"v5e:{shape}").devices


def examine(run: Run, devices: tuple[Any, ...]) -> Step:
    """Compile the training step of a run for devices, and read what it sends and holds."""
    n, mode = len(devices), run.settings["parallel"]["mode"]
    placement = parallel.make_placement(mode, (), devices)
    state = run.state_shapes()
    step = repeat_step(run.train_step(placement), 1)
    compiled = placement.lower_step(step, state, planning.batch_shapes(run)).compile(_OPTIONS)
    memory = hlo.read_memory(compiled)
    whole, here = nbytes(state, placement)
    return Step(
        mode,
        n,
        collectives.read(compiled.as_text() or "", n),
        least(state, placement),
        whole,
        here,
        memory.arguments if memory else 0,
    )


def least(state: Any, placement: Placement) -> Traffic:
    """What devices of a placement must send in a step, by the sizes of a state."""
    gradients = _sliced(state.params, placement)
    if placement.mode == "pmap":
        return collectives.replicated_minimum(sum(gradients), placement.num_devices)
    weights, _ = _sliced((state.params, state.frozen), placement)
    replicas, slices = placement.mesh.devices.shape
    return collectives.sliced_minimum(weights, *gradients, slices, replicas=replicas)


def nbytes(tree: Any, placement: Placement) -> tuple[int, int]:
    """Bytes of a pytree of shapes, whole and on one device."""
    leaves = list(zip(jax.tree.leaves(tree), jax.tree.leaves(placement.shardings(tree))))
    size = lambda shape, x: math.prod(shape) * x.dtype.itemsize  # noqa: E731
    whole = sum(size(x.shape, x) for x, _ in leaves)
    return whole, sum(size(lies.shard_shape(x.shape), x) for x, lies in leaves)


def _sliced(tree: Any, placement: Placement) -> tuple[int, int]:
    """Bytes of the arrays that lie in slices, and of those that every device holds whole."""
    alone = [nbytes([x], placement) for x in jax.tree.leaves(tree)]
    return sum(w for w, here in alone if here < w), sum(w for w, here in alone if here == w)
