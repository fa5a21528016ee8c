"""Reading compiled programs: real ones on 8 CPU devices, and the TPU compiler's text."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax import hlo

# float32 [64, 128] over 8 devices: a slice is 8 x 128 x 4 = 4096 bytes, the whole 8 of them.
SLICE, WHOLE = 8 * 128 * 4, 64 * 128 * 4
COMPILE = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("b",))

def turns(body, count):
    return lambda x: jax.lax.fori_loop(0, count, lambda _, c: body(c), x)

def until(x):
    return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: jax.lax.psum(c, "b") * 0.1, x)

psum = lambda x: jax.lax.psum(x, "b")
programs = {
    "psum": psum,
    "psum of two": lambda x: (psum(x), psum(x[0] * 2)),
    "gather": lambda x: jax.lax.all_gather(x, "b", tiled=True),
    "scatter": lambda x: jax.lax.psum_scatter(x, "b", tiled=True),
    "swap": lambda x: jax.lax.all_to_all(x, "b", 1, 0, tiled=True),
    "shift": lambda x: jax.lax.ppermute(x, "b", [(i, (i + 1) % 8) for i in range(8)]),
    "loop": turns(lambda c: psum(c) * 0.1 + c @ jnp.ones((128, 128)), 5),
    "loop of loops": turns(turns(psum, 3), 5),
    "until": until,
}
found = {}
for name, f in programs.items():
    f = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("b"), out_specs=P("b"), check_vma=False))
    found[name] = f.lower(jax.ShapeDtypeStruct((64, 128), jnp.float32)).compile().as_text()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def texts():
    """Programs compiled for 8 devices."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMPILE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "name, kind, count, size, sent",
    [
        # A ring of 8: each device passes 7 of 8 parts on, twice where it reduces and gathers.
        ("psum", "all-reduce", 1, SLICE, 2 * SLICE * 7 // 8),
        ("gather", "all-gather", 1, WHOLE, WHOLE * 7 // 8),
        ("scatter", "reduce-scatter", 1, SLICE, SLICE * 7 // 8),
        ("swap", "all-to-all", 1, SLICE, SLICE * 7 // 8),
        ("shift", "collective-permute", 1, SLICE, SLICE),
        ("loop", "all-reduce", 5, 5 * SLICE, 5 * 2 * SLICE * 7 // 8),
        ("loop of loops", "all-reduce", 15, 15 * SLICE, 15 * 2 * SLICE * 7 // 8),
    ],
)
def test_a_collective_is_counted_as_often_as_it_runs(texts, name, kind, count, size, sent):
    work = hlo.read_work(texts[name], 8)
    assert work.traffic == (hlo.Traffic(kind, count, size, sent),)
    assert work.notes == ()


def test_collectives_that_the_compiler_joins_keep_their_bytes(texts):
    (traffic,) = hlo.read_work(texts["psum of two"], 8).traffic
    assert (traffic.kind, traffic.size) == ("all-reduce", SLICE + 128 * 4)


def test_a_loop_of_unknown_length_counts_once_and_says_so(texts):
    work = hlo.read_work(texts["until"], 8)
    assert [traffic.count for traffic in work.traffic] == [1]
    assert "not known" in work.notes[0]


def test_matrix_products_in_a_loop_count_each_turn(texts):
    assert hlo.matmul_flops(texts["loop"], 8) == 5 * 2 * 8 * 128 * 128
    assert hlo.read_work(texts["loop"], 8).flop_scale == 5


def test_a_loop_in_a_loop_counts_all_turns():
    def power(x):
        inner = lambda _, y: jax.lax.fori_loop(0, 3, lambda _, z: z @ x, y)  # noqa: E731
        return jax.lax.fori_loop(0, 5, inner, x)

    assert hlo.read_work(compile_text(power, (16, 16)), 1).flop_scale == 15


def compile_text(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text() or ""


def brute_force_taps(size, window, stride, before, after, spread, dilation):
    """Products of a convolution that meet a value, from a convolution of ones, in NumPy."""
    ones = np.zeros(before + (size - 1) * spread + 1 + after)
    ones[before : before + (size - 1) * spread + 1 : spread] = 1
    reach = (window - 1) * dilation + 1
    starts = range(0, len(ones) - reach + 1, stride)
    return int(sum(ones[start : start + reach : dilation].sum() for start in starts))


@pytest.mark.parametrize(
    "size, window, stride, before, after, spread, dilation",
    [(8, 3, 1, 1, 1, 1, 1), (9, 3, 2, 1, 1, 1, 1), (5, 3, 1, 2, 1, 2, 1), (9, 3, 1, 2, 2, 1, 2),
     (5, 5, 4, 0, 0, 5, 1)],
)  # fmt: skip
def test_a_convolution_counts_the_taps_that_meet_a_value(
    size, window, stride, before, after, spread, dilation
):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, 1), [(before, after), (0, 0)], (spread, 1), (dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    text = compile_text(convolve, (2, size, 3, 4), (window, 1, 4, 6))
    taps = brute_force_taps(size, window, stride, before, after, spread, dilation)
    assert hlo.matmul_flops(text, 1) == 2 * 2 * 3 * 4 * 6 * taps


def test_a_batched_product_is_two_operations_a_term():
    text = compile_text(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), (3, 4, 5), (3, 5, 7))
    assert hlo.matmul_flops(text, 1) == 2 * 3 * 4 * 5 * 7


def test_of_two_branches_the_dearer_counts():
    def choose(x, y):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ y @ y, lambda: x @ y)

    assert hlo.matmul_flops(compile_text(choose, (8, 16), (16, 16)), 1) == 2 * 2 * 8 * 16 * 16


def test_memory_is_what_arrays_take():
    double = jax.jit(lambda x: x * 2, donate_argnums=0)
    memory = hlo.read_memory(double.lower(jax.ShapeDtypeStruct((256,), jnp.float32)).compile())
    assert memory is not None
    assert (memory.arguments, memory.outputs, memory.aliased) == (1024, 1024, 1024)
    assert memory.needed == 1024 + memory.temporaries + memory.code


# What the TPU compiler (libtpu 0.0.42) writes: groups as axes of a mesh, an all-gather split over
# two fusions under one channel, and no word of how often a loop runs.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=16

%start (param_0: bf16[64,128]) -> (bf16[64,128], bf16[1024,128], u32[]) {
  %param_0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[1024,128]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=17, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.1 = (bf16[64,128]{1,0}, bf16[1024,128]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%middle (param_1: bf16[64,128], param_2: bf16[8,64]) -> bf16[1024,128] {
  %param_1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %param_2 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(1)
  %convolution.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} convolution(%param_2, %param_1), dim_labels=bf_io->bf
  ROOT %all-gather.2 = bf16[1024,128]{1,0:T(8,128)(2,1)} all-gather(%param_1), channel_id=17, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}, use_global_device_ids=true
}

%scores (query: bf16[4,16,5,64]) -> f32[5,16,16] {
  %query = bf16[5,16,64]{2,1,0} parameter(0)
  ROOT %convolution-base-dilated.2 = f32[5,16,16]{1,2,0:T(8,128)} convolution(%query, %query), window={size=5 stride=4 lhs_dilate=5}, dim_labels=0bf_0oi->0bf
}

%body (arg: (u32[], f32[4,8])) -> (u32[], f32[4,8]) {
  %arg = (u32[]{:T(128)}, f32[4,8]{1,0:T(4,128)}) parameter(0)
  %two = u32[]{:T(128)} constant(2), metadata={op_name="jit(step)/while"}
  %i = u32[]{:T(128)} get-tuple-element(%arg), index=0
  %next = u32[]{:T(128)} add(%i, %two)
  %x = f32[4,8]{1,0:T(4,128)} get-tuple-element(%arg), index=1
  %collective-permute-start = (f32[4,8]{1,0:T(4,128)S(1)}, f32[4,8]{1,0:T(4,128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done = f32[4,8]{1,0:T(4,128)} collective-permute-done(%collective-permute-start)
  ROOT %tuple.1 = (u32[]{:T(128)}, f32[4,8]{1,0:T(4,128)}) tuple(%next, %collective-permute-done)
}

%condition (arg.1: (u32[], f32[4,8])) -> pred[] {
  %arg.1 = (u32[]{:T(128)}, f32[4,8]{1,0:T(4,128)}) parameter(0)
  %limit = u32[]{:T(128)} constant(8)
  %i.1 = u32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (p0: bf16[64,128], p1: bf16[8,64], p2: f32[4,8], p3: bf16[5,16,64]) -> f32[4,8] {
  %p0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[16,1]<=[16]}
  %p1 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(1)
  %p2 = f32[4,8]{1,0:T(4,128)} parameter(2)
  %p3 = bf16[5,16,64]{2,1,0} parameter(3)
  %fusion.1 = (bf16[64,128]{1,0}, bf16[1024,128]{1,0}, u32[]{:S(2)}) fusion(%p0), kind=kCustom, calls=%start
  %fusion.2 = bf16[1024,128]{1,0} fusion(%p0, %p1), kind=kOutput, calls=%middle
  %fusion.3 = f32[5,16,16]{1,2,0} fusion(%p3), kind=kOutput, calls=%scores
  %all-reduce.1 = (bf16[64]{0:T(256)(128)(2,1)S(1)}, f32[3,5]{1,0:T(4,128)}) all-reduce(%half, %full), channel_id=5, replica_groups=[2,8]<=[16], to_apply=%add.clone
  %half = bf16[64]{0} constant({...})
  %full = f32[3,5]{1,0} constant({...})
  %zero = u32[]{:T(128)} constant(0)
  %copy.1 = u32[]{:T(128)} copy(%zero)
  %tuple = (u32[]{:T(128)}, f32[4,8]{1,0:T(4,128)}) tuple(%copy.1, %p2)
  %while.1 = (u32[]{:T(128)}, f32[4,8]{1,0:T(4,128)}) while(%tuple), condition=%condition, body=%body
  ROOT %out = f32[4,8]{1,0:T(4,128)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


def test_the_text_of_the_tpu_compiler():
    work = hlo.read_work(TPU, 16)
    gathered, reduced, passed = 1024 * 128 * 2, 64 * 2 + 15 * 4, 4 * 8 * 4
    assert work.traffic == (
        hlo.Traffic("all-gather", 1, gathered, gathered * 15 // 16),
        hlo.Traffic("all-reduce", 1, reduced, 2 * reduced * 7 // 8),
        hlo.Traffic("collective-permute", 4, 4 * passed, 4 * passed),
    )
    assert work.notes == ()
    # The five attention heads are a dimension of the window: each meets itself alone.
    assert hlo.matmul_flops(TPU, 16) == 2 * 8 * 64 * 128 + 2 * 5 * 16 * 16 * 64


SCATTERS = """HloModule jit_step, num_partitions=4

%all-reduce-scatter.1 (input.1: f32[64,32]) -> f32[16,32] {
  %input.1 = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,32]{1,0:T(8,128)} all-reduce(%input.1), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  %here.1 = s32[] constant(0)
  ROOT %dynamic-slice.1 = f32[16,32]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %here.1, %here.1), dynamic_slice_sizes={16,32}
}

%all-reduce-scatter.2 (input.2: f32[128]) -> f32[32] {
  %input.2 = f32[128]{0:T(128)} parameter(0)
  %all-reduce.2 = f32[128]{0:T(128)} all-reduce(%input.2), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  %here.2 = s32[] constant(0)
  ROOT %dynamic-slice.2 = f32[32]{0:T(128)} dynamic-slice(%all-reduce.2, %here.2), dynamic_slice_sizes={32}
}

ENTRY %main (p0: f32[64,32], p1: f32[128]) -> (f32[16,32], f32[32]) {
  %p0 = f32[64,32]{1,0:T(8,128)} parameter(0)
  %p1 = f32[128]{0:T(128)} parameter(1)
  %fusion.1 = f32[16,32]{1,0} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.2 = f32[32]{0} fusion(%p1), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %out = (f32[16,32]{1,0}, f32[32]{0}) tuple(%fusion.1, %fusion.2)
}
"""  # noqa: E501


def test_the_tpu_compilers_scatters_are_no_reductions_for_all_and_share_a_channel():
    size = (64 * 32 + 128) * 4
    scattered = hlo.Traffic("reduce-scatter", 2, size, size * 3 // 4)
    assert hlo.read_work(SCATTERS, 4).traffic == (scattered,)


GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    "message, needed, limit",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (64.50G) exceeds available HBM (15.75G).",
            64.5 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 16.25G of 15.75G hbm. Exceeded hbm capacity by 512.00M.",
            16.25 * GIB,
            15.75 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: Used 900.00M of 512.00M hbm.", 900 * MIB, 512 * MIB),
    ],
)
def test_a_refusal_says_how_much_is_missing(message, needed, limit):
    assert hlo.read_shortage(message) == hlo.Shortage(round(needed), round(limit))


def test_another_error_says_nothing_of_memory():
    assert hlo.read_shortage("INVALID_ARGUMENT: shapes differ") is None
