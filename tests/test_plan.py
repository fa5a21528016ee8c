"""What programs cost, and how it is told."""

import json

import jax
import jax.numpy as jnp
import pytest

from zsnr_jax import chips, hlo, plan

# Round numbers, so that times can be worked out by hand.
CHIP = chips.Chip("round", hbm=10**9, peak_flops=1e9, hbm_bandwidth=1e6, link_bandwidth=1e3)
TARGET = chips.Target("round:1", tuple(jax.devices()[:1]), CHIP)
UNKNOWN = chips.Target("cpu", tuple(jax.devices()[:1]), None)
N = 128
REFUSAL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(20.00G) exceeds available HBM (15.75G)."
)


def compile_product():
    square = jax.ShapeDtypeStruct((N, N), jnp.float32)
    return jax.jit(jnp.matmul).lower(square, square).compile()


def refuse():
    raise jax.errors.JaxRuntimeError(REFUSAL)


@pytest.fixture(scope="module")
def product():
    return plan.examine("product", compile_product, CHIP, 1, runs=1000)


def test_a_product_costs_what_it_does_on_paper(product):
    assert product.fits and product.traffic == ()
    assert product.memory.arguments == 2 * 4 * N * N
    assert product.memory.outputs == 4 * N * N
    assert product.flops == 2 * N**3


def test_time_is_the_longest_of_three(product):
    assert product.roofline.compute == pytest.approx(2 * N**3 / (0.45 * 1e9))
    assert product.roofline.memory == pytest.approx(3 * 4 * N * N / (0.8 * 1e6))
    assert product.roofline.interconnect == 0
    assert product.roofline.bound == "memory"
    assert product.days == pytest.approx(1000 * product.roofline.memory / 86_400)


def test_bytes_sent_take_time():
    traffic = (hlo.Traffic("all-reduce", 1, 800, 1400), hlo.Traffic("all-gather", 2, 800, 700))
    roofline = plan.roofline(CHIP, 0, 0, traffic)
    assert roofline.interconnect == roofline.seconds == pytest.approx(2100 / (0.7 * 1e3))
    assert roofline.bound == "interconnect"


def test_loops_count_as_often_as_they_run():
    def power(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x)

    square = jax.ShapeDtypeStruct((N, N), jnp.float32)
    found = plan.examine("power", lambda: jax.jit(power).lower(square).compile(), None, 1)
    # XLA counts the body once; beside the products it counts the loop's own additions.
    assert found.flops == pytest.approx(7 * 2 * N**3, rel=1e-3)


def test_a_refusal_is_an_answer():
    found = plan.examine("step", refuse, CHIP, 1, runs=5, remedies=["model.remat=True"])
    assert not found.fits and found.days is None
    assert found.shortage == hlo.Shortage(20 * 2**30, round(15.75 * 2**30))
    lines = plan.table(plan.describe([found], TARGET)).splitlines()
    assert "The step does not fit, by 4.25 GiB." in lines
    assert "What would help: model.remat=True." in lines


def test_a_compiled_program_may_still_be_too_large(product):
    small = chips.Chip("small", 100_000, 1.0, 1.0, 1.0)
    found = plan.examine("product", compile_product, small, 1)
    assert not found.fits
    assert found.shortage == hlo.Shortage(product.memory.needed, 100_000)


def test_other_errors_pass():
    def fail():
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ")

    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes differ"):
        plan.examine("step", fail, CHIP, 1)


def test_the_table_says_what_it_is_and_what_it_assumes(product):
    text = plan.table(plan.describe([product], TARGET, parameters=1_234_567))
    assert "Compiled, not run." in text and "1,234,567 parameters" in text
    assert "45% of 0 TFLOP/s" in text
    cells = {
        line[: line.index("  ", 4)].strip(): line.split()[-1] for line in text.splitlines()[3:-1]
    }
    assert cells["FLOPs"] == "4.19e+06"
    assert cells["fits"] == "yes"
    assert cells["bound by"] == "memory"


def test_no_times_for_a_chip_that_is_not_known():
    found = plan.examine("product", compile_product, None, 1, runs=1000)
    text = plan.table(plan.describe([found], UNKNOWN))
    assert found.roofline is None and found.days is None
    assert "no times are estimated" in text
    assert "estimated days" not in text and "fits" not in text


def test_as_json(product):
    refused = plan.examine("step", refuse, CHIP, 1)
    written = json.loads(json.dumps(plan.describe([product, refused], TARGET).to_dict()))
    assert written["status"] == "compiled, not run"
    first, second = written["programs"]
    assert first["memory"]["needed"] == product.memory.needed
    assert first["roofline"]["bound"] == "memory" and first["days"] == product.days
    assert second["fits"] is False and second["shortage"]["needed"] == 20 * 2**30


def test_only_what_is_not_set_is_advised():
    nothing_set = plan.training_remedies(
        fsdp=False, remat=False, bfloat16=False, accumulate=1, rows_per_device=8
    )
    assert [remedy.split(",")[0] for remedy in nothing_set] == [
        "parallel.mode=fsdp",
        "model.dtype=bfloat16",
        "train.accumulate=2",
        "model.remat=True",
        "a smaller dataset.batch_size",
    ]
    all_set = plan.training_remedies(
        fsdp=True, remat=True, bfloat16=True, accumulate=8, rows_per_device=1
    )
    assert all_set == ()
    assert plan.sampling_remedies(bfloat16=True, rows_per_device=4) == (
        "a smaller evaluation.batch_size",
    )
