"""Figure 6: guidance over-exposes where the terminal SNR is zero, and its rescale takes that back.

Claim (section 5.3, Figure 6): at w = 7.5, without rescale (phi = 0) pictures are over-exposed; the
more rescale, the less; 0.5 to 0.75 look best, and at phi = 1 they are plain. The paper shows
pictures, by DDIM at S = 25. Here a label's closed-form denoiser is guided away from that of all
data, in v, on `brightness/16`, by trailing levels. Two denoisers stand for a network:

- ideal: of the images. Its samples are images of the data, whatever the guidance, so none of them
  leaves [-1, 1]: over-exposed here is what the denoiser takes the picture for on the way, and which
  images are drawn, the darkest of a dark label.
- linear: of Gaussians with the moments of a label's images, one covariance for all labels, and of
  all images. It extrapolates as a network may, and its samples do leave the range.

Predicted: at T, x0_hat is mean_all + w (mean_label - mean_all) times the rescale's factor, whatever
the noise: the share of its values beyond [-1, 1] is counted in NumPy, and must agree.

Contrast is the standard deviation within an image, over that of the data given the label. The
linear denoiser's falls with phi. The ideal one's does not: at phi = 0 it draws images that are
nearly all black or white. There phi = 1 is plain in that brightness stays near mid-grey, with three
quarters of a label's mean, where phi = 0 has two and a half times that mean.

Beside the rescale stand projected guidance (arXiv 2410.02416; eta = 0, no threshold or momentum)
and guidance at levels 800 and below only (arXiv 2404.07724), neither with rescale.

  python -m experiments.figure6_guidance_rescale

A minute on 2 CPU cores.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.pictures import pack, show
from experiments.record import Experiment, measured, row, run
from experiments.recovery import even_starts
from zsnr_jax import apg, data, guidance, plotting, predictions, samplers, schedules, timesteps
from zsnr_jax.data.brightness import LABELS
from zsnr_jax.evaluation import brightness, exposure, ideal
from zsnr_jax.predictions import Denoise

T, SCALE, HIGHEST = 1000, 7.5, 800
PHIS = (0.0, 0.25, 0.5, 0.75, 1.0)
SCHEDULE = schedules.make_schedule("scaled_linear", T, zero_terminal_snr=True)
ALPHAS, SIGMAS = jnp.asarray(SCHEDULE.alpha), jnp.asarray(SCHEDULE.sigma)
DDIM = samplers.ddim()
WAYS = {"no guidance": ("rescale", 1.0, 0.0)} | {  # kind, w, phi
    f"phi = {phi:g}": ("rescale", SCALE, phi) for phi in PHIS
}
WAYS |= {
    "projected": ("projected", SCALE, 0.0),
    f"levels to {HIGHEST}": ("interval", SCALE, 0.0),
}


class Gaussian(NamedTuple):
    """Mean [D], and eigenvectors [D, D] with their variances [D]."""

    mean: Any
    vectors: Any
    variances: Any

    def denoise(self, x_t: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The best denoiser of that Gaussian, and the best linear one of all with its moments."""
        alpha, sigma = ALPHAS[level], SIGMAS[level]
        mean, variances = self.mean[None], self.variances[None]
        gains = alpha * variances / (alpha**2 * variances + sigma**2)
        x = x_t.reshape(len(x_t), -1)
        centred = jnp.matmul(x - alpha * mean, self.vectors, precision="highest")
        x0_hat = mean + jnp.matmul(centred * gains, self.vectors.T, precision="highest")
        eps_hat = (x - alpha * x0_hat) / sigma
        return x0_hat.reshape(x_t.shape), eps_hat.reshape(x_t.shape)


def fit_gaussians(images: np.ndarray, labels: np.ndarray) -> tuple[Gaussian, list[Gaussian]]:
    """That of all images; and those of the labels, whose covariance given the label is one."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    means = [np.mean(flat[labels == label], axis=0) for label in range(len(LABELS))]

    def fit(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        variances, vectors = np.linalg.eigh(np.cov(centred.T, bias=True))
        return vectors.astype(np.float32), np.maximum(variances, 0).astype(np.float32)

    given_label = fit(flat - np.stack(means)[labels])
    of_labels = [Gaussian(mean.astype(np.float32), *given_label) for mean in means]
    return Gaussian(flat.mean(axis=0).astype(np.float32), *fit(flat)), of_labels


def guided(cond: Denoise, uncond: Denoise, kind: str, scale: Any, phi: Any) -> Any:
    """A label's denoiser, guided away from that of all data."""

    def rescaled(x_t: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha, sigma = ALPHAS[level], SIGMAS[level]
        v_cond, v_uncond = (
            alpha * eps_hat - sigma * x0_hat
            for x0_hat, eps_hat in (cond(x_t, level), uncond(x_t, level))
        )
        v = guidance.guide(v_cond, v_uncond, scale, phi)
        return predictions.to_x0_eps(v, x_t, alpha, sigma, "v")

    def projected(x_t: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        (x0_cond, eps_cond), (x0_uncond, _) = cond(x_t, level), uncond(x_t, level)
        change = (scale - 1) * apg.project(x0_cond - x0_uncond, x0_cond, 0.0, math.inf)
        return x0_cond + change, eps_cond - ALPHAS[level] / SIGMAS[level] * change

    if kind == "interval":
        return guidance.guide_within(rescaled, cond, 1, HIGHEST)
    return projected if kind == "projected" else rescaled


def make_draw(denoisers: Callable[[Any], tuple[Denoise, Denoise]], num_steps: int) -> Any:
    """draw(kind, which, x_T, w, phi) -> samples and what they were taken for at every level.

    Args: denoisers: which label, in the kind's own terms -> the label's and that of all data.
    """
    levels = timesteps.make_timesteps("trailing", T, num_steps)
    path = samplers.coefficients(DDIM, SCHEDULE, levels)

    def draw(kind: str, which: Any, x_T: Any, scale: Any, phi: Any) -> Any:
        denoise = guided(*denoisers(which), kind, scale, phi)
        return samplers.trajectory(DDIM, denoise, x_T, path)

    return jax.jit(draw, static_argnums=0)


def exposures(images: np.ndarray) -> list[float]:
    """The share of values beyond [-1, 1], and how far all are beyond it in the mean."""
    images = images.reshape(-1, *images.shape[-3:])
    return [float(np.mean(of(images))) for of in (exposure.overexposed, exposure.excess)]


def at_T(images: np.ndarray, labels: np.ndarray, scale: float, phi: float) -> list[float]:
    """The exposure of x0_hat at T by means alone: Eqs. 13-16, in NumPy."""
    mean, found = images.mean(axis=0), []
    for label in range(len(LABELS)):
        own = images[labels == label].mean(axis=0)
        x0_hat = mean + scale * (own - mean)
        found.append(x0_hat * (phi * np.std(own) / np.std(x0_hat) + 1 - phi))
    return exposures(np.stack(found))


def judge(samples: np.ndarray, seen: np.ndarray, images: np.ndarray, labels: np.ndarray) -> Any:
    """The numbers of one way: samples [labels, n, ...], and x0_hat [labels, S, n, ...]."""
    real = [images[labels == label] for label in range(len(LABELS))]
    groups = [brightness.mean_brightness(group) for group in samples]
    return {
        "at_T": exposures(seen[:, 0]),
        "on_the_way": exposures(seen),
        "samples": exposures(samples),
        "contrast": float(np.mean([np.mean(exposure.contrast(group)) for group in samples]))
        / float(np.mean([np.mean(exposure.contrast(group)) for group in real])),
        "mean_recovered": brightness.recovery_slope(
            groups, [brightness.mean_brightness(group) for group in real]
        ),
    }


def measure(smoke: bool) -> dict[str, Any]:
    """Exposure, contrast and mean brightness of both denoisers' samples in every way."""
    num_each, num_steps = (2, 3) if smoke else (32, 25)
    images, labels = data.load_arrays(data.open_source("brightness/16"), 16)
    if smoke:
        images, labels = images[:256], labels[:256]
    x_T = even_starts(len(LABELS), num_each, images.shape[1:])
    x_T = x_T.reshape(len(LABELS), num_each, *images.shape[1:])
    of_all = ideal.make_ideal_denoise(images, SCHEDULE)
    whole, own_gaussians = fit_gaussians(images, labels)
    ideal_of = lambda own: (ideal.make_ideal_denoise(images, SCHEDULE, own), of_all)  # noqa: E731
    linear_of = lambda own: (own.denoise, whole.denoise)  # noqa: E731
    own_rows = [labels == label for label in range(len(LABELS))]
    found, pictures = {}, []
    for name, denoisers, own in (
        ("ideal", ideal_of, own_rows),
        ("linear", linear_of, own_gaussians),
    ):
        draw_samples = make_draw(denoisers, num_steps)
        for way, (kind, scale, phi) in WAYS.items():
            drawn = [draw_samples(kind, o, x, scale, phi) for o, x in zip(own, x_T)]
            samples, seen = (np.stack([np.asarray(side) for side in pair]) for pair in zip(*drawn))
            found[f"{name}, {way}"] = judge(samples, seen, images, labels)
            if name == "ideal":
                shown = samples[:, [num_each // 4, 3 * num_each // 4]]
                pictures.append(pack(shown.reshape(-1, *samples.shape[2:])))
    predicted = {
        way: at_T(images, labels, scale, phi)
        for way, (kind, scale, phi) in WAYS.items()
        if kind == "rescale"
    }
    return {"rows": make_rows(found, predicted), "found": found, "pictures": pictures}


def make_rows(found: dict[str, Any], predicted: dict[str, Any]) -> list[dict[str, Any]]:
    """The table: what is seen at T and on the way, and what comes out."""
    rows = []
    for name, numbers in found.items():
        kind, _, way = name.partition(", ")
        if kind == "ideal":
            what = f"{name}: x0_hat at T beyond [-1, 1], share and how far"
            rows.append(row(what, None, predicted.get(way), numbers["at_T"]))
            what = f"{name}: x0_hat at all levels, the same"
            rows.append(row(what, ours=numbers["on_the_way"]))
        rows.append(row(f"{name}: samples, the same", ours=numbers["samples"]))
        what = f"{name}: contrast over the data's, mean recovered"
        rows.append(
            row(what, WORDS.get(way), None, [numbers["contrast"], numbers["mean_recovered"]])
        )
    return rows


LABELS_BELOW = [label.replace(" ", "\n") for label in LABELS]  # of two pictures each
WORDS = {
    "phi = 0": "over-exposed",
    "phi = 0.5": "best",
    "phi = 0.75": "best",
    "phi = 1": "plain",
}


def draw(results: dict[str, Any]) -> Figure:
    """Samples, a row for each way and a column for each start; beside them the numbers."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    left, panels = halves
    samples = left.subplots()
    show(samples, list(WAYS), results["pictures"], LABELS_BELOW, scale=4)
    samples.tick_params(axis="y", labelsize=9)
    samples.set_title("samples of the ideal denoiser; each column from one noise", fontsize=10)
    theme, found = plotting.LIGHT, results["found"]
    share = {  # label -> colour, marker, denoiser, number
        "all x0_hat, ideal": (theme.flawed, "v", "ideal", "on_the_way"),
        "samples, linear": (plotting.PURPLE, "s", "linear", "samples"),
    }
    parts = {
        "mean recovered, ideal": (theme.samples, "o", "ideal", "mean_recovered"),
        "contrast, ideal": (theme.ideal, "^", "ideal", "contrast"),
        "contrast, linear": (plotting.SKY, "D", "linear", "contrast"),
    }
    above, below = panels.subplots(2, 1, sharex=True)
    for axes, series in ((above, share), (below, parts)):
        for label, (color, marker, denoiser, number) in series.items():
            value = lambda way: np.ravel(found[f"{denoiser}, {way}"][number])[0]  # noqa: B023, E731
            axes.plot(PHIS, [value(f"phi = {phi:g}") for phi in PHIS], color=color, marker=marker,
                      label=label)  # fmt: skip
            axes.plot(PLACES.values(), [value(way) for way in PLACES], marker, color=color)
        axes.set_ylim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    above.set_title("share of values beyond [-1, 1]", fontsize=10)
    below.set_title("over the data's: 1 is right", fontsize=10)
    below.axhline(1, color=theme.data, lw=4, zorder=0)
    names = ["none", "pro-\njected", f"levels\nto {HIGHEST}"]
    below.set_xticks([*PHIS, *PLACES.values()], [*(f"{phi:g}" for phi in PHIS), *names])
    below.set_xlabel("rescale phi, or another way, of guidance at w = 7.5", fontsize=10)
    figure.suptitle("How much over-exposure by guidance does rescale take back?", x=0.01, ha="left",
                    weight="bold")  # fmt: skip
    return figure


PLACES = {"no guidance": -0.3, "projected": 1.3, f"levels to {HIGHEST}": 1.6}  # on the axis of phi


def check(results: dict[str, Any]) -> None:
    """Over-exposed without rescale, less with more of it, and plain at the end."""
    found = results["found"]
    falls = lambda values: bool(np.all(np.diff(values) < 0))  # noqa: E731
    over_phi = lambda kind, number: [  # noqa: E731
        np.ravel(found[f"{kind}, phi = {phi:g}"][number])[0] for phi in PHIS
    ]
    for line in results["rows"]:
        if line["predicted"] is not None:  # the mean at T, which no noise changes
            np.testing.assert_allclose(line["ours"], line["predicted"], atol=1e-3)
    assert found["ideal, no guidance"]["at_T"][0] == 0 and over_phi("ideal", "at_T")[0] > 0.9
    assert falls(over_phi("ideal", "on_the_way")) and falls(over_phi("linear", "samples"))
    assert falls(over_phi("linear", "contrast"))
    # Too bright and too dark without rescale, still so at 0.75, and too near mid-grey at 1.
    recovered = over_phi("ideal", "mean_recovered")
    assert falls(recovered) and recovered[0] > 2 and recovered[3] > 1.2 and recovered[4] < 0.9
    for way in ("projected", f"levels to {HIGHEST}"):
        numbers = found[f"ideal, {way}"]
        assert numbers["on_the_way"][0] < over_phi("ideal", "on_the_way")[0] / 3
        assert abs(numbers["mean_recovered"] - 1) < 0.3


def summary(results: dict[str, Any]) -> str:
    """What is over-exposed on the way, by phi."""
    found = measured(results)
    none, some, full = (
        100 * found[f"ideal, phi = {phi:g}: x0_hat at all levels, the same"][0]
        for phi in (0, 0.75, 1)
    )
    return (
        f"values of x0_hat beyond [-1, 1] at w = 7.5: {none:.0f} % at phi = 0, {some:.0f} % at "
        f"0.75, {full:.1g} % at 1"
    )


EXPERIMENT = Experiment(
    "figure6_guidance_rescale",
    "Section 5.3, Figure 6",
    "Guidance at w = 7.5 over-exposes; rescale takes that back, and in full leaves pictures plain.",
    measure,
    draw,
    check,
    "phi = 0 over-exposes, 0.5 to 0.75 best",
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
