"""Schedules before and after the rescale: the same curve, and an end at SNR 0.

Claim (Section 3.1): common schedules are mended by keeping the first alpha, moving the last to 0,
and scaling all between linearly (Algorithm 1), which preserves the curve; the cosine schedule only
needs its clip on beta dropped. The prediction is Algorithm 1 as printed, betas in and betas out, in
NumPy float64, and for cosine the unclipped closed form; the paper prints no levels.

  python -m experiments.figure_schedules

Seconds on a CPU.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.record import Experiment, measured, row, run
from zsnr_jax import plotting, schedules

NAMES = {"linear": "linear", "cosine": "cosine", "scaled_linear": "Stable Diffusion's"}
LISTED = [1, 250, 500, 750, 900, 999, 1000]
DRAWN = [1, *range(10, 1000, 10), 995, 999, 1000]


def mended_alpha(name: str, T: int = 1000) -> np.ndarray:
    """alpha_1..alpha_T after the rescale, from the paper's formulas alone."""
    if name == "cosine":
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.append(np.sqrt(f[1:-1] / f[0]), 0.0)  # f(T) is the square of a cosine of pi/2
    i = np.arange(T) / (T - 1)
    root = np.sqrt(0.00085) * (1 - i) + np.sqrt(0.012) * i
    betas = root**2 if name == "scaled_linear" else 0.0001 * (1 - i) + 0.02 * i
    s = np.sqrt(np.cumprod(1 - betas))
    s = (s - s[-1]) * s[0] / (s[0] - s[-1])
    alphas = np.concatenate([s[:1] ** 2, s[1:] ** 2 / s[:-1] ** 2])
    return np.sqrt(np.cumprod(alphas))  # the betas returned are 1 - alphas


def measure(smoke: bool) -> dict[str, Any]:
    """alpha and log SNR over levels, before and after."""
    del smoke  # there is nothing to leave out
    rows, curves = [], {}
    for name in NAMES:
        pair = [schedules.make_schedule(name, zero_terminal_snr=zero) for zero in (False, True)]
        predicted, ours = mended_alpha(name), np.asarray(pair[1].alpha, np.float64)[1:]
        for level in LISTED:
            rows.append(row(f"{name}: alpha({level}), mended",
                            predicted=float(predicted[level - 1]),
                            ours=float(ours[level - 1])))  # fmt: skip
        rows.append(row(f"{name}: largest distance over all levels", predicted=0.0,
                        ours=float(np.max(abs(ours - predicted)))))  # fmt: skip
        rows.append(row(f"{name}: log SNR at 900 and at 999, mended",
                        predicted=log_snr(predicted[[899, 998]]),
                        ours=schedules.logsnr(pair[1])[[900, 999]].tolist()))  # fmt: skip
        curves[name] = [curve(schedule) for schedule in pair]
    return {"rows": rows, "levels": DRAWN, "curves": curves}


def log_snr(alpha: np.ndarray) -> list[float]:
    """log(alpha^2 / (1 - alpha^2)), natural."""
    return np.log(alpha**2 / (1 - alpha**2)).tolist()


def curve(schedule: schedules.NoiseSchedule) -> dict[str, list[float | None]]:
    """What is drawn of a schedule; None for a log SNR of -inf."""
    logs = schedules.logsnr(schedule)[DRAWN]
    return {
        "alpha": [round(float(a), 6) for a in schedule.alpha[DRAWN]],
        "logsnr": [round(float(x), 4) if np.isfinite(x) else None for x in logs],
    }


def draw(results: dict[str, Any]) -> Figure:
    """alpha above, log SNR below; a column for each schedule."""
    theme, levels = plotting.LIGHT, results["levels"]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey="row")
    for (above, below), (name, pair) in zip(panels.T, results["curves"].items()):
        for found, colour, width in zip(pair, (theme.flawed, theme.samples), (3.4, 1.6)):
            logs = [np.nan if x is None else x for x in found["logsnr"]]
            above.plot(levels, found["alpha"], color=colour, lw=width)
            below.plot(levels, logs, color=colour, lw=width)
        last, before = pair[0]["alpha"][-1], pair[1]["logsnr"][-2]
        below.annotate("", (1000, -24), (999, before), annotation_clip=False,
                       arrowprops={"arrowstyle": "->", "color": theme.samples, "shrinkA": 0,
                                   "shrinkB": 0})  # fmt: skip
        above.set_title(NAMES[name], loc="left", fontsize=11)
        how = "unclipped" if name == "cosine" else "rescaled"
        notes = ((f"original: {last:.2g} at T", theme.flawed), (f"{how}: 0 at T", theme.samples))
        for place, (text, colour) in enumerate(notes):
            above.text(0.99, 0.9 - 0.12 * place, text, color=colour, ha="right",
                       transform=above.transAxes)  # fmt: skip
        below.set_xlabel("level t, T = 1000")
        below.set_xticks([0, 500, 1000], ["0", "500", "1000"])
    panels[0, 0].set(ylabel="alpha, share of the picture", ylim=(0, 1.02))
    panels[1, 0].set(ylabel="log SNR (natural log)", ylim=(-24, 11), xlim=(0, 1000))
    panels[1, 0].text(40, -22, "the arrow: to minus infinity at T", color=theme.samples)
    figure.suptitle("What does the rescale change?", x=0.01, ha="left", weight="bold")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def check(results: dict[str, Any]) -> None:
    """Algorithm 1 to float32 at every level, alpha_1 kept, exactly 0 at T, decreasing."""
    for line in results["rows"]:
        np.testing.assert_allclose(line["ours"], line["predicted"], rtol=1e-5, atol=2e-7)
    for name, (flawed, mended) in results["curves"].items():
        assert mended["alpha"][-1] == 0 < flawed["alpha"][-1], name
        assert mended["alpha"][0] == flawed["alpha"][0], name
        assert mended["logsnr"][-1] is None and flawed["logsnr"][-1] is not None, name
        assert np.all(np.diff(mended["alpha"]) <= 0), name
        assert np.all(np.array(mended["alpha"]) <= np.array(flawed["alpha"])), name


def summary(results: dict[str, Any]) -> str:
    """How far all levels are from the algorithm as printed."""
    found = measured(results)
    off = max(found[f"{name}: largest distance over all levels"] for name in NAMES)
    return f"alpha at every level within {off:.0e} of Algorithm 1 in float64"


EXPERIMENT = Experiment(
    "figure_schedules",
    "Section 3.1",
    "The rescale keeps the first alpha and the curve, and moves the last alpha to exactly 0; the "
    "cosine schedule only drops its clip.",
    measure,
    draw,
    check,
    "Algorithm 1",
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
