"""The law of resolution by trained networks: the flawed recipe at three sizes.

Claim (section 2): at a terminal SNR above zero brightness is lost, and by our law the more the
larger the picture (`experiments/resolution_law.py`). Here the main job's flawed recipe is trained
on `brightness` at 16, 32 and 64, at the same cost: the network sees 8 x 8 blocks at each. It is
sampled as Stable Diffusion: DDIM, S = 50, leading with an offset of 1, ending at level 1.

Predicted: the ideal denoiser of the same data, from the same starts. The spread agrees with it.
Less of the labels' means comes through, at 16 most clearly, since a thousand steps do not teach a
network all that the label says (`experiments/figure4_trained.py` has longer training).

  python -m experiments.resolution_law_trained --workdir=/tmp/zsnr_jax/trained

A minute on 2 CPU cores, and four more for each network that is not yet trained.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import trained
from experiments.record import Experiment, row, run
from experiments.recovery import even_labels, even_starts, recovery_and_spread, spread_given_label
from experiments.resolution_law import law
from zsnr_jax import plotting, timesteps
from zsnr_jax.data.brightness import LABELS

S, TOLERANCE = 50, 0.07
NETWORKS = {16: "flawed_16", 32: "flawed", 64: "flawed_64"}
SIZES = (8, 16, 32, 64, 128)  # of the law's curve


def measure(smoke: bool, workdir: Path) -> dict[str, Any]:
    """The parts of mean and spread that the networks and the ideal denoisers keep."""
    num_each, sizes = (2, [16]) if smoke else (32, list(NETWORKS))
    levels = timesteps.make_timesteps("leading", 1000, S, steps_offset=1)
    rows, found, taus = [], [], []
    for size in sizes:
        network = trained.load(NETWORKS[size], workdir, smoke=smoke)
        data = (network.images, network.labels)
        labels = even_labels(num_each)
        x_T = even_starts(len(LABELS), num_each, network.images.shape[1:])
        predicted, ours = (
            recovery_and_spread(draw(labels, x_T, levels, final_level=1), labels, *data)[0]
            for draw in (network.ideal, network.sample)
        )
        taus.append(spread_given_label(*data))
        found.append({"size": size, "predicted": predicted, "ours": ours})
        rows.append(row(f"{size} x {size}: mean, spread", None, predicted, ours))
    laws = [law("scaled_linear", size, float(np.mean(taus))) for size in SIZES]
    return {"rows": rows, "found": found, "laws": laws}


def draw(results: dict[str, Any]) -> Figure:
    """Mean and spread over the size: the law, the ideal denoiser and the networks."""
    theme, found = plotting.LIGHT, results["found"]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for k, (axes, title) in enumerate(zip(panels, ("mean of a label", "spread about it"))):
        sizes = [here["size"] for here in found]
        axes.axhline(1, color=theme.data, lw=4, zorder=0)
        axes.plot(SIZES, [part[k] for part in results["laws"]], color=theme.faint,
                  label="the law: exact sampling from T, one Gaussian mode")  # fmt: skip
        axes.plot(
            sizes,
            [here["predicted"][k] for here in found],
            "o-",
            color=theme.ideal,
            mfc="none",
            ms=10,
            lw=1,
            label="the ideal denoiser, sampled as Stable Diffusion",
        )
        axes.plot(sizes, [here["ours"][k] for here in found], "v", color=theme.flawed,
                  label="trained networks, the same")  # fmt: skip
        axes.set(xscale="log", xlabel="size H = W, in pixels", ylim=(-0.1, 1.1))
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.minorticks_off()
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("part of the data's that comes through")
    panels[0].legend(frameon=False, fontsize=8.5, loc=(0.02, 0.62))
    figure.suptitle("Do trained networks lose brightness by the law of resolution?", x=0.01,
                    ha="left", weight="bold")  # fmt: skip
    return figure


def check(results: dict[str, Any]) -> None:
    """The larger the picture, the more spread is lost, and as much as by the ideal denoiser."""
    found = results["found"]
    assert [here["size"] for here in found] == list(NETWORKS)
    assert np.all(np.diff([here["ours"][1] for here in found]) < -0.1)
    for here in found:
        np.testing.assert_allclose(here["ours"][1], here["predicted"][1], atol=TOLERANCE)
        assert here["ours"][0] < here["predicted"][0] + TOLERANCE


def summary(results: dict[str, Any]) -> str:
    """The spread at each size, beside the ideal denoiser's."""
    found = results["found"]
    sizes = ", ".join(str(here["size"]) for here in found)
    ours, ideal = (
        ", ".join(f"{here[side][1]:.2f}" for here in found) for side in ("ours", "predicted")
    )
    return f"spread at {sizes} pixels, S = 50: {ours}; the ideal denoiser: {ideal}"


EXPERIMENT = Experiment(
    "resolution_law_trained",
    "Section 2",
    "Trained networks of the flawed recipe lose more brightness the larger the picture, too.",
    measure,
    draw,
    check,
    "-",
    summary,
    trained=True,
)


if __name__ == "__main__":
    run(EXPERIMENT)
