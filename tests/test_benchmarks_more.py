"""Benchmarks: what is counted is right, by hand, and what is collected is all that there is."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from experiments.benchmarks import __main__ as everything
from experiments.benchmarks import (
    apart,
    ceiling,
    collect,
    compiles,
    data_rate,
    flops,
    overview,
    startup,
)
from experiments.benchmarks.spread import middle_half
from zsnr_jax import data
from zsnr_jax.models.attention import attention

ROOT = Path(__file__).parents[1]
MADE = {"command": "python -m x", "machine": "2 cores", "date": "2026-01-02"}


def count(function: Any, *shapes: tuple[int, ...]) -> int:
    return flops.count(jax.jit(function), *map(jnp.zeros, shapes)).flops


def convolve(x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, dimension_numbers=names, **options)


def test_a_dense_layer_by_hand() -> None:
    assert count(lambda x, w, b: x @ w + b[None], (5, 3), (3, 7), (7,)) == 2 * 5 * 3 * 7


def test_a_convolution_by_hand() -> None:
    """Of 4 places with padding the outer two miss a tap: 3 + 3 + 2 + 2 meet, on each axis."""
    same = lambda x, w: convolve(x, w, window_strides=(1, 1), padding="SAME")  # noqa: E731
    assert count(same, (2, 4, 4, 3), (3, 3, 3, 5)) == 2 * 2 * 3 * 5 * 10 * 10
    # Of 5 places every other one is asked for: 0, 2 and 4, of which the ends miss a tap.
    strided = lambda x, w: convolve(x, w, window_strides=(2, 2), padding=[(1, 1)] * 2)  # noqa: E731
    assert count(strided, (1, 5, 5, 2), (3, 3, 2, 4)) == 2 * 2 * 4 * 7 * 7
    # In 2 groups each result is of 2 of the 4 channels.
    grouped = lambda x, w: convolve(  # noqa: E731
        x, w, window_strides=(1, 1), padding="VALID", feature_group_count=2
    )
    assert count(grouped, (1, 4, 4, 4), (3, 3, 2, 6)) == 2 * 2 * 6 * (2 * 3) ** 2


def test_a_gradient_costs_a_convolution_for_each_input() -> None:
    """The same pairs meet, so that holes between the values of a strided one's are not counted."""
    strided = lambda x, w: convolve(x, w, window_strides=(2, 2), padding=[(1, 1)] * 2)  # noqa: E731
    shapes = (1, 5, 5, 2), (3, 3, 2, 4)
    both = jax.value_and_grad(lambda x, w: strided(x, w).sum(), argnums=(0, 1))
    assert count(both, *shapes) == 3 * count(strided, *shapes)


def test_a_scan_is_as_long_as_it_is() -> None:
    power = lambda x: lax.scan(lambda y, _: (y @ x, None), x, length=6)[0]  # noqa: E731
    counted = flops.count(jax.jit(power), jnp.zeros((3, 3)))
    assert counted.flops == 6 * 2 * 27 and counted.loops_once == 2 * 27
    with pytest.raises(ValueError, match="how often"):
        count(lambda x: lax.while_loop(lambda y: y.sum() < 1, lambda y: y @ x, x), (3, 3))


@pytest.mark.parametrize("tokens", [6, 512])  # heads all at once, and one after another
def test_attention_by_hand(tokens: int) -> None:
    rows, heads, width = 2, 3, 4
    one, many = (rows, tokens, heads, width), (rows, tokens, heads, width)
    assert count(attention, one, many, many) == 2 * 2 * rows * heads * tokens * tokens * width


def test_the_longest_branch_counts() -> None:
    branches = lambda x: lax.cond(x.sum() > 0, lambda: x @ x, lambda: x @ x @ x)  # noqa: E731
    assert count(branches, (3, 3)) == 2 * 2 * 27


def test_xla_counts_the_same_products() -> None:
    same = lambda x, w: convolve(x, w, window_strides=(1, 1), padding="SAME")  # noqa: E731
    counted = flops.count(jax.jit(same), jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4)))
    assert counted.xla_over_ours == 1


def test_what_is_compiled_is_counted() -> None:
    counter = compiles.Counter()

    def add_three(x: jax.Array) -> jax.Array:
        return x @ x + 3

    x, y = jax.block_until_ready((jnp.ones((3, 3)), jnp.ones((5, 5))))
    with counter.counting():
        for z in (x, x, y):
            jax.jit(add_three)(z)
        jax.clear_caches()
        jax.jit(add_three)(x)
    jax.jit(lambda x: x - 1)(x)  # nobody listens any more
    found = counter.summary()
    assert found["programs"] == 3 and found["names"] == {"jit(add_three)": 3}
    assert [(row["name"], row["times"]) for row in found["twice"]] == [("jit(add_three)", 2)]
    assert [row["times"] for row in found["same_program"]] == [2]
    assert all(seconds > 0 for seconds in found["seconds"].values())


def test_what_is_traced_within_a_trace_counts_once() -> None:
    assert compiles.covered([(2.0, 3.0), (0.0, 5.0), (4.0, 7.0), (8.0, 9.0)]) == 8.0


def test_imports_are_summed_by_package() -> None:
    told = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |   numpy.core
import time:       200 |        300 | numpy
noise
import time:        50 |         50 | jax"""
    assert startup.packages(told) == {"numpy": 300e-6, "jax": 50e-6}


def test_latents_of_noise_are_read_as_any(tmp_path: Path) -> None:
    data_rate.write_latents(tmp_path)
    batches = data.latent_batches_by_step(data.open_latents(tmp_path), batch_size=2, seed=0)
    assert batches[0]["moments"].shape == (2, *data_rate._SHAPE)


def test_the_need_is_of_the_main_job(tmp_path: Path) -> None:
    path = tmp_path / "main_job.json"
    assert data_rate.step_seconds(path)[0] == data_rate.STEP
    path.write_text(json.dumps({"runs": {"ours": [{"seconds_of_a_step": x} for x in (2, 1, 9)]}}))
    assert data_rate.step_seconds(path) == (2, "main_job.json")


def test_a_share_is_of_the_ceiling_of_its_round() -> None:
    counted = flops.Counted(4 * 10**9, 4 * 10**9, 5e9)
    found = ceiling.compared(counted, seconds=[1, 2, 4], ceiling=[8, 2, 8])  # 4, 2 and 1 a second
    assert found["share_of_ceiling"] == {"median": 0.5, "low": 0.3125, "high": 0.75}
    assert found["xla_over_ours"] == 1.25


def test_kernels_are_counted_as_they_are_run() -> None:
    assert ceiling.operations((2, 3, 4)) == 2 * 2 * 3 * 4
    assert ceiling.operations((2, 4, 4, 3, 5)) == 2 * 2 * 3 * 5 * 10 * 10


def test_the_middle_half_of_one_value_is_that_value() -> None:
    assert middle_half([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert middle_half([1.0, 2.0, 3.0, 4.0, 20.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_a_middle_half_lies_within_what_was_measured() -> None:
    assert middle_half([1.0, 2.0]) == {"median": 1.5, "low": 1.25, "high": 1.75}


def test_all_that_is_there_is_collected(tmp_path: Path) -> None:
    ratio = {"ratio": 2.0, "low": 1.5, "high": 2.5}
    row = {"layer": "norm", "shape": [1, 2], "gradient": True, "times_faster": {"torch": ratio}}
    (tmp_path / "layers.json").write_text(json.dumps({**MADE, "rows": [row]}))
    spread = {"low": 0.0, "high": 9.0}
    cost = {"share_of_training": {"median": 0.02, **spread},
            "seconds_of_a_checkpoint": {"median": 2, **spread},
            "of_which_blocking": {"median": 1, **spread}}  # fmt: skip
    cost |= {"command": "python -m y", "date": "2026-01-03", "machine": "1 CPU"}
    (tmp_path / "checkpoint_cost.json").write_text(json.dumps(cost))
    everything.write(collect.collect(tmp_path), tmp_path)
    rows = json.loads((tmp_path / "benchmarks.json").read_text())["rows"]
    assert rows[0] == {
        "what": "norm, gradient: 1 x 2", "value": 2.0, "unit": "times faster", "against": "torch",
        "low": 1.5, "high": 2.5, **MADE,
    }  # fmt: skip
    assert [(x["value"], x["machine"]) for x in rows[1:]] == [
        (0.02, "1 CPU"),
        (2, "1 CPU"),
        (1, "1 CPU"),
    ]
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000


def test_a_command_stands_once_under_the_table() -> None:
    rows = [{**collect.Cell(what, 1.0, "s")._asdict(), **MADE} for what in "ab"]
    text = collect.table(rows)
    assert text.count("python -m x") == 1 and text.count("| 1 |") == 4  # value 1, by command 1


def test_shapes_of_a_layer_are_drawn_as_one() -> None:
    cells = [collect.Cell(f"norm: {i}", 2.0**i, "times faster", "torch", 1, 9) for i in range(3)]
    cells += [collect.Cell("norm: 0", 1.0, "times faster", "JAX"), collect.Cell("unet", 3.0, "s")]
    rows = [{**cell._asdict(), **MADE} for cell in cells]
    bars = overview.bars(rows[:-1])
    assert [(bar.name, len(bar.points)) for bar in bars] == [
        ("norm, against torch", 3), ("norm, against JAX", 1),
    ]  # fmt: skip
    assert bars[0].value == pytest.approx(2.0)  # the geometric mean of 1, 2 and 4
    assert overview.draw(rows).axes


def test_nothing_found_is_drawn_too() -> None:
    assert overview.draw([]).axes


class _Parsed(Exception):
    """Stops a benchmark when its command is understood."""


@pytest.mark.parametrize("name", everything.BENCHMARKS)
def test_each_benchmark_is_collected_and_takes_its_options(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    assert name in collect.READERS
    parse = argparse.ArgumentParser.parse_known_args

    def parse_alone(*arguments: Any) -> None:
        chosen, unknown = parse(*arguments)
        raise _Parsed(chosen.out, unknown)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_alone)
    _, _, module, *told = everything.arguments(name, tmp_path, ROOT, quick=True)
    monkeypatch.setattr(sys, "argv", [module, *told])
    with pytest.raises(_Parsed) as found:
        importlib.import_module(module).main()
    assert found.value.args == (tmp_path / f"{name}.json", [])


def test_the_main_job_is_beside_another_checkout(tmp_path: Path) -> None:
    command = everything.arguments("main_job", tmp_path, tmp_path / "other", quick=True)
    assert f"--out={tmp_path / 'main_job.json'}" in command
    assert f"--other={tmp_path / 'other'}" in command and "--rounds=1" in command


@pytest.mark.parametrize(
    "told, sentence",
    [
        (["main_job", "--rounds=0"], "--rounds: '0' is no whole number from 1 on"),
        (["main_job", "--rounds=-1"], "--rounds: '-1' is no whole number from 1 on"),
        (["unet", "--rounds=two"], "--rounds: 'two' is no whole number from 1 on"),
        (["unet", "--only=forward,stand"], "--only: 'stand': choose of forward, sample, train"),
        (["unet", "--only=forward"], "unet.json is of all tasks: give --out"),
        (["scale", "--devices=3"], "--devices: '3': choose of 1, 2, 4, 8, 16, 32"),
        (["sd21", "--first=2", "--most=1"], "--first=2 is above --most=1"),
        (["layers", "--out=/nowhere/x.json"], "/nowhere is no folder that can be written to"),
        (["__main__", "--only=unets"], "--only: 'unets': choose of startup,"),
        (["__main__", "--only=main_job"], "give --other, the folder of another checkout"),
        (["__main__", "--collect", "--out=EMPTY"], "holds no results: run some"),
        (["__main__", "--collect", "--out=/proc/x"], "--out=/proc/x cannot be made: No such file"),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_is_measured(
    told: list[str], sentence: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    name, *arguments = [text.replace("EMPTY", str(tmp_path)) for text in told]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"experiments.benchmarks.{name}").main()
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "unet.json").write_text("{")
    with pytest.raises(SystemExit, match="unet.json is no JSON .*: measure it anew"):
        collect.collect(tmp_path)


def test_no_programs_are_found_but_those_of_the_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("HOME", "/home/x")
    found = apart.environment(tmp_path)
    assert "/elsewhere" not in found.values() and found["HOME"] == "/home/x"
