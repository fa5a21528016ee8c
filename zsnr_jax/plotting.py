"""Pictures of a run, drawn from its result files alone: no model, no JAX.

Every figure has a question for its title and, where the numbers allow, the answer under it.
Colours are those of Okabe and Ito, which colour-blind readers tell apart. Figures are drawn on a
clear ground, for light pages or (`dark=True`) for dark ones; matplotlib's object API keeps no
global state.
"""

import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

Rows = Sequence[Mapping[str, Any]]  # of metrics.jsonl


class Theme(NamedTuple):
    """Colours by what they stand for."""

    ink: str
    faint: str
    data: str
    samples: str
    ideal: str
    flawed: str


LIGHT = Theme("#1f2328", "#8b949e", "#c9ced4", "#0072b2", "#007a5a", "#d55e00")
DARK = Theme("#e6e6e6", "#8b949e", "#4b535d", "#56b4e9", "#2fc39a", "#f08030")
SKY, PURPLE = "#56b4e9", "#cc79a7"  # for what stands for none of these
# Between the pictures of a grid: neither black nor white, since pictures often are.
_GAP = (140, 150, 165)


def image_grid(images: np.ndarray, columns: int = 16, scale: int = 2, pad: int = 2) -> np.ndarray:
    """Lay images out in rows, each pixel magnified to a square.

    Args: images: uint8 [n, H, W, C], C 1 or 3, n >= 1.  columns: pictures per row.
      scale: magnification.  pad: pixels between pictures and around them.
    Returns: uint8 [rows (H scale + pad) + pad, columns (W scale + pad) + pad, 3].
    """
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, _ = images.shape
    columns = min(columns, n)
    high, wide = height + pad, width + pad
    grid = np.full((math.ceil(n / columns) * high + pad, columns * wide + pad, 3), _GAP, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * high + pad, i % columns * wide + pad
        grid[top : top + height, left : left + width] = image
    return grid


def by_brightness(images: np.ndarray, count: int) -> np.ndarray:
    """Choose `count` images at even quantiles of mean brightness, from dark to bright.

    Picture k of two such choices stands at the same quantile of its set, so that grids of them
    can be compared place by place. Args: images: [n, H, W, C], n >= 1. Returns: [count, H, W, C].
    """
    order = np.argsort(images.mean(axis=(1, 2, 3)), kind="stable")
    quantiles = (np.arange(count) + 0.5) / count
    return images[order[(quantiles * len(images)).astype(int)]]


def save_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write a uint8 image [H, W, 3] as PNG, making its folder if need be."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    Image.fromarray(image).save(path, format="PNG")


def save_image_grid(
    path: str | os.PathLike[str],
    images: np.ndarray,
    columns: int = 16,
    rows: int = 2,
    scale: int | None = None,
) -> None:
    """Write a grid of rows x columns images as PNG, from dark to bright (see `by_brightness`).

    Args: images: uint8 [n, H, W, C], n >= 1; fewer are shown where n is less.
      scale: default: the whole number that brings a picture nearest to 64 pixels.
    """
    shown = by_brightness(images, min(rows * columns, len(images)))
    scale = max(1, round(64 / images.shape[2])) if scale is None else scale
    save_image(path, image_grid(shown, columns, scale))


def contact_sheet(images: np.ndarray, captions: Sequence[str], columns: int = 4) -> Figure:
    """Pictures uint8 [n, H, W, C] in reading order, each above its caption."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3 * columns, 3.5 * rows), layout="constrained", dpi=100)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, caption in zip(grid, images, captions):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        text = textwrap.fill(textwrap.shorten(caption, 120, placeholder=" ..."), 38)
        axes.set_xlabel(text, parse_math=False)  # a caption may have dollar signs
        axes.set(xticks=[], yticks=[])
    for axes in grid[len(images) :]:
        axes.set_visible(False)
    return figure


def brightness_histogram(results: Mapping[str, Any], dark: bool = False) -> Figure:
    """Draw the brightness of the data, of the samples, and of the ideal denoisers.

    Args: results: of results.json; its "histogram" holds "edges" [k+1] and densities [k], of
      which "data" and "samples" must be there.
    """
    theme = DARK if dark else LIGHT
    histogram = results["histogram"]
    edges = histogram["edges"]
    figure, axes = _figure(theme, "Are very dark and very bright images made?", height=3.5)
    axes.stairs(histogram["data"], edges, fill=True, color=theme.data)
    for name, colour in (("ideal_flawed", theme.flawed), ("ideal_this", theme.ideal)):
        if name in histogram:
            axes.stairs(histogram[name], edges, baseline=None, color=colour, lw=1.3)
    axes.stairs(histogram["samples"], edges, baseline=None, color=theme.samples, lw=2.6)
    axes.stairs(histogram["samples"], edges, fill=True, color=theme.samples, alpha=0.12)
    top = max(max(v) for k, v in histogram.items() if k != "edges")
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.2 * max(top, 0.8)), yticks=[])
    axes.set_xticks([-1, 0, 1], ["-1, black", "0", "white, 1"])
    for label, alignment in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(alignment)
    axes.set_xlabel("mean brightness of an image")
    axes.spines["left"].set_visible(False)
    _label_histogram(axes, histogram, theme)
    _subtitle(axes, _share_at_the_ends(histogram), theme)
    return figure


def loss_curve(rows: Rows, dark: bool = False) -> Figure:
    """Draw the loss, and apart from it the loss at t = T, over the steps, on a log scale.

    Args: rows: of metrics.jsonl; a loss that is null or not finite is left out.
    """
    theme = DARK if dark else LIGHT
    figure, axes = _figure(theme, "Has the loss settled?")
    series = (("loss", "all levels", theme.samples), ("loss_at_T", "at t = T alone", theme.flawed))
    for key, label, colour in series:
        points = [(row["step"], row[key]) for row in rows if _is_positive(row.get(key))]
        if points:
            steps, losses = zip(*points, strict=True)
            above = max(losses[-1 - len(losses) // 4 :])  # where the label meets no line
            lone = "o" if len(points) == 1 else ""
            axes.plot(steps, losses, color=colour, lw=1.8, marker=lone, label=label)
            axes.annotate(
                label,
                (steps[-1], above),
                (0, 5),
                textcoords="offset points",
                color=colour,
                ha="right",
                weight="bold",
            )
    axes.set_yscale("log")
    axes.margins(x=0.02, y=0.15)
    axes.set_xlabel("step")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    return figure


def loss_by_level(
    rows: Rows, num_steps: int | None = None, window: float = 0.2, dark: bool = False
) -> Figure:
    """Draw the mean loss in each bin of noise levels, over the last part of training.

    Args: rows: of metrics.jsonl, whose loss_by_level are equal-width bins of levels 1..T.
      num_steps: T, for the axis; without it the axis is t / T.
      window: the part of the steps that counts as last.
    """
    theme = DARK if dark else LIGHT
    means = mean_by_level(rows, window)
    figure, axes = _figure(theme, "At which noise levels is the loss?")
    terminal = num_steps or 1
    edges = np.linspace(0, terminal, len(means) + 1)
    heights = [0.0 if math.isnan(mean) else mean for mean in means]
    width = terminal / max(len(means), 1)
    axes.bar(edges[:-1] + width / 2, heights, 0.86 * width, color=theme.samples)
    axes.set(xlim=(0, terminal), ylim=(0, None))
    ticks = [0, terminal / 2, terminal]
    named = ["0, clean", f"{terminal / 2:g}", f"noise, {terminal}"]
    axes.set_xticks(ticks, named if num_steps else ["0, clean", "0.5", "noise, 1"])
    for label, alignment in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(alignment)
    axes.set_xlabel("noise level t" if num_steps else "noise level t / T")
    _subtitle(axes, f"mean over the last {100 * window:.0f} % of training", theme)
    return figure


def mean_by_level(rows: Rows, window: float = 0.2) -> list[float]:
    """Mean loss per level bin over the last `window` of the steps; nan for a bin without any."""
    rows = [row for row in rows if row.get("loss_by_level")]
    if not rows:
        return []
    first = rows[-1]["step"] * (1 - window)
    last = [row["loss_by_level"] for row in rows if row["step"] >= first]
    bins = [[loss for loss in column if _is_positive(loss)] for column in zip(*last, strict=True)]
    return [float(np.mean(losses)) if losses else math.nan for losses in bins]


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG; the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "zsnr_jax"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def save_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write the figure as PNG on white, at twice the size of its points."""
    figure.savefig(path, format="png", dpi=144, facecolor="white")


def _figure(theme: Theme, title: str, height: float = 3.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=12, weight="bold", pad=24)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.tick_params(which="both", color=theme.faint, labelcolor=theme.ink)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    return figure, axes


def _subtitle(axes: Axes, text: str, theme: Theme) -> None:
    axes.annotate(
        text, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", color=theme.ink
    )


def _label_histogram(axes: Axes, histogram: Mapping[str, Any], theme: Theme) -> None:
    """Name each curve where there is room: the flawed one in the middle, the others beside it."""
    edges = np.asarray(histogram["edges"])
    centres = (edges[1:] + edges[:-1]) / 2
    top = axes.get_ylim()[1]
    axes.text(0, 0.05 * top, "data", color=theme.ink, ha="center")
    labels = [("samples", "this run", theme.samples, -0.7, -0.95, "left")]
    labels += [("ideal_this", "this recipe, ideal", theme.ideal, 0.7, 0.95, "right")]
    for name, text, colour, at, x, alignment in labels:
        if name in histogram:
            k = int(np.argmin(abs(centres - at)))
            axes.annotate(
                text,
                (float(centres[k]), histogram[name][k]),
                (x, 0.92 * top),
                color=colour,
                ha=alignment,
                weight="bold" if name == "samples" else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkB": 2},
            )
    if "ideal_flawed" in histogram:
        peak = max(histogram["ideal_flawed"])
        axes.text(0, peak + 0.03 * top, "flawed recipe, ideal", color=theme.flawed, ha="center")


def _share_at_the_ends(histogram: Mapping[str, Any]) -> str:
    """How much of each distribution lies beyond +-0.8, in a sentence."""
    edges = np.asarray(histogram["edges"])
    outside = (edges[1:] <= -0.8 + 1e-9) | (edges[:-1] >= 0.8 - 1e-9)
    named = {"data": "data", "samples": "this run", "ideal_flawed": "flawed"}
    shares = [
        f"{label} {100 * float(np.dot(histogram[name], np.diff(edges) * outside)):.0f} %"
        for name, label in named.items()
        if name in histogram
    ]
    return "Beyond ±0.8: " + ", ".join(shares)


def _is_positive(loss: Any) -> bool:
    """Whether a loss can be drawn on a log scale: null and nan are not drawn."""
    return isinstance(loss, int | float) and math.isfinite(loss) and loss > 0
