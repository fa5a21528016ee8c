"""Attention, feed-forward, norm and convolution on a CPU: ours, JAX's and Flax's, and torch's.

  python -m experiments.benchmarks.layers [--rounds=15] [--out=FILE.json]

Each is timed forward, and with the gradient by all its inputs, in float32, in turn with the others
(`turns`). torch takes part where it is installed, by its fused kernels, on channels-last arrays.
Ours is with what `xla_options` and `host_memory` set, theirs without. Of feed-forward, which Flax
has none of, theirs is the same product written plainly.
"""
# pyright: reportMissingImports=false

import functools
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import options
from experiments.benchmarks.turns import Make, Run, about, in_turn
from zsnr_jax import files

RESULT = Path(__file__).with_suffix(".json")
ATTENTION = [  # batch, tokens, tokens attended to, heads, width of a head
    (8, 1024, 1024, 4, 32),
    (8, 256, 256, 4, 64),
    (8, 64, 64, 8, 64),
    (32, 16, 16, 4, 32),
    (8, 1024, 77, 4, 32),
]
FEED_FORWARD = [  # batch, tokens, channels
    (8, 1024, 64),
    (8, 256, 128),
    (8, 64, 256),
]
NORM = [  # batch, height, width, channels, groups
    (8, 32, 32, 64, 32),
    (8, 32, 32, 128, 32),
    (8, 16, 16, 192, 32),
    (8, 8, 8, 256, 32),
    (32, 16, 16, 64, 8),
]
CONVOLUTION = [  # batch, height, width, channels, channels of the result; 3x3
    (32, 8, 8, 96, 96),
    (32, 4, 4, 128, 128),
    (8, 32, 32, 64, 64),
    (8, 16, 16, 128, 128),
    (8, 16, 16, 256, 128),
    (8, 8, 8, 256, 256),
]
_CALLS = 10  # in a turn


class Case(NamedTuple):
    """What is timed. The variants are made in processes of their own, by the functions below."""

    layer: str
    shape: tuple[int, ...]
    gradient: bool


def main() -> None:
    """Measure, print, and write the JSON beside this file."""
    parser = options.parser(__doc__, RESULT)
    help_of_rounds = "after the first call of each"
    parser.add_argument("--rounds", type=options.count, default=15, help=help_of_rounds)
    chosen = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    layers = {
        "attention": ATTENTION,
        "feed-forward": FEED_FORWARD,
        "norm": NORM,
        "convolution": CONVOLUTION,
    }
    rows = []
    for layer, shape in ((layer, shape) for layer, shapes in layers.items() for shape in shapes):
        for gradient in (False, True):
            rows.append(_row(Case(layer, shape, gradient), chosen.rounds))
            print(_line(rows[-1]), flush=True)
    command = f"python -m experiments.benchmarks.layers --rounds={chosen.rounds}"
    text = json.dumps({**about(command), "rows": rows}, indent=1) + "\n"
    files.write_text(chosen.out, text)


def _row(case: Case, rounds: int) -> dict[str, Any]:
    """Milliseconds of each variant, and how many times faster than each other one ours is."""
    names = ["ours", "theirs"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    variants: dict[str, Make] = {name: functools.partial(_warm, name, case) for name in names}
    timed = in_turn(variants, rounds)
    return {
        **case._asdict(),
        "milliseconds": {name: 1e3 * found.median / _CALLS for name, found in timed.items()},
        "times_faster": {
            name: timed["ours"].times_faster_than(timed[name]) for name in names if name != "ours"
        },
    }


def _line(row: dict[str, Any]) -> str:
    what = f"{row['layer']} {' x '.join(map(str, row['shape']))}"
    what += " with its gradient" if row["gradient"] else ""
    took = ", ".join(f"{name} {ms:.2f} ms" for name, ms in row["milliseconds"].items())
    ratios = ", ".join(
        f"{x['ratio']:.2f} [{x['low']:.2f}, {x['high']:.2f}] of {name}"
        for name, x in row["times_faster"].items()
    )
    return f"{what:<48} {took}; times faster: {ratios}"


def _warm(name: str, case: Case) -> Run:
    """Several calls in each turn, as a network makes them: after a rest the first is slower."""
    call = _make(name, case)
    return lambda: [call() for _ in range(_CALLS)]


def _make(name: str, case: Case) -> Run:
    inputs = _inputs(case)
    if name == "torch":
        return _in_torch(case, inputs)
    import jax

    from zsnr_jax import host_memory, xla_options
    from zsnr_jax.models import attention, convolution, feed_forward, norm

    if name == "ours":
        host_memory.keep_freed_memory()
        xla_options.tune_for_cpus()
    functions: dict[tuple[str, str], Callable[..., Any]] = {
        ("attention", "ours"): attention.attention,
        ("attention", "theirs"): jax.nn.dot_product_attention,
        ("feed-forward", "ours"): _feed_forward,
        ("feed-forward", "theirs"): lambda x, *weights: feed_forward.feed_forward(
            x, weights[:2], weights[2:]
        ),
        ("norm", "ours"): functools.partial(_with_silu, norm.GroupNorm, case.shape[-1]),
        ("norm", "theirs"): functools.partial(_with_silu, _flax_norm(), case.shape[-1]),
        ("convolution", "ours"): convolution.convolve,
        ("convolution", "theirs"): convolution.by_xla,
    }
    function = functions[case.layer, name]
    if case.gradient:
        loss = lambda *inputs: (function(*inputs) ** 2).sum()  # noqa: E731
        program = jax.jit(jax.grad(loss, argnums=tuple(range(len(inputs)))))
    else:
        program = jax.jit(function)
    inputs = jax.device_put(inputs)
    return lambda: jax.block_until_ready(program(*inputs))


def _feed_forward(x: Any, *weights: Any) -> Any:
    from zsnr_jax.models.feed_forward import FeedForward

    wide, narrow = (dict(zip(("kernel", "bias"), pair)) for pair in (weights[:2], weights[2:]))
    return FeedForward().apply({"params": {"net_0": {"proj": wide}, "net_2": narrow}}, x)


def _flax_norm() -> Any:
    from flax import linen as nn

    return nn.GroupNorm


def _with_silu(norm: Any, groups: int, x: Any, scale: Any, bias: Any) -> Any:
    from flax import linen as nn

    return nn.silu(norm(groups).apply({"params": {"scale": scale, "bias": bias}}, x))


def _in_torch(case: Case, arrays: Sequence[np.ndarray]) -> Run:
    import torch
    from torch.nn import functional

    inputs = [torch.from_numpy(x) for x in arrays]
    if case.layer == "attention":
        inputs = [x.movedim(2, 1).contiguous() for x in inputs]
        function = functional.scaled_dot_product_attention
    elif case.layer == "feed-forward":
        inputs = [x.T.contiguous() if x.ndim == 2 else x for x in inputs]  # as nn.Linear has them
        function = _feed_forward_in_torch
    elif case.layer == "convolution":
        x, kernel = inputs
        kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        inputs = [x.movedim(3, 1), kernel]  # channels-last in memory, as it came
        function = functools.partial(functional.conv2d, padding=1)
    else:
        inputs[0] = inputs[0].movedim(3, 1)
        groups = case.shape[-1]
        function = lambda x, *by: functional.silu(functional.group_norm(x, groups, *by))  # noqa: E731
    if not case.gradient:
        return torch.no_grad()(lambda: function(*inputs))
    inputs = [x.requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad((function(*inputs) ** 2).sum(), inputs)


def _feed_forward_in_torch(x: Any, wide: Any, bias: Any, narrow: Any, last: Any) -> Any:
    from torch.nn import functional

    h, gate = functional.linear(x, wide, bias).chunk(2, dim=-1)
    return functional.linear(h * functional.gelu(gate), narrow, last)


def _inputs(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    if case.layer == "norm":
        *shape, _ = case.shape
        shapes = [tuple(shape), (shape[-1],), (shape[-1],)]
    elif case.layer == "feed-forward":
        width = case.shape[-1]
        shapes = [case.shape, (width, 8 * width), (8 * width,), (4 * width, width), (width,)]
    elif case.layer == "convolution":
        shapes = [case.shape[:-1], (3, 3, *case.shape[-2:])]
    else:
        batch, n, m, heads, width = case.shape
        shapes = [(batch, n, heads, width)] + [(batch, m, heads, width)] * 2
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


if __name__ == "__main__":
    main()
