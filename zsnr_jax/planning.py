"""The programs of a run, compiled for devices that need not be there, for `--mode=plan`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zsnr_jax import chips, parallel, plan
from zsnr_jax.build import ImageRun, LatentRun, Run, float32_shapes
from zsnr_jax.chips import Target
from zsnr_jax.errors import UsageError
from zsnr_jax.train.step import repeat_step

# Of XLA, for the program's speed. At the usual effort the full UNet compiles for over 25 minutes on
# two cores, and for 4 at this one; what a run compiles may need a little less memory and time.
_OPTIONS: Any = {"exec_time_optimization_effort": -1.0}


def plan_run(run: Run) -> plan.Plan:
    """Compile the training step and the sampler of a run for its plan.topology.

    Raises: UsageError for a topology that is not known, or devices that cannot share the batch.
    """
    name = run.settings["plan"]["topology"]
    target = chips.topology(name) if name else chips.present()
    chosen = run.settings["parallel"]
    placement = parallel.make_placement(chosen["mode"], chosen["mesh"], target.devices)
    shapes = run.state_shapes()
    programs = [
        make(run, placement, target, shapes)
        for make in tqdm([_training, _sampling], desc="compiling", unit="program", leave=False)
    ]
    return plan.describe(programs, target, sum(x.size for x in jax.tree.leaves(shapes.params)))


def batch_shapes(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the whole batches of one call: [steps, rows, ...]."""
    rows = (run.settings["train"]["steps_per_dispatch"], run.settings["dataset"]["batch_size"])
    shape = lambda *of_row, dtype=jnp.float32: jax.ShapeDtypeStruct((*rows, *of_row), dtype)  # noqa: E731
    index = shape(dtype=jnp.int32)
    if isinstance(run, LatentRun):
        *sides, channels = run.latent_shape
        ids = shape(len(run.empty_ids), dtype=jnp.int32)
        return {"moments": shape(*sides, 2 * channels), "ids": ids, "index": index}
    assert isinstance(run, ImageRun)
    return {"image": shape(*run.image_shape), "label": index, "index": index}


def _training(run: Run, placement: parallel.Placement, target: Target, shapes: Any) -> plan.Program:
    batch_size, devices = run.settings["dataset"]["batch_size"], len(target.devices)
    train, model = run.settings["train"], run.settings["model"]
    if batch_size % (devices * train["accumulate"]):
        raise UsageError(
            f"dataset.batch_size={batch_size} cannot be shared evenly by {devices} devices, in "
            f"train.accumulate={train['accumulate']} parts: make it a multiple of the product."
        )
    step = repeat_step(run.train_step(placement), train["steps_per_dispatch"])
    lowered = placement.lower_step(step, shapes, batch_shapes(run))
    return plan.examine(
        "training step",
        functools.partial(lowered.compile, _OPTIONS),
        target.chip,
        devices,
        runs=train["num_steps"] // train["steps_per_dispatch"],
        remedies=plan.training_remedies(
            fsdp=placement.mode == "fsdp",
            remat=model["remat"],
            bfloat16=model["dtype"] == "bfloat16",
            accumulate=train["accumulate"],
            rows_per_device=batch_size // devices // train["accumulate"],
        ),
    )


def _sampling(run: Run, placement: parallel.Placement, target: Target, shapes: Any) -> plan.Program:
    devices = len(target.devices)
    size = parallel.round_up(run.sample_batch_size, devices)
    frozen, condition = (), jax.ShapeDtypeStruct((size,), jnp.int32)
    if isinstance(run, LatentRun):
        frozen = shapes.frozen | {"vae": float32_shapes("vae", run.vae)}
        condition = jax.ShapeDtypeStruct((size, len(run.empty_ids)), jnp.int32)
    path = jax.tree.map(np.asarray, run.sampling.coefficients)
    shared = jax.eval_shape(lambda: ((shapes.params, frozen), path))
    rows = (condition, condition, jax.ShapeDtypeStruct((size,), jnp.int32))
    draw = run.make_generator(placement).draw_guided
    lowered = placement.lower_draw(draw, shared, rows)
    return plan.examine(
        f"{size} guided samples",
        functools.partial(lowered.compile, _OPTIONS),
        target.chip,
        devices,
        remedies=plan.sampling_remedies(
            bfloat16=run.settings["model"]["dtype"] == "bfloat16", rows_per_device=size // devices
        ),
    )
