"""Figure 4 by trained networks: few steps, from levels of each spacing.

Claim (section 5.1, Figure 4): on the mended schedule at S = 5, trailing is noticeably better than
linspace; at S = 25 the two are hard to tell apart. Here the networks of the main job, three seeds,
are sampled by DDIM from starts whose means are even (`recovery.even_starts`): those of the four
fixes from levels of each spacing, and those of the flawed recipe from leading ones. One network is
trained three times as long, to tell what of their error is too little training.

Predicted: the ideal denoiser from the same starts. What a network adds to that is its own error.
After a thousand steps the seeds lie 0.1 apart in the mean, a tenth below it, and keep up to 0.15
more of the spread at 5 steps. From 10 steps on the network that was trained three times as long is
within 0.07 of the ideal denoiser in both.

  python -m experiments.figure4_trained --workdir=/tmp/zsnr_jax/trained

Six minutes on 2 CPU cores, and four more for each network that is not yet trained.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import trained
from experiments.record import Experiment, measured, row, run
from experiments.recovery import even_labels, even_starts, recovery_and_spread
from zsnr_jax import plotting, timesteps
from zsnr_jax.data.brightness import LABELS

SEEDS, STEPS = (0, 1, 2), (5, 10, 25, 50)
TOLERANCE = 0.07
WAYS = {  # network, its seeds, spacing
    "flawed, leading": ("flawed", SEEDS, "leading"),
    "leading": ("fixed", SEEDS, "leading"),
    "linspace": ("fixed", SEEDS, "linspace"),
    "trailing": ("fixed", SEEDS, "trailing"),
    "trailing, 3 times the training": ("fixed_longer", SEEDS[:1], "trailing"),
}


def measure(smoke: bool, workdir: Path) -> dict[str, Any]:
    """The parts of the labels' means and of the spread that come through, S by S."""
    num_each, steps = (2, (5,)) if smoke else (32, STEPS)
    curves = {}
    for way in ["trailing"] if smoke else WAYS:
        name, seeds, spacing = WAYS[way]
        networks = [
            trained.load(name, workdir, seed, smoke) for seed in seeds[: 1 if smoke else None]
        ]
        labels = even_labels(num_each)
        x_T = even_starts(len(LABELS), num_each, networks[0].images.shape[1:])

        def parts(samples: np.ndarray, network: trained.Network = networks[0]) -> list[float]:
            data = (network.images, network.labels)
            return recovery_and_spread(samples, labels, *data)[0]  # noqa: B023

        curve = curves[way] = {"S": list(steps), "predicted": [], "seeds": []}
        for S in steps:
            levels = timesteps.make_timesteps(spacing, 1000, S)
            curve["predicted"].append(parts(networks[0].ideal(labels, x_T, levels)))
            drawn = [network.sample(labels, x_T, levels) for network in networks]
            curve["seeds"].append([parts(samples) for samples in drawn])
        curve["ours"] = np.mean(curve["seeds"], axis=1).tolist()
    return {"rows": make_rows(curves), "curves": curves}


def make_rows(curves: dict[str, Any]) -> list[dict[str, Any]]:
    """Both parts in the mean over seeds, and how far the seeds lie apart."""
    rows = []
    for way, curve in curves.items():
        for S, predicted, ours, seeds in zip(
            *(curve[k] for k in ("S", "predicted", "ours", "seeds"))
        ):
            rows.append(row(f"{way}, S = {S}: mean, spread", None, predicted, ours))
            deviation = np.std(seeds, axis=0).tolist()
            rows.append(row(f"{way}, S = {S}: deviation of the seeds", ours=deviation))
    return rows


LOOKS = {
    "flawed, leading": (plotting.LIGHT.flawed, "v"),
    "leading": (plotting.PURPLE, "s"),
    "linspace": (plotting.SKY, "D"),
    "trailing": (plotting.LIGHT.samples, "o"),
    "trailing, 3 times the training": (plotting.LIGHT.ideal, "^"),
}


def draw(results: dict[str, Any]) -> Figure:
    """Mean and spread over the number of steps: lines the ideal denoiser, marks the networks."""
    figure = Figure(figsize=(10, 4.3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for k, (axes, title) in enumerate(zip(panels, ("mean of a label", "spread about it"))):
        axes.axhline(1, color=plotting.LIGHT.data, lw=4, zorder=0)
        for way, curve in results["curves"].items():
            colour, marker = LOOKS[way]
            seeds = np.array(curve["seeds"])[..., k]
            axes.plot(curve["S"], [part[k] for part in curve["predicted"]], color=colour, lw=1.3)
            axes.vlines(curve["S"], seeds.min(axis=1), seeds.max(axis=1), color=colour, lw=1)
            look = {"mfc": "none", "ms": 10} if way == "linspace" else {"ms": 6}  # around trailing
            axes.plot(curve["S"], seeds.mean(axis=1), marker, color=colour, label=way, **look)
        axes.set(xscale="log", xlabel="number of DDIM steps S")
        axes.set_title(title, fontsize=10)
        axes.set_xticks(list(STEPS), [str(S) for S in STEPS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("part of the data's that comes through")
    panels[1].legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle("Do trained networks keep what few steps allow?", x=0.01, ha="left",
                    weight="bold")  # fmt: skip
    figure.supxlabel("Lines: the ideal denoiser, from the same starts. Marks: trained networks, "
                     "mean and range of three seeds\n(3 times the training: one). The four fixes "
                     "but for the spacing, unless flawed.", fontsize=9)  # fmt: skip
    return figure


def check(results: dict[str, Any]) -> None:
    """The order of the spacings."""
    curves = results["curves"]
    mean, spread = (
        {(way, S): part[k] for way, c in curves.items() for S, part in zip(c["S"], c["ours"])}
        for k in (0, 1)
    )
    assert spread["trailing", 5] > 1.1 * spread["linspace", 5]
    assert abs(spread["trailing", 25] - spread["linspace", 25]) < 0.05
    for S in STEPS:
        assert mean["flawed, leading", S] < mean["leading", S] < mean["trailing", S]
    longer = curves["trailing, 3 times the training"]
    np.testing.assert_allclose(longer["ours"][1:], longer["predicted"][1:], atol=TOLERANCE)


def summary(results: dict[str, Any]) -> str:
    """The same numbers as of the ideal denoiser."""
    found = measured(results)
    part = lambda way, S, k: found[f"{way}, S = {S}: mean, spread"][k]  # noqa: E731
    at_5, at_25 = (part("trailing", S, 1) / part("linspace", S, 1) for S in (5, 25))
    return (
        f"spread {at_5:.2f} times linspace's at S = 5, {at_25:.2f} times at 25; leading recovers "
        f"{part('leading', 25, 0):.2f} of the mean at 25, trailing {part('trailing', 25, 0):.2f}; "
        "three seeds"
    )


EXPERIMENT = Experiment(
    "figure4_trained",
    "Section 5.1, Figure 4",
    "Trained networks, too, do better from trailing levels at 5 steps, and as well at 25.",
    measure,
    draw,
    check,
    "trailing better than linspace at S = 5, the same at 25",
    summary,
    trained=True,
)


if __name__ == "__main__":
    run(EXPERIMENT)
