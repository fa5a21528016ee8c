"""What steps must send, worked out by hand, and what tiny compiled programs are found to send."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import collectives, compiled_steps, computed_scale, loading, scale
from experiments.benchmarks.collectives import Collective
from zsnr_jax import parallel

# 1024 and 100 values of float32. A step is of one row a device, and reduces its gradients.
COMPILE = """
import json
import jax, jax.numpy as jnp
from experiments.benchmarks import collectives, compiled_steps
from zsnr_jax import parallel

def pmapped(state, batches):
    means = jax.tree.map(lambda x: jax.lax.pmean(x * batches.sum(), parallel.AXIS), state)
    return jax.tree.map(jnp.subtract, state, means), jnp.zeros(1)

def whole(placement):
    def sharded(state, batches):
        loss = lambda weights: ((batches[0] @ weights["w"]) ** 2).sum()
        grads = jax.grad(loss)(placement.gather_inside(state))
        grads = placement.scatter_inside(grads)
        return jax.tree.map(jnp.subtract, state, grads), jnp.zeros(1)
    return sharded

found = {}
for mode in parallel.MODES:
    placement = parallel.make_placement(mode)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    state = {"w": shape(64, 32)} | ({"b": shape(10, 10)} if mode == "pmap" else {})
    step = pmapped if mode == "pmap" else whole(placement)
    text = placement.lower_step(step, state, shape(1, 4, 64)).compile().as_text()
    found[mode] = collectives.traffic(collectives.read(text, 4), 4)
print(json.dumps(found))
"""


def test_the_least_that_is_sent_of_numbers_worked_out_by_hand() -> None:
    # Ring of 4, 800 bytes of gradients: 3 parts of 200 to reduce, and 3 to gather.
    assert collectives.replicated_minimum(800, 4).total == 1200
    assert collectives.replicated_minimum(800, 1).total == 0
    # 400 bytes of weights gathered, 800 of gradients scattered, 80 held whole and reduced.
    found = collectives.sliced_minimum(400, 800, 80, 4)
    assert found == (300, 600 + 120)
    # Two replicas: each slice's 200 bytes are reduced over 2, and what is whole over 8.
    found = collectives.sliced_minimum(400, 800, 80, 4, replicas=2)
    assert found == (300, 600 + 200 + 140)


def test_what_compiled_steps_send_is_what_is_sent_on_paper() -> None:
    """By pmap 2048 + 100 gradients; by fsdp 2048 weights gathered, and as many reduced."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMPILE]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pmap"] == [0, 2 * 4 * 2148 * 3 / 4]
    # XLA for CPUs reduces for all where a scatter would do, and the TPU compiler does not.
    assert found["fsdp"] == [4 * 2048 * 3 / 4, 2 * 4 * 2048 * 3 / 4]


TPU = """
%all-reduce-scatter.1 (input_0: f32[64,8], input_1: f32[3]) -> (f32[16,8], f32[3]) {
  %input_0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  %input_1 = bf16[4]{0} parameter(1)
  %all-reduce.1 = (f32[64,8]{1,0:T(8,128)}, /*index=1*/bf16[4]{0:T(128)}) all-reduce(%input_0, %input_1), channel_id=1, to_apply=%add
}

%all-reduce-scatter.2 (input_0: f32[8]) -> f32[2] {
  %input_0 = f32[8]{0} parameter(0)
  ROOT %all-reduce.2 = f32[8]{0} all-reduce(%input_0), channel_id=1, to_apply=%add
}

%start (p0: f32[16,8]) -> f32[64,8] {
  %p0 = f32[16,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[64,8]{1,0} all-gather(%p0), channel_id=2, dimensions={0}
}

ENTRY %main (p0: f32[16,8]) -> f32[64,8] {
  %p0 = f32[16,8]{1,0} parameter(0)
  %fusion.1 = f32[64,8]{1,0} fusion(%p0), kind=kCustom, calls=%start
  %all-gather.2 = f32[64,8]{1,0} all-gather(%p0), channel_id=2, dimensions={0}
  ROOT %all-reduce.3 = f32[64,8]{1,0} all-reduce(%all-gather.2), channel_id=3, to_apply=%add
}
"""  # noqa: E501


def test_the_tpu_compilers_scatters_are_told_from_reductions() -> None:
    assert collectives.read(TPU, 4) == [
        Collective("reduce-scatter", 2, 64 * 8 * 4 + 4 * 2),
        Collective("reduce-scatter", 1, 8 * 4),  # of the same channel, and another
        Collective("all-gather", 1, 64 * 8 * 4),  # split, and counted once
        Collective("all-reduce", 1, 64 * 8 * 4),
    ]


def test_what_is_in_a_loop_is_not_read_as_if_it_ran_once(monkeypatch) -> None:
    work = collectives.hlo.read_work(TPU, 4)
    twice = [kind.__class__(kind.kind, 9, 9 * kind.size, 0) for kind in work.traffic]
    monkeypatch.setattr(
        collectives.hlo, "read_work", lambda *_: work.__class__(1, 1, tuple(twice), ())
    )
    with pytest.raises(ValueError, match="all-gather: 2048 bytes, and hlo counts"):
        collectives.read(TPU, 4)


def test_slices_of_a_state_are_counted_array_by_array() -> None:
    """Of 64 x 32 values each of 4 devices holds 16 x 32; ten values lie whole."""
    placement = parallel.make_placement("fsdp", (), jax.devices()[:1] * 4)
    state = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(64, 32), (10,)]]
    assert compiled_steps.nbytes(state, placement) == (4 * 2058, 4 * (512 + 10))
    run = compiled_steps.plan_small("fsdp", 4)
    least = compiled_steps.least(run.state_shapes(), placement)
    assert 0 < least.gathered < least.reduced * 1.1


def test_seconds_grow_with_rows_and_fall_with_chips() -> None:
    assert computed_scale.moved(8) == pytest.approx(0.30 * 0.8 * 819e9)
    assert computed_scale.moved(2) == pytest.approx(0.04 * 0.8 * 2765e9)
    assert computed_scale.moved(32) == pytest.approx(4 * computed_scale.moved(8))
    size = computed_scale.Size(4, 32, 8.0, 0.0, compute=3.0, memory=2.0, collectives=1.0)
    assert (size.alone, size.hidden, size.exposed) == (3, 3, 4)
    assert size.to_dict(ideal_row=3 / 8)["efficiency"] == [0.75, 1.0]


def test_a_host_reads_its_rows_and_no_others() -> None:
    found = loading.measure(hosts=(1, 4), steps=2)
    for name in ("fixed_share", "fixed_batch"):
        assert [row["bytes_a_row"] for row in found[name]] == [64 * 64 * 3] * 2
    assert [row["rows"] for row in found["fixed_share"]] == [64, 64]
    assert [row["rows"] for row in found["fixed_batch"]] == [512, 128]


def test_what_is_on_record_says_what_it_is() -> None:
    """It is drawn and told without anything being measured anew."""
    found = json.loads(scale.RESULT.read_text())
    text = scale.told(found)
    assert "Compiled for TPU v5e, not run" in text and "not compiled, not run" in text
    for step in found["compiled"]["steps"]:
        if step["mode"] == "pmap" and step["devices"] > 1:
            assert [one["kind"] for one in step["collectives"]] == ["all-reduce"]
            assert step["sent_of_least"] == pytest.approx(1, abs=0.01)
    assert scale.draw(found).get_axes()
