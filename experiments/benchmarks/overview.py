"""The picture of all benchmarks: how many times faster ours is, and the rest in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.benchmarks.collect import TIMES_FASTER, spread
from zsnr_jax import plotting

Row = Mapping[str, Any]
_LINE = 0.19  # inches


def draw(rows: Sequence[Row]) -> Figure:
    """Bars of the rows that compare ours with another's, and a table of all others."""
    ratios = [row for row in rows if row["unit"] == TIMES_FASTER]
    rest = [row for row in rows if row["unit"] != TIMES_FASTER]
    heights = [max(1, len(ratios)) + 6, max(1, len(rest)) + 2]
    figure = Figure(figsize=(9.0, _LINE * sum(heights)), layout="constrained")
    bars, words = figure.subplots(2, 1, height_ratios=heights)
    _draw_ratios(bars, ratios)
    _write(words, rest)
    return figure


def _draw_ratios(axes: Axes, rows: Sequence[Row]) -> None:
    """On a log scale, on which twice as fast and half as fast are equally far from 1."""
    theme = plotting.LIGHT
    for y, row in enumerate(reversed(rows)):
        value = row["value"]
        colour = theme.samples if value >= 1 else theme.flawed
        axes.barh(y, value - 1, left=1, color=colour, height=0.7)
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [y, y], color=theme.ink, lw=1.2)
        end = max(value, row["high"] or 0, 1)
        axes.annotate(
            f"{value:.2f}", (end, y), (4, 0), textcoords="offset points", va="center", fontsize=7,
            color=theme.ink,
        )  # fmt: skip
    names = [f"{row['what']}, against {row['against']}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.axvline(1, color=theme.ink, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(_ticks(rows), [f"{x:g}" for x in _ticks(rows)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.01)
    axes.set_title("How many times faster is ours?", loc="left", weight="bold", color=theme.ink)
    axes.set_xlabel("times faster; lines: the middle half of the rounds")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _ticks(rows: Sequence[Row]) -> list[float]:
    """Powers of 2 around all that is drawn."""
    ends = [x for row in rows for x in (row["value"], row["low"], row["high"], 1) if x] or [1]
    low, high = math.floor(math.log2(min(ends))), math.ceil(math.log2(max(ends)))
    return [2.0**k for k in range(low, high + 1)]


def _write(axes: Axes, rows: Sequence[Row]) -> None:
    """A line a row: what, how much, and the middle half."""
    axes.set_axis_off()
    axes.set_title("The rest", loc="left", weight="bold", color=plotting.LIGHT.ink)
    places = {"left": 0.0, "right": 0.62}
    for i, row in enumerate(rows):
        y = 1 - (i + 0.5) / len(rows)
        value = f"{row['value']:.3g} {row['unit']}"
        for x, text in (
            (places["left"], row["what"]),
            (places["right"], value),
            (0.85, spread(row)),
        ):
            axes.text(x, y, text, fontsize=7, va="center", color=plotting.LIGHT.ink)
