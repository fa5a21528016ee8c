"""Figure 4: which levels to visit with few steps, and what few steps cost all the same.

Claim (section 5.1, Figure 4): on the mended schedule at S = 5, trailing is noticeably better than
linspace; at S = 25 the two are hard to tell apart. The paper shows pictures. Here the ideal
denoiser of `brightness`, given the label, is sampled, and two numbers are told apart: the part of
the labels' mean brightness that comes through, and the spread about it over the data's. Both are 1
when right.

Predicted: brightness given the label as one Gaussian mode, of the data's own variance N tau^2. DDIM
is linear on it, and `recovery.ddim_on_one_mode` follows it in NumPy; the second-order solvers are
the library's, run on that mode. Flat pictures of Gaussian brightness are such a mode, and agree
with it. Those of `brightness` keep more of the spread, by a tenth where there are few steps: their
brightness is not Gaussian, and what a picture shows tells something of it, since content points
towards mid-grey.

A caveat: a first-order solver at few steps shrinks the spread on the mended schedule too. Second
order on trailing levels repairs little of that at S = 5, since the first step is long, and DDIM's
in dpmpp_2m; levels even in the log SNR, whose first step is short, do from S = 10 on.

  python -m experiments.figure4_sample_steps

A minute on 2 CPU cores.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.record import Experiment, measured, row, run
from experiments.recovery import (
    ddim_on_one_mode,
    even_labels,
    even_starts,
    flat_pictures,
    recovery_and_spread,
    spread_given_label,
)
from zsnr_jax import data, plotting, samplers, schedules, timesteps
from zsnr_jax.data.brightness import LABELS
from zsnr_jax.evaluation import ideal
from zsnr_jax.schedules import NoiseSchedule

T = 1000
STEPS = (5, 10, 25, 50)
TOLERANCE, CONTROL_TOLERANCE = 0.15, 0.002  # of the prediction: pictures, flat pictures
RECIPES = {  # zero terminal SNR, spacing, solver
    "flawed, leading": (False, "leading", "ddim"),
    "leading": (True, "leading", "ddim"),
    "linspace": (True, "linspace", "ddim"),
    "trailing": (True, "trailing", "ddim"),
    "trailing, heun": (True, "trailing", "heun"),
    "trailing, dpmpp_2m": (True, "trailing", "dpmpp_2m"),
    "uniform_logsnr, dpmpp_2m": (True, "uniform_logsnr", "dpmpp_2m"),
}
SOLVERS = {name: samplers.make_sampler(name) for name in ("ddim", "heun", "dpmpp_2m")}
CONTROLS = [("flawed, leading", 25), ("leading", 25), ("trailing", 5), ("trailing", 25)]


def on_one_mode(
    solver: samplers.Sampler, schedule: NoiseSchedule, levels: np.ndarray, std: float
) -> list[float]:
    """The same by the library's solver."""
    alphas, sigmas = jnp.asarray(schedule.alpha), jnp.asarray(schedule.sigma)

    def denoise(x_t: Any, level: Any) -> Any:
        alpha, sigma = alphas[level], sigmas[level]
        x0_hat = 1 + alpha * std**2 * (x_t - alpha) / (alpha**2 * std**2 + sigma**2)
        return x0_hat, (x_t - alpha * x0_hat) / sigma

    ends = samplers.sample(solver, denoise, jnp.array([[0.0], [1.0]]), schedule, levels)
    return [float(ends[0, 0]), float(ends[1, 0] - ends[0, 0]) / std]


def predict(recipe: str, S: int, std: float) -> list[float]:
    """The parts of mean and spread that a recipe keeps of one mode."""
    mended, spacing, name = RECIPES[recipe]
    schedule = schedules.make_schedule("scaled_linear", T, mended)
    levels = timesteps.make_timesteps(spacing, T, S, schedule)
    if name == "ddim":
        return ddim_on_one_mode(schedule, levels, std)
    return on_one_mode(SOLVERS[name], schedule, levels, std)


def sample(
    recipe: str, S: int, images: np.ndarray, labels: np.ndarray, num_each: int
) -> tuple[list[float], list[float]]:
    """What a recipe keeps of pictures, by their ideal denoiser: as `recovery_and_spread` has it."""
    mended, spacing, name = RECIPES[recipe]
    schedule = schedules.make_schedule("scaled_linear", T, mended)
    levels = timesteps.make_timesteps(spacing, T, S, schedule)
    wanted = even_labels(num_each)
    x_T = even_starts(len(LABELS), num_each, images.shape[1:])
    drawn = ideal.ideal_samples(images, labels, schedule, levels, wanted, x_T, SOLVERS[name])
    return recovery_and_spread(drawn, wanted, images, labels)


def measure(smoke: bool) -> dict[str, Any]:
    """Both parts for every recipe and number of steps, predicted and measured."""
    size, num_each, steps = (16, 4, (5,)) if smoke else (32, 64, STEPS)
    images, labels = data.load_arrays(data.open_source(f"brightness/{size}"), size)
    tau = spread_given_label(images, labels)
    std = tau * float(np.sqrt(np.prod(images.shape[1:])))
    rows, curves, per_label = [], {}, {}
    for recipe in RECIPES:
        curve = curves[recipe] = {"S": list(steps), "predicted": [], "ours": []}
        for S in steps:
            predicted = predict(recipe, S, std)
            ours, per_label[f"{recipe}, S = {S}"] = sample(recipe, S, images, labels, num_each)
            curve["predicted"].append(predicted)
            curve["ours"].append(ours)
            rows.append(row(f"{recipe}, S = {S}: mean, spread", None, predicted, ours))
        if RECIPES[recipe][2] == "ddim":
            whole = recipe == "trailing" and not smoke  # a thousand steps take their time
            ours = sample(recipe, T, images, labels, num_each // 4)[0] if whole else None
            predicted = predict(recipe, T, std)
            rows.append(row(f"{recipe}, S = {T}: mean, spread", None, predicted, ours))
    flat = flat_pictures(images, labels)
    controls = []
    for recipe, S in CONTROLS[: 1 if smoke else None]:
        ours, _ = sample(recipe, S, flat, labels, num_each)
        what = f"flat pictures, {recipe}, S = {S}: mean, spread"
        controls.append(row(what, None, predict(recipe, S, std), ours))
    rows += [*controls, *trailing_over_linspace(curves)]
    return {"tau": tau, "size": size, "rows": rows, "controls": controls, "curves": curves,
            "labels": list(LABELS), "mean_recovered_per_label": per_label}  # fmt: skip


def trailing_over_linspace(curves: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the quotient of the two spreads, beside the paper's words."""
    words = {5: "noticeably better", 25: "hard to tell apart"}
    return [
        row(f"trailing's spread over linspace's, S = {S}", words.get(S), *quotients)
        for i, S in enumerate(curves["trailing"]["S"])
        for quotients in [
            [curves["trailing"][kind][i][1] / curves["linspace"][kind][i][1]
             for kind in ("predicted", "ours")]
        ]
    ]  # fmt: skip


LOOKS = {  # colour and marker; the last three have a panel of their own
    "flawed, leading": (plotting.LIGHT.flawed, "v"),
    "leading": (plotting.PURPLE, "s"),
    "linspace": (plotting.SKY, "D"),
    "trailing": (plotting.LIGHT.samples, "o"),
    "trailing, heun": (plotting.SKY, "s"),
    "trailing, dpmpp_2m": (plotting.PURPLE, "D"),
    "uniform_logsnr, dpmpp_2m": (plotting.LIGHT.ideal, "^"),
}


def draw(results: dict[str, Any]) -> Figure:
    """Mean and spread over the number of steps: lines predicted, marks measured."""
    figure = Figure(figsize=(11, 4.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    names = list(RECIPES)
    for axes, recipes, k in zip(panels, (names[:4], names[:4], names[3:]), (0, 1, 1)):
        axes.axhline(1, color=plotting.LIGHT.data, lw=4, zorder=0)
        for name in recipes:
            color, marker = LOOKS[name]
            curve = results["curves"][name]
            dots = [part[k] for part in curve["ours"]]
            line = [part[k] for part in curve["predicted"]]
            axes.plot(curve["S"], line, color=color, lw=1.3)
            look = {"mfc": "none", "ms": 10} if name == "linspace" else {"ms": 6}  # around trailing
            axes.plot(curve["S"], dots, marker, color=color, label=name, **look)
        axes.set(xscale="log", xlabel="number of steps S", ylim=(-0.03, 1.25))
        axes.set_xticks(curve["S"], curve["S"])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title("mean of a label: DDIM", fontsize=10)
    panels[1].set_title("spread about it: DDIM", fontsize=10)
    panels[2].set_title("spread about it: second order", fontsize=10)
    panels[0].set_ylabel("part of the data's that comes through")
    panels[1].legend(frameon=False, fontsize=8.5, loc="lower right")
    handles, labels = panels[2].get_legend_handles_labels()
    labels[:2] = ["trailing, ddim", "trailing, heun (2 S - 1 calls)"]
    panels[2].legend(handles, labels, frameon=False, fontsize=8.5, loc="lower right")
    figure.suptitle("Which few levels keep the brightness of the data?", x=0.01, ha="left",
                    weight="bold")  # fmt: skip
    figure.supxlabel("Lines: one Gaussian mode, in closed form. Marks: the ideal denoiser of "
                     "brightness/32. Mended schedule unless flawed.", fontsize=9)  # fmt: skip
    return figure


def check(results: dict[str, Any]) -> None:
    """What the starts and steps do to mean and spread, and what prediction is worth."""
    curves = results["curves"]
    mean, spread = (
        {(name, S): part[k] for name, c in curves.items() for S, part in zip(c["S"], c["ours"])}
        for k in (0, 1)
    )
    # Figure 4: trailing is better at 5 steps, and hardly at 25; both start at T and keep the mean.
    assert spread["trailing", 5] > 1.15 * spread["linspace", 5]
    assert abs(spread["trailing", 25] - spread["linspace", 25]) < 0.02
    for S in STEPS:
        assert min(mean["trailing", S], mean["linspace", S]) > 0.9
        assert mean["flawed, leading", S] < 0.15 and mean["leading", S] < 0.9
    # The caveat, and what repairs it.
    assert spread["trailing", 5] < 0.5
    assert abs(spread["trailing, dpmpp_2m", 5] - spread["trailing", 5]) < 0.02
    assert spread["trailing, heun", 5] < 0.6
    assert all(abs(spread["uniform_logsnr, dpmpp_2m", S] - 1) < 0.05 for S in (10, 25, 50))
    for curve in curves.values():
        np.testing.assert_allclose(curve["ours"], curve["predicted"], atol=TOLERANCE)
    for line in results["controls"]:
        np.testing.assert_allclose(line["ours"], line["predicted"], atol=CONTROL_TOLERANCE)


def summary(results: dict[str, Any]) -> str:
    """Spread by spacing, and what leading loses."""
    found = measured(results)
    at_5, at_25 = (found[f"trailing's spread over linspace's, S = {S}"] for S in (5, 25))
    leading, trailing = (
        found[f"{name}, S = 25: mean, spread"][0] for name in ("leading", "trailing")
    )
    return (
        f"spread {at_5:.2f} times linspace's at S = 5, {at_25:.2f} times at 25; leading recovers "
        f"{leading:.2f} of the mean at 25, trailing {trailing:.2f}"
    )


EXPERIMENT = Experiment(
    "figure4_sample_steps",
    "Section 5.1, Figure 4",
    "With few steps on the mended schedule trailing is better than linspace, and leading, which "
    "misses T, loses the mean.",
    measure,
    draw,
    check,
    "trailing better than linspace at S = 5, the same at 25",
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
