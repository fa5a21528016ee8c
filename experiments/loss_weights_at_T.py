"""What a loss weight of 0 at T does to a trained network.

Claim (section 3.2): zero terminal SNR must be trained with a loss that does not vanish at T: the
paper takes v, and lambda_t = 1. Weights that are made for eps vanish there, min(SNR, gamma) among
them: the level that the mended schedule adds, and that sampling starts from, is never learnt. Here
the main job is trained with the paper's weight, and with min(SNR, 5), which also counts the noisy
levels near T for little, and caps the clean ones; all else is the same. What the network gives at T
is then what it has learnt beside it.

Told are: the estimate at T, whose best is the mean of a label's images; brightness of samples at
S = 5 and 50, from starts whose means are even.

Predicted: for the estimate at T, 0 on all counts; for samples, the ideal denoiser's, whatever the
weight, since no weight changes what is best at a level that it does not silence.

  python -m experiments.loss_weights_at_T --workdir=/tmp/zsnr_jax/trained

Two minutes on 2 CPU cores, and four more for each network that is not yet trained.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import trained
from experiments.figure6_guidance_rescale import LABELS_BELOW
from experiments.pictures import pack, show
from experiments.record import Experiment, row, run
from experiments.recovery import even_labels, even_starts, recovery_and_spread
from zsnr_jax import plotting, timesteps
from zsnr_jax.data.brightness import LABELS

T, STEPS = 1000, (5, 50)
NETWORKS = {"SNR + 1": "fixed", "min(SNR, 5)": "zero_weight_at_T"}


def measure(smoke: bool, workdir: Path) -> dict[str, Any]:
    """The estimate at T and the samples of both networks."""
    num_each, steps = (2, (5,)) if smoke else (32, STEPS)
    found, rows, pictures = {}, [], []
    for weight, name in list(NETWORKS.items())[: 1 if smoke else None]:
        network = trained.load(name, workdir, smoke=smoke)
        labels = even_labels(num_each)
        x_T = even_starts(len(LABELS), num_each, network.images.shape[1:])
        here = found[weight] = at_T(network, labels, x_T)
        rows += [row(f"{weight}: {what}", None, 0.0, value) for what, value in here.items()]
        for S in steps:
            levels = timesteps.make_timesteps("trailing", T, S)
            predicted, ours = (
                recovery_and_spread(samples, labels, network.images, network.labels)[0]
                for samples in (
                    network.ideal(labels, x_T, levels),
                    network.sample(labels, x_T, levels),
                )
            )
            here[f"S = {S}"] = [predicted, ours]
            rows.append(row(f"{weight}, S = {S}: mean, spread", None, predicted, ours))
        pictures.append(pack(network.estimate(labels, x_T, T)[:: num_each // 2]))
    return {"rows": rows, "found": found, "pictures": pictures}


def at_T(network: trained.Network, labels: np.ndarray, x_T: np.ndarray) -> dict[str, Any]:
    """The estimate at T: its distance from the label's mean image, its own spread over noises."""
    x0_hat = network.estimate(labels, x_T, T).astype(np.float64)
    off, apart, brightness_off = [], [], []
    for label in range(len(LABELS)):
        mean = network.images[network.labels == label].mean(axis=0, dtype=np.float64)
        own = x0_hat[labels == label]
        off.append(np.mean((own - mean) ** 2))
        apart.append(np.mean(np.var(own, axis=0)))
        brightness_off.append(abs(np.mean(own - mean)))
    return {
        "x0_hat at T less its best, rms": float(np.sqrt(np.mean(off))),
        "x0_hat at T, deviation over noises": float(np.sqrt(np.mean(apart))),
        "brightness of x0_hat at T less its best": float(np.mean(brightness_off)),
    }


def draw(results: dict[str, Any]) -> Figure:
    """Estimates at T, a row for each weight; beside them mean and spread of samples."""
    theme, found = plotting.LIGHT, results["found"]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    pictures, parts = figure.subplots(1, 2, width_ratios=(1.5, 1))
    show(pictures, [f"w = {w}" for w in found], results["pictures"], LABELS_BELOW)
    pictures.set_title("what the network takes pure noise for, two noises a label", fontsize=10)
    places = [f"S = {S}" for S in STEPS if f"S = {S}" in found["SNR + 1"]]
    for k, (weight, colour) in enumerate(zip(found, (theme.samples, theme.flawed))):
        for part, hatch in ((0, ""), (1, "///")):
            values = [found[weight][place][1][part] for place in places]
            ideal = [found[weight][place][0][part] for place in places]
            x = np.arange(len(places)) + 0.22 * (2 * part + k - 1.5)
            what = f"{('mean', 'spread')[part]}, w = {weight}"
            parts.bar(x, values, 0.2, color=colour, hatch=hatch, edgecolor="white", label=what)
            parts.plot(np.stack([x - 0.1, x + 0.1]), np.stack([ideal, ideal]), "k-", lw=2)
    parts.axhline(1, color=theme.data, lw=4, zorder=0)
    parts.set_xticks(range(len(places)), places)
    parts.set_title("part of the data's that comes through; - ideal", fontsize=10)
    parts.spines[["top", "right"]].set_visible(False)
    handles, labels = parts.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower right", ncols=4)
    figure.suptitle("What does a weight of 0 at T do to a network?", x=0.01, ha="left",
                    weight="bold")  # fmt: skip
    return figure


def check(results: dict[str, Any]) -> None:
    """A level of no weight is not learnt."""
    paper, silent = results["found"].values()
    worse = [silent[what] / paper[what] for what in paper if "x0_hat at T" in what]
    assert min(worse) > 2
    assert silent["S = 50"][1][0] < 0.3 < 0.7 < paper["S = 50"][1][0]


def summary(results: dict[str, Any]) -> str:
    """The estimate at T, and the labels' means in samples, under both weights."""
    paper, silent = results["found"].values()
    off, (_, kept), (_, lost) = "x0_hat at T less its best, rms", paper["S = 50"], silent["S = 50"]
    return (
        f"the estimate at T is off by {silent[off]:.2f} (rms) with min(SNR, 5), {paper[off]:.2f} "
        f"with SNR + 1; of the labels' means {lost[0]:.2f} and {kept[0]:.2f} come through at S = 50"
    )


EXPERIMENT = Experiment(
    "loss_weights_at_T",
    "Section 3.2",
    "With a loss weight that is 0 at T the estimate there is not learnt, and samples lose the "
    "labels' means.",
    measure,
    draw,
    check,
    "argued",
    summary,
    trained=True,
)


if __name__ == "__main__":
    run(EXPERIMENT)
