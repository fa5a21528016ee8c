"""Table 1: what common schedules leave of the picture at T, and that the fix leaves nothing.

Claim (Section 2, Table 1): the linear, cosine and Stable Diffusion schedules end at an SNR above
zero. Nothing is random here: the paper's printed digits stand beside ours. Its cosine row came from
betas in float32, and differs from float64 in the sixth digit.

  python -m experiments.table1_terminal_snr

Seconds on a CPU.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.record import Experiment, measured, row, run
from zsnr_jax import plotting, schedules

PAPER = {  # SNR(T) and alpha(T), as printed
    "linear": (4.035993e-05, 0.006353),
    "cosine": (2.428735e-09, 4.928220e-05),
    "scaled_linear": (0.004682, 0.068265),
}


def measure(smoke: bool) -> dict[str, Any]:
    """SNR(T) and alpha(T) before and after the fix."""
    del smoke  # there is nothing to leave out
    rows, left = [], {}
    for name, (snr, alpha) in PAPER.items():
        flawed = schedules.make_schedule(name)
        mended = schedules.make_schedule(name, zero_terminal_snr=True)
        left[name] = [float(flawed.alpha[-1]), float(mended.alpha[-1])]
        rows += [
            row(f"{name}: SNR(T)", paper=snr, ours=float(schedules.snr(flawed)[-1])),
            row(f"{name}: alpha(T)", paper=alpha, ours=left[name][0]),
            row(f"{name}: alpha(T), mended", paper=0.0, predicted=0.0, ours=left[name][1]),
        ]
    return {"rows": rows, "alpha": left}


def draw(results: dict[str, Any]) -> Figure:
    """Bars of what is left of the picture at T."""
    theme = plotting.LIGHT
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, (flawed, mended) in enumerate(results["alpha"].values()):
        axes.barh(-place, 100 * flawed, color=theme.flawed, height=0.6)
        axes.text(100 * flawed, -place, f"  {100 * flawed:.3g} %, mended {100 * mended:g} %",
                  va="center", color=theme.ink)  # fmt: skip
    axes.set_yticks([0, -1, -2], ["linear", "cosine", "Stable Diffusion's"])
    axes.set(xlabel="part of the picture's amplitude at T, alpha(T), in %", xlim=(0, 10))
    axes.set_title("How much of the picture is left where sampling takes it for noise?", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def check(results: dict[str, Any]) -> None:
    """The printed digits, and exactly nothing after the fix."""
    for line in results["rows"]:
        np.testing.assert_allclose(line["ours"], line["paper"], rtol=1e-4)
    assert all(flawed > 0 == mended for flawed, mended in results["alpha"].values())


def summary(results: dict[str, Any]) -> str:
    """SNR(T) as the paper prints it, and alpha(T) after the fix."""
    found = measured(results)
    linear, cosine, stable = (found[f"{name}: SNR(T)"] for name in PAPER)
    left = max(found[f"{name}: alpha(T), mended"] for name in PAPER)
    return (
        f"{linear:.6e}, {cosine:.6e} (the paper's betas were float32), {stable:.6f}; mended, "
        f"alpha(T) is {left} for all three"
    )


EXPERIMENT = Experiment(
    "table1_terminal_snr",
    "Section 2, Table 1",
    "Common schedules end at an SNR above zero; rescaled, they end at zero exactly.",
    measure,
    draw,
    check,
    "SNR(T) 4.035993e-05, 2.428735e-09, 0.004682",
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
