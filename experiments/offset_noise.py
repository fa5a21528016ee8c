"""Offset noise: what it does in place of the fixes, measured.

Claim (section 5.4): a network trained with offset noise learns to make little of the mean of its
input, at every level, and so gives bright and dark samples though the schedule is flawed; but they
are incongruent, too bright or too dark for what they are to show. The paper argues it, and has no
number. Beside it stands the start with the signal's leak (arXiv 2309.15842), which changes nothing
in training. All are the main job, S = 50:

- flawed: Stable Diffusion's recipe.
- signal leak: the same network, started from noise plus what the data leave at that level.
- offset noise: trained with offset noise of strength 0.1, started from plain noise, as it is used.
- offset start: the same network, started from the noise it was trained on.
- fixes: the four.

Told are the part of the labels' mean that comes through, the spread about it, and the gain: how
much of a shift of x0's mean, seen in x_t as alpha times it, the estimate follows at three levels.

Predicted: one Gaussian mode, that of brightness. Its noise has variance 1, and 1 + 0.1^2 N/3 with
offset noise, since three channels of N/3 pixels move each for itself. The nearer to T, the less of
the mode is seen through so much noise, so that half of the labels' mean could come through (a
thousand steps teach the network a tenth; it still takes more of the mean from its input than is
best). From plain noise, whose mean moves less than the network was taught, too little spread comes
out; from its own, most of it.

  python -m experiments.offset_noise --workdir=/tmp/zsnr_jax/trained

Two minutes on 2 CPU cores, and four more for each network that is not yet trained.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import trained
from experiments.pictures import pack, show
from experiments.record import Experiment, row, run
from experiments.recovery import (
    ddim_on_one_mode,
    even_labels,
    even_starts,
    recovery_and_spread,
    spread_given_label,
)
from zsnr_jax import offset_noise, plotting, randomness, signal_leak, timesteps
from zsnr_jax.data.brightness import LABELS
from zsnr_jax.evaluation import brightness

S, T = 50, 1000
STRENGTH = trained.RECIPES["offset_noise"].settings["loss.offset_noise"]
GAIN_LEVELS = (1000, 900, 500)
SHIFT = 0.2  # of x0's mean, by which the gain is measured


class Way(NamedTuple):
    """A network, how it is started, and how it is sampled."""

    network: str
    start: str = "noise"
    spacing: str = "leading"
    steps_offset: int = 1
    final_level: int = 1


WAYS = {
    "flawed": Way("flawed"),
    "signal leak": Way("flawed", "leak"),
    "offset noise": Way("offset_noise"),
    "offset start": Way("offset_noise", "offset"),
    "fixes": Way("fixed", "noise", "trailing", 0, 0),
}


def measure(smoke: bool, workdir: Path) -> dict[str, Any]:
    """Mean, spread and gain in every way, predicted and measured, and pictures."""
    num_each, ways = (2, ["offset start"]) if smoke else (64, list(WAYS))
    found, rows, pictures = {}, [], []
    for name in ways:
        way = WAYS[name]
        network = trained.load(way.network, workdir, smoke=smoke)
        levels = timesteps.make_timesteps(way.spacing, T, S, steps_offset=way.steps_offset)
        labels = even_labels(num_each)
        x_T = make_start(way.start, network, labels, int(levels[0]))
        samples = network.sample(labels, x_T, levels, final_level=way.final_level)
        drawn, real = map(brightness.mean_brightness, (samples, network.images))
        found[name] = {
            "predicted": predict(way, network, levels),
            "ours": recovery_and_spread(samples, labels, network.images, network.labels)[0],
            "wasserstein1": brightness.wasserstein1(drawn, real),
            "gain": [gain(network, level) for level in GAIN_LEVELS],
            "gain_predicted": [mode_gain(way, network, level) for level in GAIN_LEVELS],
        }
        rows += make_rows(name, found[name])
        pictures.append(pack(plotting.by_brightness(samples, 16)))
    return {"rows": rows, "found": found, "pictures": pictures}


def make_start(kind: str, network: trained.Network, labels: np.ndarray, level: int) -> np.ndarray:
    """What samples start from, [n, H, W, C]: noise, its mean over the image in even quantiles."""
    shape = network.images.shape[1:]
    noise = even_starts(len(LABELS), len(labels) // len(LABELS), shape)
    if kind == "noise":
        return noise
    index = jnp.arange(len(labels))
    if kind == "offset":
        key = randomness.purpose_key(0, randomness.Purpose.TRAIN)
        keys = randomness.row_keys(key, 0, index)
        moved = np.asarray(offset_noise.add_offset(jnp.asarray(noise), keys, STRENGTH))
        # Of the offsets' mean over the image, which nothing else depends on, even quantiles too.
        even = np.mean(noise, axis=(1, 2, 3), keepdims=True) * offset_std(shape)
        return moved - np.mean(moved, axis=(1, 2, 3), keepdims=True) + even
    key = randomness.purpose_key(0, randomness.Purpose.LEAK)
    alpha, sigma = (side[level] for side in network.schedule)
    leak_noise = randomness.row_normal(key, 0, index, shape)
    x_T = np.empty_like(noise)
    for label in range(len(LABELS)):
        leak, own = signal_leak.fit(network.images[network.labels == label], 4), labels == label
        x_T[own] = signal_leak.start(leak, jnp.asarray(noise[own]), leak_noise[own], alpha, sigma)
    return x_T


def mode(network: trained.Network) -> float:
    """Standard deviation of the mode of brightness: tau sqrt(N)."""
    tau = spread_given_label(network.images, network.labels)
    return tau * float(np.sqrt(np.prod(network.images.shape[1:])))


def offset_std(shape: tuple[int, ...]) -> float:
    """Standard deviation of that mode's offset noise; of plain noise it is 1."""
    return float(np.sqrt(1 + STRENGTH**2 * np.prod(shape) / 3))


def noise_std(way: Way, network: trained.Network) -> float:
    """Standard deviation of that mode's noise in training."""
    return offset_std(network.images.shape[1:]) if way.network == "offset_noise" else 1.0


def predict(way: Way, network: trained.Network, levels: np.ndarray) -> list[float]:
    """The parts of mean and spread that DDIM keeps of the mode."""
    unit = noise_std(way, network)  # the mode and its start in units of the noise trained on
    std, (alpha, sigma) = mode(network) / unit, (side[levels[0]] for side in network.schedule)
    start = {
        "noise": (0.0, 1 / unit),
        "offset": (0.0, 1.0),
        "leak": (float(alpha), float(np.hypot(alpha * std, sigma))),
    }[way.start]
    return ddim_on_one_mode(network.schedule, levels, std, way.final_level, start)


def mode_gain(way: Way, network: trained.Network, level: int) -> float:
    """How much of a shift of the mode in x_t, over alpha, its best estimate moves."""
    alpha, sigma = (float(side[level]) for side in network.schedule)
    signal, noise = alpha * mode(network), sigma * noise_std(way, network)
    return signal**2 / (signal**2 + noise**2)


@functools.cache  # a network is sampled in two ways
def gain(network: trained.Network, level: int) -> float:
    """The same of a network: of 96 of the data's images with plain noise, shifted up and down."""
    images, labels = network.images[:96], network.labels[:96]
    alpha, sigma = (float(side[level]) for side in network.schedule)
    x_t = alpha * images + sigma * even_starts(1, len(images), images.shape[1:])
    scale = max(alpha, float(network.schedule.alpha[990]))  # at SNR = 0, that of 990
    shift = scale * SHIFT
    up, down = (network.estimate(labels, x_t + sign * shift, level) for sign in (1, -1))
    moved = float(np.mean(brightness.mean_brightness(up) - brightness.mean_brightness(down)))
    return moved / (2 * SHIFT)


def make_rows(name: str, here: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean and spread, the distance from the data, and the gain."""
    levels = ", ".join(map(str, GAIN_LEVELS))
    return [
        row(f"{name}: mean, spread", None, here["predicted"], here["ours"]),
        row(f"{name}: W1 of brightness", ours=here["wasserstein1"]),
        row(f"{name}: gain at {levels}", None, here["gain_predicted"], here["gain"]),
    ]


def draw(results: dict[str, Any]) -> Figure:
    """Samples from dark to bright in every way; beside them mean and spread, and the gain."""
    theme, found = plotting.LIGHT, results["found"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    pictures, parts, gains = figure.subplots(1, 3, width_ratios=(2.3, 1, 0.8))
    show(pictures, list(found), results["pictures"])
    pictures.set_title("samples from dark to bright, at even quantiles", fontsize=10)
    places = np.arange(len(found))[::-1]
    for k, (label, colour) in enumerate((("mean", theme.samples), ("spread", theme.flawed))):
        values = [here["ours"][k] for here in found.values()]
        parts.barh(places + 0.2 - 0.4 * k, values, 0.36, color=colour, label=label)
        for place, here in zip(places, found.values()):
            ends = [place + 0.38 - 0.4 * k, place + 0.02 - 0.4 * k]
            parts.plot([here["predicted"][k]] * 2, ends, "k-", lw=2)
    parts.axvline(1, color=theme.data, lw=4, zorder=0)
    parts.set_yticks(places, list(found))
    parts.set_title("part of the data's; | predicted", fontsize=10)
    parts.legend(frameon=False, fontsize=9)
    for name, colour in (
        ("flawed", theme.flawed),
        ("offset noise", plotting.PURPLE),
        ("fixes", theme.samples),
    ):
        if name in found:
            gains.plot(GAIN_LEVELS, found[name]["gain"], "o", color=colour, label=name)
            gains.plot(GAIN_LEVELS, found[name]["gain_predicted"], color=colour, lw=1)
    gains.set(xlabel="level t", ylim=(-0.05, 1.05), xticks=GAIN_LEVELS[::-1])
    gains.set_title("part of a shift of x0's mean\nthat x0_hat follows", fontsize=10)
    gains.legend(frameon=False, fontsize=9, loc="lower left")
    for axes in (parts, gains):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Does offset noise stand in for the fixes?", x=0.01, ha="left", weight="bold")
    return figure


def check(results: dict[str, Any]) -> None:
    """Offset noise makes the network deaf to the mean, and its use gives no right spread."""
    found = results["found"]
    assert list(found) == list(WAYS)
    mean, spread = ({name: here["ours"][k] for name, here in found.items()} for k in (0, 1))
    assert min(mean["offset noise"], mean["offset start"]) > mean["flawed"] + 0.03
    assert spread["offset noise"] < spread["flawed"] < spread["offset start"]
    assert min(mean["fixes"], mean["signal leak"]) > mean["offset start"] + 0.3
    assert max(abs(spread[name] - 1) for name in ("fixes", "signal leak")) < 0.15
    deaf, hearing = (found[name]["gain"][:2] for name in ("offset noise", "flawed"))
    assert np.all(np.array(deaf) < hearing)


def summary(results: dict[str, Any]) -> str:
    """Mean and spread in every way."""
    parts = (
        f"{name} {here['ours'][0]:.2f}, {here['ours'][1]:.2f}"
        for name, here in results["found"].items()
    )
    return "mean and spread that come through: " + "; ".join(parts)


EXPERIMENT = Experiment(
    "offset_noise",
    "Section 5.4",
    "A network trained with offset noise makes less of its input's mean: from the noise it was "
    "trained on the spread comes back, from plain noise, as it is used, less of it than without.",
    measure,
    draw,
    check,
    "argued",
    summary,
    trained=True,
)


if __name__ == "__main__":
    run(EXPERIMENT)
