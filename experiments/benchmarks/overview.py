"""The picture of all benchmarks: how many times faster ours is, and the rest in words."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.benchmarks.collect import TIMES_FASTER, spread
from zsnr_jax import plotting

Row = Mapping[str, Any]
_BAR, _WORDS = 0.24, 0.17  # inches of a line
_COLUMNS = 2  # of words
_FEW = 3  # times from the least to the most: too few for powers of 2


class Bar(NamedTuple):
    """Rows that are drawn as one: of the shapes of a layer, say."""

    name: str
    value: float  # the geometric mean
    low: float | None  # of one row its middle half; of several the least and the most
    high: float | None
    points: list[float]


def draw(rows: Sequence[Row]) -> Figure:
    """Bars of the rows that compare ours with another's, and a table of all others."""
    drawn = bars([row for row in rows if row["unit"] == TIMES_FASTER])
    rest = [row for row in rows if row["unit"] != TIMES_FASTER]
    heights = [_BAR * len(drawn) + 1.2, _WORDS * math.ceil(len(rest) / _COLUMNS) + 0.6]
    figure = Figure(figsize=(9.5, sum(heights)), layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=heights)
    above, below = panels
    draw_bars(above.add_subplot(), drawn, "; with points, all shapes of a layer")
    for column in range(_COLUMNS):
        _write(below.add_subplot(1, _COLUMNS, column + 1), rest, column)
    return figure


def bars(rows: Sequence[Row]) -> list[Bar]:
    """One of each name and what it stands against."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        what = row["what"].partition(":")[0]
        groups.setdefault(f"{what}, against {row['against']}", []).append(row)
    return [_bar(name, group) for name, group in groups.items()]


def _bar(name: str, rows: Sequence[Row]) -> Bar:
    values = [row["value"] for row in rows]
    low, high = (rows[0]["low"], rows[0]["high"]) if len(rows) == 1 else (min(values), max(values))
    return Bar(name, statistics.geometric_mean(values), low, high, values)


def draw_bars(axes: Axes, drawn: Sequence[Bar], also: str = "") -> None:
    """On a log scale, on which twice as fast and half as fast are equally far from 1.

    Args: also: what is to be said of the lines, beside what they are.
    """
    theme = plotting.LIGHT
    for y, bar in enumerate(reversed(drawn)):
        colour = theme.samples if bar.value >= 1 else theme.flawed
        axes.barh(y, bar.value - 1, left=1, color=colour, height=0.7)
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [y, y], color=theme.ink, lw=1.2)
        if len(bar.points) > 1:
            axes.plot(bar.points, [y] * len(bar.points), "o", color=theme.ink, markersize=3)
        axes.annotate(
            f"{bar.value:.2f}", (max(bar.value, bar.high or 0, 1), y), (6, 0),
            textcoords="offset points", va="center", fontsize=8, color=theme.ink,
        )  # fmt: skip
    axes.set_yticks(range(len(drawn)), [bar.name for bar in reversed(drawn)], fontsize=8)
    axes.axvline(1, color=theme.ink, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(_ticks(drawn), [f"{x:g}" for x in _ticks(drawn)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.01)
    axes.set_title("How many times faster is ours?", loc="left", weight="bold", color=theme.ink)
    axes.set_xlabel(f"times faster\nlines: the middle half of the rounds{also}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _ticks(drawn: Sequence[Bar]) -> list[float]:
    """Powers of 2 around all that is drawn, or quarters where that is little."""
    ends = [x for bar in drawn for x in (bar.value, bar.low, bar.high) if x] + [1]
    if max(ends) < _FEW * min(ends):
        return [k / 4 for k in range(math.floor(4 * min(ends)), math.ceil(4 * max(ends)) + 1)]
    low, high = math.floor(math.log2(min(ends))), math.ceil(math.log2(max(ends)))
    return [2.0**k for k in range(low, high + 1)]


def _write(axes: Axes, rows: Sequence[Row], column: int) -> None:
    """A line a row, what and how much and the middle half; one after another down each column."""
    axes.set_axis_off()
    lines = math.ceil(len(rows) / _COLUMNS)
    if column == 0:
        axes.set_title("The rest", loc="left", weight="bold", color=plotting.LIGHT.ink)
    for i, row in enumerate(rows[column * lines : (column + 1) * lines]):
        value = f"{row['value']:.3g} {row['unit']}"
        value += f" [{spread(row)}]" if row["low"] is not None else ""
        y, style = 1 - (i + 0.5) / lines, {"fontsize": 7, "va": "center"}
        axes.text(0, y, row["what"], color=plotting.LIGHT.ink, **style)
        axes.text(0.96, y, value, color=plotting.LIGHT.ink, ha="right", **style)
