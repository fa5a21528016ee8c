"""Figure 5 by trained networks: what they take pure noise for.

Claim (section 5.2, Figure 5): trained at zero terminal SNR, the network's estimate at T is almost
exactly the same for every noise, and varies from the second step on. Here the networks of the main
job, of the four fixes and of the flawed recipe, see the same noises, and follow them by DDIM in ten
trailing steps, given each label.

Predicted: the ideal denoiser of the label's images, from the same noises. Its estimate at T is
their mean, the same bits for every noise. A network is not told that its input says nothing at T.
It learns it, and comes near.

  python -m experiments.figure5_trained --workdir=/tmp/zsnr_jax/trained

Half a minute on 2 CPU cores, and four more for each network that is not yet trained.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import trained
from experiments.figure5_terminal_step import LEVELS, estimates, statistics
from experiments.record import Experiment, row, run
from experiments.recovery import even_starts
from zsnr_jax import plotting, samplers
from zsnr_jax.data.brightness import LABELS

NETWORKS = {"mended": "fixed", "original": "flawed"}
NUMBERS = ("variance", "brightness_std")  # at each level


def measure(smoke: bool, workdir: Path) -> dict[str, Any]:
    """Variance over noises of x0_hat, level by level, and its distance from the mean at T."""
    num_each, networks = (2, {"mended": "fixed"}) if smoke else (64, NETWORKS)
    found = {}
    for schedule, name in networks.items():
        network = trained.load(name, workdir, smoke=smoke)
        path = samplers.coefficients(samplers.ddim(), network.schedule, LEVELS)
        x_T = even_starts(1, num_each, network.images.shape[1:])
        sides = {"predicted": [], "ours": []}
        for label in range(len(LABELS)):
            members = network.images[network.labels == label]
            x0_hat = network.trajectory(np.full(num_each, label), x_T, LEVELS)[1]
            sides["ours"].append(judge(np.moveaxis(x0_hat, 1, 0), members))
            x0_hat = np.asarray(estimates(members, network.schedule, path, x_T))
            sides["predicted"].append(judge(x0_hat, members))
        found[schedule] = {
            side: {
                name: np.mean([here[name] for here in labels], axis=0).tolist()
                for name in labels[0]
            }
            for side, labels in sides.items()
        }
    return {"rows": make_rows(found), "found": found, "levels": LEVELS.tolist()}


def judge(x0_hat: np.ndarray, members: np.ndarray) -> dict[str, Any]:
    """The numbers of one label: estimates [10, n, H, W, C], and the label's images."""
    off = np.mean(x0_hat[0], axis=0, dtype=np.float64) - members.mean(axis=0, dtype=np.float64)
    here = statistics(x0_hat, members)
    return {name: here[name] for name in NUMBERS} | {
        "off_at_T": float(np.sqrt(np.mean(off**2))),
        "brightness_off_at_T": float(abs(np.mean(off))),
    }


def make_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """At T, then level by level; all in the mean over labels."""
    rows = []
    for schedule, sides in found.items():
        pair = lambda name: [sides[side][name] for side in ("predicted", "ours")]  # noqa: B023, E731
        paper = "the mean" if schedule == "mended" else None
        what = f"{schedule}: mean estimate at T less the mean of the label's images, rms"
        rows.append(row(what, paper, *pair("off_at_T")))
        what = f"{schedule}: the same, of brightness"
        rows.append(row(what, paper, *pair("brightness_off_at_T")))
        for name, words in zip(NUMBERS, ("variance", "std of brightness")):
            for i, level in enumerate(LEVELS.tolist()):
                values = (side[i] for side in pair(name))
                rows.append(row(f"{schedule}: {words} over noises at {level}", None, *values))
    return rows


def draw(results: dict[str, Any]) -> Figure:
    """Variance over noises by level: lines the ideal denoiser, marks the networks."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for schedule, colour in zip(NETWORKS, (plotting.LIGHT.samples, plotting.LIGHT.flawed)):
        if schedule in results["found"]:
            sides = results["found"][schedule]
            axes.plot(sides["predicted"]["variance"], color=colour, lw=1.3)
            first = sides["ours"]["variance"][0]
            label = f"{schedule} schedule: {first:.2g} at T"
            axes.plot(sides["ours"]["variance"], "o", color=colour, label=label)
    axes.set_xticks(range(len(LEVELS)), [str(level) for level in results["levels"]])
    axes.set(xlabel="level t, from T = 1000 to the last of ten steps",
             ylabel="variance over noises,\nshare of the label's")  # fmt: skip
    axes.set_title("Does a trained network's estimate at T depend on the noise?", loc="left",
                   weight="bold")  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.supxlabel("Lines: the ideal denoiser of each label's images. Marks: trained networks, "
                     "given each label.", fontsize=9)  # fmt: skip
    return figure


def check(results: dict[str, Any]) -> None:
    """At T nearly the same for every noise on the mended schedule, and not on the original."""
    mended, original = (results["found"][name]["ours"] for name in NETWORKS)
    assert mended["variance"][0] < 0.05 < 0.1 < original["variance"][0]
    assert mended["variance"][1] > 5 * mended["variance"][0]


def summary(results: dict[str, Any]) -> str:
    """What happens at T on both schedules, in the mean over labels."""
    mended, original = (results["found"][name]["ours"]["variance"][0] for name in NETWORKS)
    off = results["found"]["mended"]["ours"]["off_at_T"]
    return (
        f"variance over noises at T {mended:.1e} of the label's on the mended schedule, "
        f"{original:.2f} on the original; {off:.3f} (rms) from the label's mean image"
    )


EXPERIMENT = Experiment(
    "figure5_trained",
    "Section 5.2, Figure 5",
    "Trained at zero terminal SNR, a network's estimate at T hardly depends on the noise.",
    measure,
    draw,
    check,
    "almost exactly the same for every noise",
    summary,
    trained=True,
)


if __name__ == "__main__":
    run(EXPERIMENT)
