"""The flaw against the number of values: the more there are, the more brightness is lost.

Claim (section 2): at the SNR that common schedules end at, the model sees brightness in what
sampling takes for noise, and keeps to medium brightness. How much depends on the picture's size:
noise is drawn for each of N values, and the mean brightness over all N has noise of variance 1/N
only. So q = SNR(T) N tau^2 measures the flaw, with N = 3 H W here, since the three channels rise
and fall together, and tau the spread of the mean given the label. The paper gives no such law;
`ideal.one_mode_law` is the prediction, for sizes 8 to 256 on three schedules.

Measured, by the ideal denoiser of `brightness` at 8, 16, 32 and 64, given the label:

- exact: from T itself, by dpmpp_2m at 50 levels even in the log SNR, which stands for the exact ODE
  of the law (DDIM would need a thousand steps for it). Flat pictures of Gaussian brightness are the
  law's own case, and agree with it. Those of `brightness` keep up to an eighth more of the spread:
  their brightness is not Gaussian, and what a picture shows tells something of it.
- as Stable Diffusion: DDIM, S = 50, leading with an offset of 1, which ends at level 1. It starts
  at level 982, where the SNR is higher than at T, and its steps are of first order: it keeps less
  of both than the exact ODE.
- mended: as exact, on the mended schedule, which keeps all of both at each size.

  python -m experiments.resolution_law

A minute and a half on 2 CPU cores.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.record import Experiment, row, run
from experiments.recovery import (
    even_labels,
    even_starts,
    flat_pictures,
    recovery_and_spread,
    spread_given_label,
)
from zsnr_jax import data, plotting, samplers, schedules, timesteps
from zsnr_jax.data.brightness import LABELS
from zsnr_jax.evaluation import ideal

T, S = 1000, 50
NAMES = ("linear", "cosine", "scaled_linear")
SIZES = (8, 16, 32, 64, 128, 256)
TOLERANCE, FLAT_TOLERANCE, MENDED_TOLERANCE = 0.15, 0.002, 0.05
SOLVERS = {name: samplers.make_sampler(name) for name in ("ddim", "dpmpp_2m")}
WAYS = {  # schedule, zero terminal SNR, solver, spacing, its offset, final level, flat
    "exact": ("scaled_linear", False, "dpmpp_2m", "uniform_logsnr", 0, 0, False),
    "exact, flat pictures": ("scaled_linear", False, "dpmpp_2m", "uniform_logsnr", 0, 0, True),
    "as Stable Diffusion": ("scaled_linear", False, "ddim", "leading", 1, 1, False),
    "linear, exact": ("linear", False, "dpmpp_2m", "uniform_logsnr", 0, 0, False),
    "mended": ("scaled_linear", True, "dpmpp_2m", "uniform_logsnr", 0, 0, False),
}


def law(name: str, size: int, tau: float, mended: bool = False) -> list[float]:
    """The parts of mean and spread that come through, by the schedule's end alone."""
    schedule = schedules.make_schedule(name, T, mended)
    found = ideal.one_mode_law(schedule, 3 * size**2, tau)
    return [found.mean_recovery, found.std_ratio]


def sample(way: str, size: int, num_each: int) -> tuple[list[float], float]:
    """The same measured, and tau of the data."""
    name, mended, solver, spacing, offset, final_level, flat = WAYS[way]
    images, labels = data.load_arrays(data.open_source(f"brightness/{size}"), size)
    images = flat_pictures(images, labels) if flat else images
    schedule = schedules.make_schedule(name, T, mended)
    levels = timesteps.make_timesteps(spacing, T, S, schedule, offset)
    wanted = even_labels(num_each)
    x_T = even_starts(len(LABELS), num_each, images.shape[1:])
    drawn = ideal.ideal_samples(
        images, labels, schedule, levels, wanted, x_T, SOLVERS[solver], final_level=final_level
    )
    tau = spread_given_label(images, labels)
    return recovery_and_spread(drawn, wanted, images, labels)[0], tau


def measure(smoke: bool) -> dict[str, Any]:
    """The law at all sizes, and what the ideal denoiser keeps at four of them."""
    sizes, width = ((8,), 32) if smoke else ((8, 16, 32, 64), 1536)  # of a label's samples in a row
    rows, measured, taus = [], {way: [] for way in WAYS}, []
    for way, (name, mended, *_) in WAYS.items():
        for size in sizes[:3] if way.endswith("flat pictures") else sizes:
            ours, tau = sample(way, size, width // size)
            taus.append(tau)
            measured[way].append([size, law(name, size, tau, mended), ours])
            rows.append(row(f"{way}, {size} x {size}: mean, spread", None, *measured[way][-1][1:]))
    tau = float(np.mean(taus))
    laws = {name: [law(name, size, tau) for size in SIZES] for name in NAMES}
    for name in NAMES:
        for size, parts in zip(SIZES, laws[name]):
            rows.append(row(f"{name}, {size} x {size}, the law: mean, spread", predicted=parts))
    return {"tau": tau, "sizes": SIZES, "rows": rows, "measured": measured, "laws": laws}


def draw(results: dict[str, Any]) -> Figure:
    """Mean and spread over the size: lines are the law, marks the ideal denoiser."""
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for k, (axes, what) in enumerate(zip(panels, ("mean of a label", "spread about it"))):
        _draw_part(axes, results, k)
        axes.set_title(what, fontsize=10)
    panels[0].set_ylabel("part of the data's that comes through")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside right center")
    figure.suptitle("How much brightness is lost at which size of picture?", x=0.01, ha="left",
                    weight="bold")  # fmt: skip
    figure.supxlabel("Lines: one Gaussian mode, N = 3 H W. Marks: the ideal denoiser of "
                     "brightness/8, /16, /32 and /64.", fontsize=9)  # fmt: skip
    return figure


def _draw_part(axes: Axes, results: dict[str, Any], k: int) -> None:
    theme = plotting.LIGHT
    purple, sky = plotting.PURPLE, plotting.SKY
    lines = {"cosine": (sky, ":"), "linear": (purple, "--"), "scaled_linear": (theme.flawed, "-")}
    marks = {
        "exact": (theme.flawed, "o"),
        "exact, flat pictures": (theme.ink, "+"),
        "as Stable Diffusion": (theme.flawed, "v"),
        "linear, exact": (purple, "s"),
        "mended": (theme.samples, "^"),
    }
    for name, (color, style) in lines.items():
        parts = [part[k] for part in results["laws"][name]]
        axes.plot(results["sizes"], parts, style, color=color, label=f"{name}: the law")
    for way, (color, marker) in marks.items():
        sizes, _, ours = zip(*results["measured"][way])
        fill = "none" if way == "as Stable Diffusion" else color
        label = way if way.startswith(("linear", "mended")) else f"scaled_linear, {way}"
        axes.plot(sizes, [part[k] for part in ours], marker, color=color, mfc=fill, ms=7,
                  label=label)  # fmt: skip
    axes.set(xscale="log", xlabel="size H = W, in pixels", ylim=(0, 1.1))
    axes.set_xticks(results["sizes"], results["sizes"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


def check(results: dict[str, Any]) -> None:
    """The larger the picture, the more is lost; by the law, where its conditions hold."""
    measured, laws = results["measured"], results["laws"]
    falls = lambda values: bool(np.all(np.diff(values) < 0))  # noqa: E731
    for way in ("exact", "exact, flat pictures", "as Stable Diffusion"):
        parts = np.array([ours for _, _, ours in measured[way]])
        assert falls(parts[:, 0]) and falls(parts[:, 1])
    for name in NAMES:
        assert falls([spread for _, spread in laws[name]])
    # At 256 the linear schedule loses much, too; the cosine one hardly anything at any size.
    assert laws["linear"][-1][1] < 0.8 and laws["cosine"][-1][1] > 0.99
    tolerances = {"mended": MENDED_TOLERANCE, "exact, flat pictures": FLAT_TOLERANCE}
    for way in measured.keys() - {"as Stable Diffusion"}:  # which is not the law's case
        for _, predicted, ours in measured[way]:
            tolerance = tolerances.get(way, TOLERANCE)
            np.testing.assert_allclose(ours, predicted, atol=tolerance, err_msg=way)


def summary(results: dict[str, Any]) -> str:
    """The spread at each size, beside the law's."""
    sizes, laws, found = zip(*results["measured"]["exact"])
    listed = lambda parts: ", ".join(f"{spread:.2f}" for _, spread in parts)  # noqa: E731
    return (
        f"spread at {', '.join(map(str, sizes))} pixels: {listed(found)}; the law for one Gaussian "
        f"mode: {listed(laws)}"
    )


EXPERIMENT = Experiment(
    "resolution_law",
    "Section 2",
    "At a terminal SNR above zero brightness is lost, and the more the larger the picture.",
    measure,
    draw,
    check,
    "-",
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
