"""Floating point operations of a program, counted from its jaxpr: products and convolutions alone.

A multiplication and an addition are two. Everything else that a network does, sums, norms and
activations, is left out: memory limits it, and fusing it changes nothing of what is counted here.
What a gradient computes anew is counted again. A convolution counts no product with its padding,
nor with the holes that the gradient of a strided one has.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, jaxprs_in_params


class Counted(NamedTuple):
    """Of one call."""

    flops: int
    loops_once: int  # the same with each loop run once, as XLA counts
    by_xla: float  # what XLA says of the programs before it optimizes them, all the rest with it

    @property
    def xla_over_ours(self) -> float:
        """1, and the share of all the rest."""
        return self.by_xla / self.loops_once


def count(run: Callable[..., Any], *arguments: Any) -> Counted:
    """Count both ways, of the jitted programs that are run. Arguments may be shapes alone.

    Raises: ValueError where a loop that computes any has no length before it runs.
    """
    traced = jax.make_jaxpr(run)(*arguments).jaxpr
    programs = [
        equation.params["jaxpr"] for equation in traced.eqns if equation.primitive.name == "jit"
    ]
    return Counted(of_jaxpr(traced), of_jaxpr(traced, True), sum(map(_by_xla, programs)))


def of_jaxpr(jaxpr: Jaxpr, loops_once: bool = False) -> int:
    """Of all its equations, and those of the jaxprs within them."""
    return sum(_of_equation(equation, loops_once) for equation in jaxpr.eqns)


def _by_xla(program: ClosedJaxpr) -> float:
    lowered = jax.jit(jaxpr_as_fun(program)).lower(*program.in_avals)
    return float(cast(Any, lowered.cost_analysis()).get("flops", 0))


def _of_equation(equation: Any, loops_once: bool) -> int:
    name, params = equation.primitive.name, equation.params
    shapes = [value.aval.shape for value in (*equation.invars, *equation.outvars)]
    if name == "dot_general":
        return _of_product(params["dimension_numbers"], *shapes)
    if name == "conv_general_dilated":
        return _of_convolution(params, *shapes)
    # Of a function with its own gradient the function is there; the gradient, once it is taken.
    within = [of_jaxpr(inner, loops_once) for inner in jaxprs_in_params(params)]
    if name == "cond":
        return _of_branches(within, params.get("branches_platforms"))
    if name == "while" and sum(within):
        raise ValueError("a while loop computes products, and how often is not known before")
    if name == "scan":
        return sum(within) * min(params["length"], 1 if loops_once else math.inf)
    return sum(within)


def _of_branches(branches: Sequence[int], platforms: Sequence[Any] | None) -> int:
    """Of the branch for this platform, where that is what decides; else of the longest."""
    if platforms is None:
        return max(branches)
    here = jax.default_backend()
    return next(n for n, names in zip(branches, platforms) if names is None or here in names)


def _of_product(numbers: Any, left: Sequence[int], right: Sequence[int], out: Sequence[int]) -> int:
    (contracted, _), _ = numbers
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _of_convolution(
    params: dict[str, Any], left: Sequence[int], right: Sequence[int], out: Sequence[int]
) -> int:
    """Twice rows x channels of the result x channels of the kernel x pairs that meet, by axis."""
    numbers = params["dimension_numbers"]
    axes = zip(
        (left[axis] for axis in numbers.lhs_spec[2:]),
        (right[axis] for axis in numbers.rhs_spec[2:]),
        (out[axis] for axis in numbers.out_spec[2:]),
        *(params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")),
    )
    rows, channels = (out[axis] for axis in numbers.out_spec[:2])
    pairs = math.prod(_meeting(*axis) for axis in axes)
    return 2 * rows * channels * right[numbers.rhs_spec[1]] * pairs


def _meeting(
    length: int, taps: int, out: int, stride: int, padding: tuple[int, int], holes: int, spread: int
) -> int:
    """How often, along an axis, a place of the result and a tap of the kernel meet a value.

    Args: holes, spread: the distances of values and of taps, 1 where nothing is between.
    """
    at = np.arange(out)[:, None] * stride + np.arange(taps) * spread - padding[0]
    return int(np.sum((at >= 0) & (at <= (length - 1) * holes) & (at % holes == 0)))
