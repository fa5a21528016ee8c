"""What `sd21` has measured, as a table and as a picture."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_FORWARDS = 3  # that training counts as: one, and its gradient's two
_GUIDED = 2  # rows of the network for each image and step
_COLORS = {
    "ours": "#2a6f97", "ours_remat": "#89c2d9", "torch": "#bc4b2c", "torch_remat": "#e9a98f",
}  # fmt: skip


def images_per_second(row: dict[str, Any]) -> float:
    """Trained on, or drawn."""
    return row["batch"] / row["seconds"]


def utilisation(row: dict[str, Any], found: dict[str, Any]) -> float | None:
    """The share of the chip's peak that the network's own operations are; None: of no known chip.

    What is computed a second time, to save memory, is not counted.
    """
    if found["peak_flops"] is None:
        return None
    of_image = _FORWARDS if row["task"] == "train" else _GUIDED * found["steps"]
    return images_per_second(row) * of_image * found["forward_flops"] / found["peak_flops"]


def table(found: dict[str, Any]) -> list[str]:
    """A line for each batch of each variant, and one for each task of ours beside torch."""
    lines = [
        "| task | variant | batch | s per step | images/s | MFU | first call, s | peak, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["points"]:
        head = f"| {row['task']} | {row['variant']} | {row['batch']} | "
        if "seconds" not in row:
            lines.append(f"{head}out of memory | | | | |")
            continue
        steps = found["steps"] if row["task"] == "sample" else 1
        share = utilisation(row, found)
        lines.append(
            f"{head}{row['seconds'] / steps:.3g} | {images_per_second(row):.3g} | "
            f"{'-' if share is None else f'{share:.1%}'} | {row['first_call']:.0f} | "
            f"{row['peak_gigabytes']:.1f} |"
        )
    for task, beside in found["beside"].items():
        ratio = beside["times_faster"]
        lines.append(
            f"{task}, in turn at a batch of {beside['batch']}: ours is {ratio['ratio']:.2f} "
            f"[{ratio['low']:.2f}, {ratio['high']:.2f}] times as fast as torch"
        )
    return lines


def draw(found: dict[str, Any]) -> Figure:
    """Images per second, and memory, by batch; a row for each task."""
    tasks = list(dict.fromkeys(row["task"] for row in found["points"]))
    figure = Figure(figsize=(8.0, 3.0 * len(tasks)), layout="constrained")
    rows = figure.subplots(len(tasks), 2, squeeze=False)
    for task, (speed, memory) in zip(tasks, rows, strict=True):
        points = [row for row in found["points"] if row["task"] == task]
        _curves(speed, points, images_per_second, f"{task}: images per second")
        _curves(memory, points, lambda row: row["peak_gigabytes"], "peak memory, GB")
        if found["memory_gigabytes"]:
            memory.axhline(found["memory_gigabytes"], color="#999999", linewidth=1)
            memory.set_ylim(0, 1.05 * found["memory_gigabytes"])
    rows[0][0].legend(frameon=False, fontsize=8)
    return figure


def _curves(
    axes: Axes, points: list[dict[str, Any]], value: Callable[[dict[str, Any]], float], title: str
) -> None:
    """A curve for each variant; a cross on the axis where its memory was out."""
    top = max((value(row) for row in points if "seconds" in row), default=1.0)
    for variant in dict.fromkeys(row["variant"] for row in points):
        mine = [row for row in points if row["variant"] == variant]
        rows = sorted((row for row in mine if "seconds" in row), key=lambda row: row["batch"])
        axes.plot(
            [row["batch"] for row in rows], [value(row) for row in rows],
            marker="o", markersize=4, color=_COLORS[variant], label=variant.replace("_", ", "),
        )  # fmt: skip
        for row in mine:
            if "seconds" not in row:
                axes.plot(row["batch"], 0, "x", color=_COLORS[variant], clip_on=False)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda batch, _: f"{batch:g}")
    axes.set_ylim(0, 1.1 * top)
    axes.set_xlabel("batch; x: out of memory")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
