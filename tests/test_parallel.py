"""Splitting rows and states over devices and hosts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from two_hosts import BATCH, SHAPES, WAYS

from zsnr_jax import digests, parallel
from zsnr_jax.errors import UsageError
from zsnr_jax.train import optimizer

SCRIPT = Path(__file__).parent / "two_hosts.py"


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    parallel.require_divisible(16, "dataset.batch_size")
    with pytest.raises(UsageError, match="dataset.batch_size=12 .* 8 devices"):
        parallel.require_divisible(12, "dataset.batch_size")


def test_rows_are_split_in_order_and_padding_rounds_up(monkeypatch) -> None:
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    split = parallel.split_rows({"x": np.arange(24).reshape(3, 8)}, axis=1)["x"]
    assert split.shape == (3, 4, 2)
    np.testing.assert_array_equal(split[1], [[8, 9], [10, 11], [12, 13], [14, 15]])
    assert [parallel.round_up(n) for n in (1, 4, 5)] == [4, 4, 8]
    assert [parallel.round_up(n, 3) for n in (1, 3, 4)] == [3, 3, 6]


@pytest.mark.parametrize("mode", parallel.MODES)
def test_a_step_takes_what_it_returns_without_being_compiled_again(mode: str) -> None:
    traces = []

    def step(state, batches):
        traces.append(state)
        return jax.tree.map(lambda x: x + 1, state), {}

    placement = parallel.make_placement(mode)
    placed = placement.step(step)
    state = placement.put({"w": np.zeros((4, 4), np.float32), "step": np.int32(0)})
    for _ in range(3):
        state, _ = placed(state, {"x": np.ones((1, 8, 2), np.float32)})
    assert len(traces) == 1 and int(state["step"]) == 3


def test_a_pmap_of_some_devices_is_refused(monkeypatch) -> None:
    placement = parallel.make_placement("pmap", devices=jax.devices()[:1])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    for place in (placement.step, placement.probe):
        with pytest.raises(UsageError, match="on all 4 devices, and this placement has 1: make it"):
            place(lambda state, batches: (state, {}))


def test_the_hardware_is_told_in_words() -> None:
    if jax.default_backend() == "cpu":
        assert parallel.describe() == f"{jax.device_count()} x CPU"


REFUSED = {
    "a mode": (("fdsp", ()), r"parallel.mode 'fdsp' is unknown: choose pmap or fsdp\."),
    "a mesh of pmap": (
        ("pmap", (2, 4)),
        r"parallel.mesh=\(2, 4\) is of fsdp, and parallel.mode is pmap: set it to \(\)\.",
    ),
    "some of the devices": (
        ("fsdp", (1, 4)),
        r"parallel.mesh=\(1, 4\) is of 4 devices, and there are 8: make \(replicas, slices\) "
        r"multiply to 8, or set it to \(\)\.",
    ),
    "too many": (("fsdp", [4, 4]), r"parallel.mesh=\(4, 4\) is of 16 devices, and there are 8"),
    "one number": (("fsdp", (8,)), r"parallel.mesh=\(8,\) must be \(replicas, slices\)"),
    "three numbers": (("fsdp", (2, 2, 2)), r"parallel.mesh=\(2, 2, 2\) must be \(replicas"),
    "zero": (("fsdp", (0, 8)), r"parallel.mesh=\(0, 8\) must be"),
    "below zero": (("fsdp", (-2, -4)), r"parallel.mesh=\(-2, -4\) must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mesh_that_cannot_be_laid_is_refused_in_one_sentence(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(UsageError, match=f"^{message}") as told:
        parallel.make_placement(*arguments, devices=jax.devices()[:1] * 8)
    assert str(told.value).count("\n") == 0 and str(told.value).endswith(".")


def test_what_is_left_whole_is_what_an_update_joins() -> None:
    assert parallel._SMALL == optimizer._SHORT  # or it would be gathered for that


SLICED = {  # shape -> how it lies on four shards
    (64, 128): P(None, "shard"),
    (128, 64): P("shard"),
    (64, 64): P("shard"),  # the first of two
    (3, 3, 320, 640): P(None, None, None, "shard"),
    (4097, 8): P(None, "shard"),  # the largest that four divides
    (4097, 3): P(),
    (4096,): P("shard"),
    (32, 32): P(),  # 1024 values
    (33, 32): P(None, "shard"),
    (1028,): P("shard"),
    (): P(),
}


def test_the_largest_axis_is_sliced_and_what_is_small_is_whole() -> None:
    devices = jax.devices()[:1] * 8
    placement = parallel.make_placement("fsdp", (2, 4), devices)
    state = [jax.ShapeDtypeStruct(shape, np.float32) for shape in SLICED]
    found = {x.shape: s.spec for x, s in zip(state, placement.shardings(state), strict=True)}
    assert found == SLICED
    assert placement.num_devices == 8 and placement.axis_name is None
    replicated = parallel.make_placement("pmap", devices=devices)
    assert {sharding.spec for sharding in replicated.shardings(state)} == {P()}
    assert replicated.axis_name == parallel.AXIS
    one_replica = parallel.make_placement("fsdp", devices=devices)
    assert dict(one_replica.mesh.shape) == {"replica": 1, "shard": 8}
    assert one_replica.row_sharding(axis=1).spec == P(None, ("replica", "shard"))


@pytest.mark.parametrize(
    "devices, mesh", [(1, (1, 1)), (8, (1, 8)), (64, (1, 64)), (256, (4, 64)), (96, (3, 32))]
)
def test_a_mesh_of_itself_has_64_slices_at_most(devices: int, mesh: tuple[int, int]) -> None:
    placement = parallel.make_placement("fsdp", devices=jax.devices()[:1] * devices)
    assert placement.mesh.devices.shape == mesh


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two hosts, with four devices each, found."""
    folder = tmp_path_factory.mktemp("hosts")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(SCRIPT.parents[1])}
    outs = [folder / f"{host}.json" for host in (0, 1)]
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(host), str(port), str(out)],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for host, out in enumerate(outs)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return [json.loads(out.read_text()) for out in outs]


def test_hosts_know_each_other(hosts) -> None:
    assert [found["first"] for found in hosts] == [True, False]
    for host, found in enumerate(hosts):
        assert (found["hosts"], found["words"]) == (2, "8 x CPU on 2 hosts")
        assert found["apart"] == [row + host for row in range(8)]


@pytest.mark.parametrize("way", WAYS)
def test_a_state_is_put_stepped_and_gathered_over_two_hosts(way: str, hosts) -> None:
    # The sum of squares over the rows of both, from 0 to 15.
    total = sum(row**2 for row in range(16))
    w = np.arange(2048).reshape(64, 32) + total
    slices = {"pmap": [64, 32], "fsdp": [16, 32]}[way]
    for found in (host[way] for host in hosts):
        assert found["local"] == [[slices] * 4] * 2
        assert found["total"] == total
        assert found["devices of joined"] == 8
        np.testing.assert_array_equal(found["gathered"], w)
        assert found["small"] == [7]
        assert found["digests"] == digests.of_tree(
            {"w": np.arange(2048, dtype=np.float32).reshape(64, 32), "b": np.array([7], np.float32)}
        )
        assert found["drawn"] == [row * w[0, 1] for row in range(16)]
    rows = [rows for host in hosts for rows in host[way]["rows"]]
    assert rows == [[2 * i, 2 * i + 1] for i in range(8)]


SIZES = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
ALL, LARGE = sum(SIZES.values()), SIZES["in"] + SIZES["out"]


@pytest.mark.parametrize("way, slices", [("pmap", 1), ("fsdp", 4)])
def test_a_step_holds_its_slices_of_the_state_and_its_rows(way: str, slices: int, hosts) -> None:
    # Parameters, average and two moments in float32, and four counters; rows of 64 pixels, a
    # label and an index.
    state = 16 * (ALL - LARGE + LARGE // slices) + 4 * 4
    step = hosts[0][way]["step"]
    assert step["aliased"] == state  # its buffers are used again
    assert step["arguments"] == state + BATCH // 8 * 4 * (64 + 1 + 1)


def test_a_step_sends_gradients_and_slices_of_weights_alone(hosts) -> None:
    by_pmap, by_fsdp = (hosts[0][way]["step"]["traffic"] for way in ("pmap", "fsdp"))
    sums = 4 * (ALL + 1 + 20)  # gradients, the loss, and sums and counts of ten bins
    assert by_pmap == {"all-reduce": sums}
    assert by_fsdp.keys() <= {"all-reduce", "reduce-scatter", "all-gather"}
    assert by_fsdp["all-gather"] == 4 * LARGE  # each weight once, and nothing that is computed
    # Two replicas reduce their slices besides; the norm of the gradient takes a few numbers.
    sums += 4 * LARGE // 4
    reduced = by_fsdp["all-reduce"] + by_fsdp.get("reduce-scatter", 0)
    assert sums < reduced <= sums + 64


@pytest.mark.parametrize("way", WAYS)
def test_samples_are_drawn_apart_and_then_gathered(way: str, hosts) -> None:
    draw = hosts[0][way]["draw"]
    assert draw["arguments"] == 4 * (64 * 128 + 2 * 64)  # weights whole, and two rows
    assert draw["traffic"] == {"all-gather": 4 * 16 * 128}
