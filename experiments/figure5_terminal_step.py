"""Figure 5: at T the best estimate is the mean of the data, whatever the noise; then it varies.

Claim (Section 5.2, Figure 5): at zero terminal SNR the ideal model predicts at T the mean of the
data given the prompt, irrespective of the noise, and predictions start to differ at the second
step. The paper shows it with "An astronaut riding a horse" over the levels 1000, 900, .. 100. Here
the model is the ideal denoiser of brightness/32, of all its images and of each label's, so that the
claim is exact; the original schedule on the same levels stands beside it.

What is measured is the variance of x0_hat over noises, averaged over pixels, as a part of the
data's. Brightness is uniform in these data, and where nothing else of a picture counts, the spread
of the brightness of x0_hat follows from the schedule alone: that is the prediction, to within 5 %,
for the first level that the noise reaches.

  python -m experiments.figure5_terminal_step

Half a minute on 2 CPU cores.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.pictures import pack, unpack
from experiments.record import Experiment, measured, row, run
from zsnr_jax import data, plotting, randomness, samplers, schedules, timesteps
from zsnr_jax.data.brightness import LABELS
from zsnr_jax.evaluation import brightness, ideal

LEVELS = timesteps.make_timesteps("trailing", 1000, 10)
SCHEDULES = {
    "rescaled": schedules.make_schedule("scaled_linear", zero_terminal_snr=True),
    "original": schedules.make_schedule("scaled_linear"),
}
SHOWN, NUM_SHOWN = "disc bright", 3  # whose estimates are drawn, and of how many noises
VALUES = 32 * 32 * 3  # of a picture
DDIM = samplers.ddim()


@jax.jit
def estimates(
    images: jax.Array, schedule: schedules.NoiseSchedule, path: Any, x_T: jax.Array
) -> jax.Array:
    """x0_hat of the ideal denoiser at every level, [10, B, H, W, C]."""
    denoise = ideal.make_ideal_denoise(images, schedule)
    return samplers.trajectory(DDIM, denoise, x_T, path)[1]


def measure(smoke: bool) -> dict[str, Any]:
    """The variance of x0_hat over noises by level, for all images and for each label's."""
    images, labels = data.load_arrays(
        data.open_source("brightness/32"), 32, most=96 if smoke else None
    )
    sets = {"all": images} | {name: images[labels == i] for i, name in enumerate(LABELS)}
    key = randomness.purpose_key(0, randomness.Purpose.START)
    x_T = randomness.row_normal(key, 0, jnp.arange(4 if smoke else 256), images.shape[1:])
    found: dict[str, Any] = {name: {} for name in SCHEDULES}
    pictures = {}
    for name, schedule in SCHEDULES.items():
        path = samplers.coefficients(DDIM, schedule, LEVELS)
        for condition, members in sets.items():
            x0_hat = np.asarray(estimates(members, schedule, path, x_T))
            found[name][condition] = statistics(x0_hat, members)
            if condition == SHOWN:
                shown = np.moveaxis(x0_hat[:, :NUM_SHOWN], 1, 0)  # a row for each noise
                pictures[name] = pack(shown.reshape(-1, *shown.shape[2:]))
    return {
        "rows": list(rows(found)),
        "levels": LEVELS.tolist(),
        "num_noises": len(x_T),
        "found": found,
        "pictures": pictures,
    }


def statistics(x0_hat: np.ndarray, members: np.ndarray) -> dict[str, Any]:
    """What is on record of the estimates [10, B, H, W, C] under one condition."""
    members = members.astype(np.float64)
    # Around the first noise's estimate: where all have the same bits, the variance is exactly 0.
    apart = np.asarray(x0_hat - x0_hat[:, :1], np.float64)
    variance = np.mean(np.var(apart, axis=1), axis=(1, 2, 3)) / np.mean(np.var(members, axis=0))
    return {
        "different_at_T": int(np.sum(np.any(apart[0] != 0, axis=(1, 2, 3)))),
        "from_mean_at_T": float(np.max(abs(x0_hat[0] - members.mean(axis=0)))),
        "variance": variance.tolist(),
        "brightness_std": [float(np.std(brightness.mean_brightness(level))) for level in apart],
    }


def uniform_std(schedule: schedules.NoiseSchedule, step: int) -> float:
    """Standard deviation over x_T of the best estimate of a brightness m, uniform in [-1, 1].

    The mean of x_t over its N values is taken for alpha m plus noise of deviation sigma / sqrt(N).
    It is sigma_t / sigma_T times the mean of x_T: the first step from SNR = 0 adds alpha times 0.
    """
    alpha, sigma = (float(side[LEVELS[step]]) for side in schedule)
    m, z = np.arange(-1000, 1001) / 1000, np.arange(-600, 601) / 100
    y = z[:, None] * (1 if step == 0 else sigma)
    posterior = np.exp(-((y - alpha * m * VALUES**0.5) ** 2) / (2 * sigma**2))
    estimate = (posterior @ m) / posterior.sum(axis=1)
    return float(np.sqrt(np.average(estimate**2, weights=np.exp(-(z**2) / 2))))


def rows(found: dict[str, Any]) -> Any:
    """The table: at T for all images and for each label's, then for all images by level."""
    mended, flawed = (found[name].values() for name in SCHEDULES)
    same, none = "almost exactly the same", "the mean"
    yield row("noises that change x0_hat at T, all and by label", same, [0] * 7,
              [here["different_at_T"] for here in mended])  # fmt: skip
    yield row("max |x0_hat - mean of the data| at T, any condition", none, 0.0,
              max(here["from_mean_at_T"] for here in mended))  # fmt: skip
    yield row("variance at T, original schedule, all and by label",
              ours=[round(here["variance"][0], 4) for here in flawed])  # fmt: skip
    for place, level in enumerate(LEVELS.tolist()):
        part = found["rescaled"]["all"]["variance"][place]
        yield row(f"variance at {level}, all images", predicted=None if place else 0.0, ours=part)
    for name, step in (("rescaled", 1), ("original", 0)):
        yield row(
            f"std of the brightness of x0_hat at {LEVELS[step]}, {name} schedule",
            predicted=uniform_std(SCHEDULES[name], step),
            ours=found[name]["all"]["brightness_std"][step],
        )


def draw(results: dict[str, Any]) -> Figure:
    """Variance by level, and under each level the estimates of three noises."""
    theme = plotting.LIGHT
    figure = Figure(figsize=(8, 8), layout="constrained")
    curve, *strips = figure.subplots(3, height_ratios=[0.85, 1, 1])
    colours = {"rescaled": theme.samples, "original": theme.flawed}
    for (name, colour), above in zip(colours.items(), (True, False)):
        variance = results["found"][name]["all"]["variance"]
        curve.plot(variance, color=colour, lw=2.4, marker="o")
        at = "exactly 0" if variance[0] == 0 else f"{variance[0]:.2f}"
        curve.annotate(f"{name} schedule: {at} at T", (9, variance[-1]), (0, 8 if above else -18),
                       textcoords="offset points", color=colour, weight="bold",
                       ha="right")  # fmt: skip
    curve.set(xlim=(-0.5, 9.5), ylim=(-0.015, 0.58))
    curve.set_ylabel("variance over noises,\nshare of the data's")
    curve.set_title("Does the estimate at T depend on the noise?", loc="left", weight="bold")
    curve.set_title(f"all images, {results['num_noises']} noises", loc="right", fontsize=9)
    curve.spines[["top", "right"]].set_visible(False)
    for axes, (name, colour) in zip(strips, colours.items()):
        images = unpack(results["pictures"][name])
        grid = plotting.image_grid(images, columns=len(LEVELS), scale=1)
        axes.imshow(grid, extent=(-0.5, 9.5, NUM_SHOWN, 0), aspect="auto", interpolation="nearest")
        axes.set_yticks(np.arange(NUM_SHOWN) + 0.5, [f"noise {i + 1}" for i in range(NUM_SHOWN)])
        axes.set_title(f"x0_hat given the label “{SHOWN}”, {name} schedule", loc="left",
                       color=colour, fontsize=11)  # fmt: skip
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for axes in (curve, *strips):
        axes.set_xticks(range(10), [f"{level}" for level in results["levels"]])
    strips[-1].set_xlabel("level t, from T = 1000 to the last of ten steps")
    return figure


def check(results: dict[str, Any]) -> None:
    """Exactly one estimate at T, the mean; then it varies. Never so on the original schedule."""
    for condition, here in results["found"]["rescaled"].items():
        assert here["different_at_T"] == 0 and here["variance"][0] == 0, condition
        assert here["from_mean_at_T"] < 1e-6, condition  # float32
        # It rises through half of the steps, and has settled to three digits when they end.
        assert np.all(np.diff(here["variance"])[:5] > 0), condition
        assert np.all(np.diff(here["variance"]) > -1e-3), condition
        assert results["found"]["original"][condition]["variance"][0] > 0.1, condition
    for line in results["rows"][-2:]:
        np.testing.assert_allclose(line["ours"], line["predicted"], rtol=0.05)


def summary(results: dict[str, Any]) -> str:
    """What happens at T on both schedules."""
    found = measured(results)
    off = found["max |x0_hat - mean of the data| at T, any condition"]
    variance = found["variance at T, original schedule, all and by label"][0]
    return (
        f"the mean to {off:.0e}, the same bits for every noise; on the original schedule it varies "
        f"over noises with {variance:.2f} of the data's variance"
    )


EXPERIMENT = Experiment(
    "figure5_terminal_step",
    "Section 5.2, Figure 5",
    "At zero terminal SNR the estimate at T is the mean of the data given the label, the same bits "
    "for every noise, and varies from the second step on.",
    measure,
    draw,
    check,
    "the mean, whatever the noise",
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
