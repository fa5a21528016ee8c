"""Every combination of the fixes that is defined: what is each of them worth?

Claim (section 3): the schedule must end at zero SNR, which needs v-prediction; sampling must start
at T; and guidance must then be rescaled. The paper shows what each is for in pictures, and has no
number for any of them. Here the main job is trained on each defined pair of schedule {original,
zero terminal SNR} and prediction {eps, v} (eps says nothing of the data at zero SNR), and sampled
from leading, linspace and trailing levels, S = 50, with rescale phi 0 and 0.7 of guidance at 7.5:
18 runs of `python -m zsnr_jax.sweep`, of which three train.

Brightness is told without guidance, where phi does nothing; over-exposure and contrast of guided
samples. Predicted: the ideal denoiser, from the same starts. For it eps and v are the same.

On the original schedule, where guidance acts less on the means at T, rescale takes nothing away. One
seed: a share below 0.05 is within what seeds differ by (brightness_recipes has three of each end).
"Leading" has no offset here, and ends at level 0; the flawed recipe of the other experiments has
Stable Diffusion's own, and its numbers differ a little.

A fix's share is its gain in the mean over all orders in which the fixes can be made one after
another, v always before zero SNR (the Shapley value under that constraint; linspace is no part
of it). Shares add up to all that is gained.

  python -m experiments.ablation_fixes --workdir=/tmp/zsnr_jax/trained

A quarter of an hour on 2 CPU cores, and four more for each network that is not yet trained. The
sweep alone, for its table and pages of all runs:

  python -m zsnr_jax.sweep --config=configs/brightness.py:adamw --sweep=experiments/ablation_fixes.py --workdir=/tmp/zsnr_jax/trained
"""  # noqa: E501

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.record import Experiment, row, run
from zsnr_jax import plotting, report, sweep

SCALE, NUM_SAMPLES = 7.5, 256
TRAININGS = {  # each with the loss that is plain for its prediction
    "original, eps": {
        "schedule.zero_terminal_snr": False, "prediction": "eps", "loss.weight": "snr"
    },
    "original, v": {"schedule.zero_terminal_snr": False, "prediction": "v"},
    "zero, v": {"schedule.zero_terminal_snr": True, "prediction": "v"},
}  # fmt: skip
SPACINGS = ("leading", "linspace", "trailing")
RESCALES = (0.0, 0.7)
FIXES = ("v", "zero terminal SNR", "trailing", "rescale")
BRIGHTNESS = ("std_ratio", "mean_recovery", "wasserstein1")
GUIDED = ("overexposed", "contrast")


def get_sweep() -> sweep.Sweep:
    """The 18 runs, in the order of `cells`."""
    return sweep.cross(
        list(TRAININGS.values()),
        sweep.grid("sampler.spacing", SPACINGS),
        sweep.grid("sampler.guidance_rescale", RESCALES),
        [{"sampler.guidance_scale": SCALE, "evaluation.num_samples": NUM_SAMPLES}],
    )


def cells() -> list[tuple[str, str, float]]:
    """Training, spacing and rescale of each run."""
    return list(itertools.product(TRAININGS, SPACINGS, RESCALES))


def called(training: str, spacing: str, rescale: float) -> str:
    """What a cell is called in the results."""
    return f"{training}, {spacing}, phi = {rescale:g}"


def measure(smoke: bool, workdir: Path) -> dict[str, Any]:
    """Run the sweep, and read what its runs found."""
    num_runs = 2 if smoke else len(cells())
    runs = sweep.plan(
        "configs/brightness.py:adamw" + ",smoke" * smoke, get_sweep()[:num_runs], workdir
    )
    sweep.require_all(runs, sweep.run_all(runs))
    print(sweep.summarize(runs, workdir))
    found = {called(*cell): read(run.workdir) for cell, run in zip(cells(), runs)}
    results = {"found": found, "shares": {} if smoke else all_shares(found)}
    return {"rows": make_rows(results), **results}


def read(workdir: Path) -> dict[str, dict[str, float]]:
    """A run's numbers: of the trained network, and of the ideal denoiser."""
    results = report.load_run(workdir).results
    value = lambda name: results["metrics"][name]["value"]  # noqa: E731
    trained = {name: value(f"brightness/{name}") for name in BRIGHTNESS}
    return {
        "trained": trained | {name: value(f"guided/{name}") for name in GUIDED},
        "ideal": {name: results["ideal"]["this"][name] for name in BRIGHTNESS},
    }


def all_shares(found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """What each fix is worth in each number, of the trained networks and of the ideal denoiser."""
    return {
        kind: {
            name: shares({made: found[called(*cell_of(made))][kind][name] for made in subsets()})
            for name in names
        }
        for kind, names in (("trained", (*BRIGHTNESS, "overexposed")), ("ideal", BRIGHTNESS))
    }


def subsets() -> list[frozenset[str]]:
    """The sets of fixes that are defined: zero terminal SNR with v only."""
    sizes = range(len(FIXES) + 1)
    every = (frozenset(some) for k in sizes for some in itertools.combinations(FIXES, k))
    return [made for made in every if "zero terminal SNR" not in made or "v" in made]


def cell_of(made: frozenset[str]) -> tuple[str, str, float]:
    """The run in which just these fixes are made."""
    training = "zero, v" if "zero terminal SNR" in made else "original, v"
    return (
        training if "v" in made else "original, eps",
        "trailing" if "trailing" in made else "leading",
        RESCALES["rescale" in made],
    )


def shares(values: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Each fix's gain in the mean over the orders that pass through defined sets only."""
    orders = [
        order for order in itertools.permutations(FIXES)
        if order.index("v") < order.index("zero terminal SNR")
    ]  # fmt: skip
    gains: dict[str, float] = dict.fromkeys(FIXES, 0.0)
    for order in orders:
        for i, fix in enumerate(order):
            before, after = frozenset(order[:i]), frozenset(order[: i + 1])
            gains[fix] += (values[after] - values[before]) / len(orders)
    return gains


def make_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Brightness by training and spacing; guided samples with their phi; shares."""
    rows = []
    for name, numbers in results["found"].items():
        trained, ideal = numbers["trained"], numbers["ideal"]
        if name.endswith("phi = 0"):  # which changes guided samples only
            what = name.removesuffix(", phi = 0") + ": std ratio, mean recovery, W1"
            values = ([side[key] for key in BRIGHTNESS] for side in (ideal, trained))
            rows.append(row(what, None, *values))
        what = f"{name}, guided at {SCALE}: share beyond [-1, 1], contrast"
        rows.append(row(what, None, None, [trained[key] for key in GUIDED]))
    for name, gains in results["shares"].get("trained", {}).items():
        ideal = results["shares"]["ideal"].get(name)
        for fix in FIXES:
            predicted = ideal[fix] if ideal else None
            rows.append(row(f"{name}: share of {fix}", None, predicted, gains[fix]))
    return rows


def draw(results: dict[str, Any]) -> Figure:
    """Spread and mean of every training and spacing; guided exposure; each fix's share."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    spread, mean, exposure, share = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.1))
    _draw_brightness(spread, results["found"], "std_ratio", "spread of brightness, over the data's")
    _draw_brightness(mean, results["found"], "mean_recovery", "part of the labels' mean")
    _draw_exposure(exposure, results["found"])
    _draw_shares(share, results["shares"])
    for axes in (spread, mean, exposure, share):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("What is each of the four fixes worth?", x=0.01, ha="left", weight="bold")
    handles, labels = spread.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower left", ncols=4)
    return figure


COLOURS = dict(zip(TRAININGS, (plotting.LIGHT.flawed, plotting.PURPLE, plotting.LIGHT.samples)))


def _draw_brightness(axes: Axes, found: Mapping[str, Any], name: str, title: str) -> None:
    axes.axhline(1, color=plotting.LIGHT.data, lw=4, zorder=0)
    for k, (training, colour) in enumerate(COLOURS.items()):
        for i, spacing in enumerate(SPACINGS):
            numbers = found.get(called(training, spacing, 0.0))
            if numbers is None:
                continue
            place, label = i + 0.26 * (k - 1), "" if i else training
            axes.bar(place, numbers["trained"][name], 0.24, color=colour, label=label)
            label = "" if i or k < 2 else "the ideal denoiser"
            ends = [place - 0.12, place + 0.12]
            axes.plot(ends, [numbers["ideal"][name]] * 2, "k-", lw=2, label=label)
    axes.set_xticks(range(len(SPACINGS)), SPACINGS)
    axes.axhline(0, color=plotting.LIGHT.faint, lw=0.8)
    axes.set_title(title, fontsize=10)


def _draw_exposure(axes: Axes, found: Mapping[str, Any]) -> None:
    for k, (training, colour) in enumerate(COLOURS.items()):
        values = [
            100 * found[called(training, "trailing", rescale)]["trained"]["overexposed"]
            for rescale in RESCALES
            if called(training, "trailing", rescale) in found
        ]
        axes.bar(np.arange(len(values)) + 0.26 * (k - 1), values, 0.24, color=colour)
    axes.set_xticks(range(2), [f"phi = {rescale:g}" for rescale in RESCALES])
    axes.set_title(f"% of values beyond [-1, 1],\nguided at {SCALE}, trailing", fontsize=10)


def _draw_shares(axes: Axes, shares: Mapping[str, Any]) -> None:
    if not shares:
        return
    gains = [shares["trained"]["std_ratio"][fix] for fix in FIXES]
    ideal = [shares["ideal"]["std_ratio"][fix] for fix in FIXES]
    places = np.arange(len(FIXES))[::-1]
    axes.barh(places, gains, 0.6, color=plotting.LIGHT.ideal)
    axes.plot(np.stack([ideal, ideal]), np.stack([places - 0.3, places + 0.3]), "k-", lw=2)
    axes.set_yticks(places, [fix.replace(" SNR", "\nSNR") for fix in FIXES])
    axes.set_title("share in the spread's gain,\nover all orders of the fixes", fontsize=10)


def check(results: dict[str, Any]) -> None:
    """Zero terminal SNR matters most for brightness, the rescale for exposure, and all together."""
    found, shares = results["found"], results["shares"]["trained"]
    assert len(found) == len(cells())
    flawed, fixed = (found[called(*cell_of(frozenset(made)))] for made in ((), FIXES))
    gain = fixed["trained"]["std_ratio"] - flawed["trained"]["std_ratio"]
    assert gain > 0.25 and np.isclose(sum(shares["std_ratio"].values()), gain)
    assert max(shares["std_ratio"], key=shares["std_ratio"].__getitem__) == "zero terminal SNR"
    assert shares["std_ratio"]["trailing"] > 0 and shares["mean_recovery"]["trailing"] > 0
    assert shares["mean_recovery"]["zero terminal SNR"] > 0.3
    without, rescaled = overexposed(results)
    assert rescaled < 0.8 * without


def overexposed(results: Mapping[str, Any]) -> list[float]:
    """The share of values beyond [-1, 1] with the other fixes, without and with the rescale."""
    cells = (called("zero, v", "trailing", rescale) for rescale in RESCALES)
    return [results["found"][cell]["trained"]["overexposed"] for cell in cells]


def summary(results: dict[str, Any]) -> str:
    """What each fix is worth: in the spread, and the rescale in exposure."""
    gains = results["shares"]["trained"]["std_ratio"]
    worth = ", ".join(f"{fix} {gains[fix]:+.2f}" for fix in FIXES)
    without, fixed = (100 * share for share in overexposed(results))
    return (
        f"shares in the std ratio: {worth}; values beyond [-1, 1] at w = {SCALE}: {without:.0f} % "
        f"without the rescale, {fixed:.0f} % with it"
    )


EXPERIMENT = Experiment(
    "ablation_fixes",
    "Section 3",
    "Zero terminal SNR gives the spread and the means of brightness back, starting at T a little "
    "more, and the rescale takes back the over-exposure that comes with them.",
    measure,
    draw,
    check,
    "pictures",
    summary,
    trained=True,
)


if __name__ == "__main__":
    run(EXPERIMENT)
