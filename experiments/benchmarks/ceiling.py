"""How near the network comes to what this machine can compute: operations, and how many a second.

  python -m experiments.benchmarks.ceiling [--rounds=7] [--out=FILE.json]

Operations are counted from jaxprs (`flops`), beside XLA's own count. The ceiling is a product of
large float32 matrices, by the faster of XLA and torch where that is installed; it is timed in turn
with the programs (`turns`), so that each share is of the same minute. The programs: the network of
`unet`, and the main job's step. 3x3 convolutions at that network's shapes stand beside them.
"""
# pyright: reportMissingImports=false

import functools
import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from configs import brightness
from experiments.benchmarks import apart, flops, in_jax, options, sd_shaped, unet
from experiments.benchmarks.layers import CONVOLUTION
from experiments.benchmarks.spread import middle_half, told
from experiments.benchmarks.turns import Make, Run, Timed, about, in_turn
from zsnr_jax import build, files, host_memory, xla_options
from zsnr_jax.models import convolution
from zsnr_jax.train.step import repeat_step

RESULT = Path(__file__).with_suffix(".json")
PRODUCT = (2048, 2048, 2048)  # rows, terms of a sum, columns
CONVOLUTIONS = CONVOLUTION[-4:]  # those of the network
SIZES = unet.SIZES._replace(steps=1)
_IN_A_TURN = 4e10  # operations of a kernel, about: after a rest the first call is slower

Shape = tuple[int, ...]  # of a kernel: as PRODUCT, or as of CONVOLUTION


def main() -> None:
    """Measure, print, and write the JSON beside this file."""
    parser = options.parser(__doc__, RESULT)
    help_of_rounds = "after the first call of each"
    parser.add_argument("--rounds", type=options.count, default=7, help=help_of_rounds)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        apart.enter(Path(temporary))
        sd_shaped.write_weights(Path(temporary) / "unet")
        made = programs(Path(temporary))
        counted = {name: _counted(make) for name, make in tqdm(made.items(), desc="counting")}
        timed = in_turn(_kernels(PRODUCT) | made, chosen.rounds)
    rates: dict[Shape, dict[str, list[float]]] = {PRODUCT: _rates(PRODUCT, timed)}
    for shape in CONVOLUTIONS:
        rates[shape] = _rates(shape, in_turn(_kernels(shape), chosen.rounds))
    ceiling = [max(of_round) for of_round in zip(*rates[PRODUCT].values())]
    command = f"python -m experiments.benchmarks.ceiling --rounds={chosen.rounds}"
    found = {
        **about(command),
        "ceiling_gflops": middle_half(ceiling) | {"best": max(ceiling)},
        "kernels": [
            {"shape": shape, "gflops": {name: middle_half(x) for name, x in of_shape.items()}}
            for shape, of_shape in rates.items()
        ],
        "programs": {
            name: compared(counted[name], timed[name].seconds, ceiling) for name in counted
        },
    }
    print("\n".join(_lines(found)))
    files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")


def programs(folder: Path) -> dict[str, Make]:
    """What is compared with the ceiling. Args: folder: of the network's weights."""
    return {
        "forward": functools.partial(in_jax.forward, folder, SIZES),
        "sampling step": functools.partial(in_jax.sample, folder, SIZES),
        "training step": functools.partial(in_jax.train, folder, SIZES),
        "main job's step": main_step,
    }


def main_step() -> Run:
    """The training step of the main job, on one batch."""
    host_memory.keep_freed_memory()
    xla_options.tune_for_cpus()
    run = build.build(brightness.get_config())
    step = run.placement.step(repeat_step(run.train_step(run.placement), 1))
    batch = {name: x[None] for name, x in next(run.batches(0)).items()}
    state = run.placement.put(run.init_state())

    def take() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return take


def kernel(library: str, shape: Shape) -> Run:
    """A kernel, as often as it is called in a turn."""
    rng = np.random.default_rng(0)
    operands = [rng.standard_normal(x.shape, np.float32) for x in _operands(shape)]
    call = _in_torch(operands) if library == "torch" else _in_xla(operands)
    return lambda: [call() for _ in range(_times(shape))]


def operations(shape: Shape) -> int:
    """Floating point operations of a kernel."""
    return flops.of_jaxpr(jax.make_jaxpr(_compute)(*_operands(shape)).jaxpr)


def compared(
    counted: flops.Counted, seconds: Sequence[float], ceiling: Sequence[float]
) -> dict[str, Any]:
    """Operations of a program, how many a second, and as a share of the ceiling in each round."""
    rates = [counted.flops / 1e9 / took for took in seconds]
    return {
        "gigaflops": counted.flops / 1e9,
        "xla_over_ours": counted.xla_over_ours,
        "seconds": middle_half(seconds),
        "gflops": middle_half(rates),
        "share_of_ceiling": middle_half([rate / most for rate, most in zip(rates, ceiling)]),
    }


def _counted(make: Make) -> flops.Counted:
    """Traced as it is run; but a trace has no result to wait for."""
    with mock.patch.object(jax, "block_until_ready", lambda x: x):
        return flops.count(make())


def _kernels(shape: Shape) -> dict[str, Make]:
    libraries = ["XLA"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    return {library: functools.partial(kernel, library, shape) for library in libraries}


def _rates(shape: Shape, timed: Mapping[str, Timed]) -> dict[str, list[float]]:
    """Billions of operations a second by each library, in each round."""
    gigaflops = _times(shape) * operations(shape) / 1e9
    return {name: [gigaflops / took for took in timed[name].seconds] for name in _kernels(shape)}


def _times(shape: Shape) -> int:
    return round(_IN_A_TURN / operations(shape)) or 1


def _operands(shape: Shape) -> list[jax.ShapeDtypeStruct]:
    *left, summed, out = shape
    kernel = (summed, out) if len(shape) == 3 else (3, 3, summed, out)
    return [jax.ShapeDtypeStruct(x, jnp.float32) for x in ((*left, summed), kernel)]


def _compute(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel if kernel.ndim == 2 else convolution.by_xla(x, kernel)


def _in_xla(operands: Sequence[np.ndarray]) -> Run:
    xla_options.tune_for_cpus()
    program, placed = jax.jit(_compute), jax.device_put(operands)
    return lambda: jax.block_until_ready(program(*placed))


def _in_torch(operands: Sequence[np.ndarray]) -> Run:
    import torch

    x, kernel = map(torch.from_numpy, operands)
    if kernel.ndim == 2:
        return lambda: torch.matmul(x, kernel)
    kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    return lambda: torch.nn.functional.conv2d(x.movedim(3, 1), kernel, padding=1)


def _lines(found: dict[str, Any]) -> list[str]:
    """The table, as it is printed."""
    lines = [f"the ceiling: {told(found['ceiling_gflops'], 0)} GFLOP/s"]
    for row in found["kernels"]:
        rates = ", ".join(f"{told(x, 0)} by {name}" for name, x in row["gflops"].items())
        lines.append(f"{' x '.join(map(str, row['shape'])):<24} {rates} GFLOP/s")
    for name, row in found["programs"].items():
        lines.append(
            f"{name:<24} {row['gigaflops']:.2f} GFLOP, XLA counts {row['xla_over_ours']:.3f} times "
            f"as many; {told(row['gflops'], 0)} GFLOP/s, "
            f"{told(row['share_of_ceiling'])} of the ceiling"
        )
    return lines


if __name__ == "__main__":
    main()
