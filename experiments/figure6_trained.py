"""Figure 6 by a trained network: guidance over-exposes, and rescale takes that back.

Claim (section 5.3, Figure 6): at w = 7.5 without rescale (phi = 0) pictures are over-exposed; the
more rescale, the less; 0.5 to 0.75 look best, and at phi = 1 they are plain. The paper's sampler is
DDIM at S = 25, and so it is here, from trailing levels, by the network of the four fixes.

Predicted: what x0_hat at T is beyond [-1, 1], by the means of the data alone: mean_all + w
(mean_label - mean_all), times the rescale's factor.

Contrast, the standard deviation within an image over the data's, rises with phi here: without
rescale images are nearly all black or white, and have none. Plain at phi = 1 is that a label's mean
no longer is too dark or too bright.

  python -m experiments.figure6_trained --workdir=/tmp/zsnr_jax/trained

A minute on 2 CPU cores, and four more for each network that is not yet trained.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import trained
from experiments.figure6_guidance_rescale import (
    LABELS_BELOW,
    PHIS,
    SCALE,
    WORDS,
    at_T,
    judge,
)
from experiments.pictures import pack, show
from experiments.record import Experiment, row, run
from experiments.recovery import even_labels, even_starts
from zsnr_jax import plotting, timesteps
from zsnr_jax.data.brightness import LABELS

GUIDES = {"no guidance": None} | {f"phi = {phi:g}": (SCALE, phi) for phi in PHIS}


def measure(smoke: bool, workdir: Path) -> dict[str, Any]:
    """Exposure, contrast and mean brightness for each phi, and pictures."""
    num_each, num_steps = (2, 3) if smoke else (16, 25)
    network = trained.load("fixed", workdir, smoke=smoke)
    shape = network.images.shape[1:]
    labels = even_labels(num_each)
    x_T = even_starts(len(LABELS), num_each, shape)
    levels = timesteps.make_timesteps("trailing", 1000, num_steps)
    found, rows, pictures = {}, [], []
    for way, guide in GUIDES.items():
        samples, seen = network.trajectory(labels, x_T, levels, guide=guide)
        samples = samples.reshape(len(LABELS), num_each, *shape)
        by_level = np.moveaxis(seen.reshape(len(LABELS), num_each, num_steps, *shape), 2, 1)
        here = found[way] = judge(samples, by_level, network.images, network.labels)
        predicted = at_T(network.images, network.labels, *(guide or (1.0, 0.0)))
        rows += make_rows(way, here, predicted)
        shown = samples[:, [num_each // 4, 3 * num_each // 4]]
        pictures.append(pack(shown.reshape(-1, *shape)))
    return {"rows": rows, "found": found, "pictures": pictures}


def make_rows(way: str, here: dict[str, Any], predicted: list[float]) -> list[dict[str, Any]]:
    """What is beyond [-1, 1] at T, on the way and in samples; contrast and mean."""
    return [
        row(f"{way}: x0_hat at T beyond [-1, 1], share and how far", None, predicted, here["at_T"]),
        row(f"{way}: x0_hat at all levels, the same", ours=here["on_the_way"]),
        row(f"{way}: samples, the same", ours=here["samples"]),
        row(f"{way}: contrast over the data's, mean recovered", WORDS.get(way), None,
            [here["contrast"], here["mean_recovered"]]),
    ]  # fmt: skip


def draw(results: dict[str, Any]) -> Figure:
    """Samples, a row for each phi; beside them exposure, contrast and mean over phi."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    samples = halves[0].subplots()
    show(samples, list(GUIDES), results["pictures"], LABELS_BELOW, scale=4)
    samples.tick_params(axis="y", labelsize=9)
    samples.set_title("samples of the trained network; each column from one noise", fontsize=10)
    above, below = halves[1].subplots(2, 1, sharex=True)
    theme, found = plotting.LIGHT, results["found"]
    curves = (
        (above, "at_T", "x0_hat at T", theme.flawed, "v"),
        (above, "samples", "samples", plotting.PURPLE, "s"),
        (below, "mean_recovered", "mean recovered", theme.samples, "o"),
        (below, "contrast", "contrast", theme.ideal, "^"),
    )
    for axes, number, label, colour, marker in curves:
        values = [np.ravel(found[way][number])[0] for way in GUIDES]
        axes.plot(PHIS, values[1:], color=colour, marker=marker, label=label)
        axes.plot([-0.3], values[:1], marker, color=colour)
        axes.set_ylim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    above.set_title("share of values beyond [-1, 1]", fontsize=10)
    below.set_title("over the data's: 1 is right", fontsize=10)
    below.axhline(1, color=theme.data, lw=4, zorder=0)
    below.set_xticks([-0.3, *PHIS], ["none", *(f"{phi:g}" for phi in PHIS)])
    below.set_xlabel(f"rescale phi of guidance at w = {SCALE}; none: w = 1", fontsize=10)
    figure.suptitle("How much over-exposure of a trained network does rescale take back?", x=0.01,
                    ha="left", weight="bold")  # fmt: skip
    return figure


def check(results: dict[str, Any]) -> None:
    """Over-exposed without rescale, less with more of it, and plain at the end."""
    over_phi = {
        number: [np.ravel(results["found"][f"phi = {phi:g}"][number])[0] for phi in PHIS]
        for number in ("at_T", "samples", "mean_recovered")
    }
    assert np.all(np.diff(over_phi["at_T"]) < 1e-6)  # all are beyond for more than one phi
    assert np.all(np.diff(over_phi["mean_recovered"]) < 0)
    none = results["found"]["no guidance"]["samples"][0]
    assert over_phi["samples"][0] > 1.5 * over_phi["samples"][3] > 1.5 * none


def summary(results: dict[str, Any]) -> str:
    """What is over-exposed in samples, and how far the labels' means are driven, by phi."""
    over, mean = (
        [np.ravel(results["found"][f"phi = {phi:g}"][name])[0] for phi in (0, 0.75, 1)]
        for name in ("samples", "mean_recovered")
    )
    return (
        "values of samples beyond [-1, 1]: {:.0f} % at phi = 0, {:.0f} % at 0.75, {:.0f} % at 1; "
        "the labels' means {:.1f}, {:.1f}, {:.1f} times the data's"
    ).format(*(100 * share for share in over), *mean)


EXPERIMENT = Experiment(
    "figure6_trained",
    "Section 5.3, Figure 6",
    "Guidance at w = 7.5 over-exposes a trained network's samples, and rescale takes that back.",
    measure,
    draw,
    check,
    "phi = 0 over-exposes, 0.5 to 0.75 best",
    summary,
    trained=True,
)


if __name__ == "__main__":
    run(EXPERIMENT)
