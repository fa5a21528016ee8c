"""Plans of runs: shapes without weights, and programs compiled for the devices there are."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from test_configs import recipe

from zsnr_jax import architectures, build, parallel, planning
from zsnr_jax.errors import UsageError

EFFORT = "jax_exec_time_optimization_effort"
# The tiny folder's networks, smaller still, so that programs compile soon.
SIZES = {
    "unet": architectures.TINY["unet"]
    | {"block_out_channels": [32], "attention_head_dim": [2],
       "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
    "vae": architectures.TINY["vae"]
    | {"block_out_channels": [32], "down_block_types": ["DownEncoderBlock2D"],
       "up_block_types": ["UpDecoderBlock2D"]},
    "text_encoder": architectures.TINY["text_encoder"] | {"num_hidden_layers": 1},
}  # fmt: skip


def count(tree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def size(tree) -> int:
    """Bytes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def small_images(**settings):
    """configs/brightness.py:adamw,smoke, with a network that compiles soon."""
    config = recipe("brightness", "adamw,smoke")
    config.update_from_flattened_dict(
        {"model.channels": (16,), "model.attention": (False,), "train.steps_per_dispatch": 5}
        | settings
    )
    return build.plan(config)


def small_latents(folder: Path, **settings):
    """configs/sd_tiny.py:smoke, of a folder that has nothing but sizes."""
    for name, config in SIZES.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    config = recipe("sd_tiny", "smoke")
    config.update_from_flattened_dict(
        {"pretrained": str(folder), "dataset.image_size": 8, **settings}
    )
    return build.plan(config)


@pytest.fixture(autouse=True)
def effort() -> Iterator[float]:
    """How hard XLA tries, which is set back after each test."""
    before = getattr(jax.config, EFFORT)
    yield before
    jax.config.update(EFFORT, before)


def test_the_full_size_is_planned_without_weights_or_data() -> None:
    run = build.plan(recipe("sd21_zsnr"))
    state = run.state_shapes()
    # Parameters, average and two moments; what is frozen stands once.
    assert [count(x) for x in (state.params, state.ema_params)] == [865_910_724] * 2
    assert count(state.frozen) == 340_387_840
    assert size(state) == 4 * (4 * 865_910_724 + 340_387_840) + 4 * 4
    batches = planning.batch_shapes(run)
    assert {name: (x.shape, x.dtype) for name, x in batches.items()} == {
        "moments": ((1, 2048, 64, 64, 8), np.float32),
        "ids": ((1, 2048, 77), np.int32),
        "index": ((1, 2048), np.int32),
    }


def test_shapes_of_a_run_on_images_are_those_that_it_trains_with() -> None:
    run = small_images()
    state = run.state_shapes()
    params = run.init_params()
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(params)]
    for of_state in (state.params, state.ema_params):
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(of_state)] == shapes
    assert size(state) == 4 * (4 * count(params) + 4)
    batch, batches = next(iter(run.batches(0))), planning.batch_shapes(run)
    assert {name: (x.shape, x.dtype) for name, x in batches.items()} == {
        name: ((5, *np.shape(x)), np.asarray(x).dtype) for name, x in batch.items()
    }


def test_a_run_on_images_is_planned_for_the_devices_there_are() -> None:
    run = small_images()
    plan = planning.plan_run(run)
    parameters = count(run.param_shapes())
    assert (plan.parameters, plan.num_devices) == (parameters, jax.device_count())
    training, sampling = plan.programs
    # Five batches of 16 rows in a call, and 20 steps in all; 16 x 16 pixels, label, index.
    batches = 5 * 16 * 4 * (16 * 16 * 3 + 2)
    assert training.memory is not None and training.runs == 4
    assert training.memory.arguments == 4 * (4 * parameters + 4) + batches
    assert training.memory.aliased == 4 * (4 * parameters + 4)
    assert sampling.memory is not None and sampling.name == "64 guided samples"
    assert sampling.memory.outputs == 64 * 4 * 16 * 16 * 3
    # Parameters, and what is drawn: labels, negative labels and numbers.
    assert sampling.memory.arguments >= 4 * (parameters + 3 * 64)
    # Guided, it is two passes of the network at each of 10 steps, without the way back.
    a_pass = training.flops / (5 * 16) / 3  # pyright: ignore[reportOptionalOperand]
    assert sampling.flops == pytest.approx(64 * 10 * 2 * a_pass, rel=0.3)


def test_a_run_on_latents_is_planned_from_sizes_alone(tmp_path: Path) -> None:
    run = small_latents(tmp_path)
    shapes = run.state_shapes()
    plan = planning.plan_run(run)
    training, sampling = plan.programs
    parameters = count(shapes.params)
    assert plan.parameters == parameters
    state = 4 * (4 * parameters + count(shapes.frozen) + 4)
    # Rows of 8 x 8 pixels with 8 moments each, 77 ids and an index.
    assert training.memory is not None and training.runs == 20
    assert training.memory.arguments == state + 16 * 4 * (8 * 8 * 8 + 77 + 1)
    assert training.memory.aliased == state
    assert sampling.memory is not None and sampling.name == "16 guided samples"
    assert sampling.memory.outputs == 16 * 4 * 8 * 8 * 3


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    devices = jax.device_count()
    with pytest.raises(UsageError, match=f"=16 cannot be shared evenly by {devices} devices, in "
                       "train.accumulate=3 parts: make it a multiple of the product"):  # fmt: skip
        planning.plan_run(small_images(**{"train.accumulate": 3}))


def test_a_topology_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="plan.topology 'v9:2x2' is unknown"):
        planning.plan_run(small_images(**{"plan.topology": "v9:2x2"}))


def test_what_is_compiled_later_is_compiled_as_before(effort: float) -> None:
    with pytest.raises(UsageError):
        planning.plan_run(small_images(**{"train.accumulate": 3}))
    assert getattr(jax.config, EFFORT) == effort


def test_latents_of_no_size_are_refused() -> None:
    with pytest.raises(UsageError, match="set dataset.image_size"):
        build.plan(recipe("sd_tiny", "smoke"))


def test_a_mesh_may_be_of_more_devices_than_there_are(tmp_path: Path) -> None:
    run = small_latents(tmp_path, **{"parallel.mode": "fsdp", "parallel.mesh": (16, 16)})
    devices = jax.devices()[:1] * 256
    placement = parallel.make_placement("fsdp", run.settings["parallel"]["mesh"], devices=devices)
    assert run.make_generator(placement).batch_size == 256
