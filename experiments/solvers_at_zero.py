"""Every solver starts at SNR = 0 itself; and what a start a little beside it does instead.

Claim (Section 6): DDPM and DDIM sample through v or x0, so that they can start at zero SNR, and the
same logic applies to other samplers. Programs whose solvers are written in sigma/alpha, infinite
at T, put 2^-24 in place of alpha_bar_T. Here both start from the same noise, with the same network,
which predicts v and is exact for 2048 images of brightness/32 at zero terminal SNR; ten trailing
steps. Heun in sigma/alpha, as usual elsewhere, stands beside the one in `samplers`, which is in
alpha/sigma: it has no limit at T, so that a smaller number in place of 0 makes it worse.

For 2M the first step is not all: its second extrapolates from the first estimate, with a weight
that is 0 from SNR = 0, and otherwise set by the number in place of 0. So some samples become others
(those of an ideal denoiser are images of the data, so that a small push can change which).

The prediction is each solver's first step in closed form, in NumPy float64, with 0 and with 2^-24.

  python -m experiments.solvers_at_zero

Half a minute to a minute on 2 CPU cores.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.record import Experiment, measured, row, run
from zsnr_jax import (
    data,
    plotting,
    predictions,
    randomness,
    samplers,
    schedules,
    timesteps,
)
from zsnr_jax.evaluation import brightness, ideal

FIXED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
LEVELS = timesteps.make_timesteps("trailing", 1000, 10)
HACK = 2.0**-24
SIZES = [2.0**-power for power in range(40, 23, -4)]  # of what is put in place of 0
IN_SIGMA = "Heun in sigma/alpha"


def heun_in_sigma() -> samplers.Sampler:
    """Heun's rule for d(x/alpha) / d(sigma/alpha) = eps_hat, multiplied out.

    x_s = y + alpha_s (1/r - 1) (x0_hat(y, s) - x0_hat) / 2, with y of DDIM; 1/r is infinite at T.
    """

    def rule(path: samplers.Path) -> tuple[np.ndarray, np.ndarray]:
        moving = path.sigma_next > 0  # the last step is first order
        inverse = np.divide(1, path.ratio, out=np.ones_like(path.alpha), where=moving)
        return np.zeros_like(path.alpha), path.alpha_next * (inverse - 1) / 2

    def step(estimate: Any, memory: Any, c: samplers.Coefficients, denoise: Any) -> Any:
        y = c.alpha_next * estimate[0] + c.sigma_next * estimate[1]
        return y + c.rule * (denoise(y, c.level_next)[0] - estimate[0]), memory

    return samplers.Sampler("heun_in_sigma", rule, step, looks=True)


SOLVERS = {
    "DDIM, Euler": samplers.ddim(),
    "DPM-Solver++(2M)": samplers.dpmpp_2m(),
    "DDPM, Euler ancestral": samplers.ddpm(),
    "SDE-DPM-Solver++(2M)": samplers.dpmpp_2m_sde(),
    "Heun": samplers.heun(),
    IN_SIGMA: heun_in_sigma(),
}


def started_at(alpha_bar: float) -> schedules.NoiseSchedule:
    """The mended schedule, with alpha_bar in place of the 0 at T."""
    mended = np.asarray(FIXED.alpha[1:], np.float64) ** 2
    return schedules.from_alphas_cumprod(np.append(mended[:-1], alpha_bar))


def make_denoise(
    images: jax.Array, schedule: schedules.NoiseSchedule
) -> predictions.NetworkDenoise:
    """What the solver hears: the exact network of the mended schedule, read by its own schedule."""
    exact = ideal.make_ideal_denoise(images, FIXED)
    alphas, sigmas = jnp.asarray(FIXED.alpha), jnp.asarray(FIXED.sigma)

    def network(x_t: jax.Array, timestep: jax.Array) -> jax.Array:
        level = timestep[0] + 1
        return predictions.velocity(*exact(x_t, level), alphas[level], sigmas[level])

    return predictions.make_denoise(network, schedule, "v")


@functools.partial(jax.jit, static_argnums=0)
def samples(solver: samplers.Sampler, images: Any, schedule: Any, path: Any, x_T: Any) -> Any:
    """Whole paths."""
    denoise = make_denoise(images, schedule)
    return samplers.integrate(solver, denoise, x_T, path, KEY if solver.stochastic else None)


@functools.partial(jax.jit, static_argnums=0)
def first_step(solver: samplers.Sampler, images: Any, schedule: Any, path: Any, x_T: Any) -> Any:
    """The first step alone, noise included."""
    denoise, c = make_denoise(images, schedule), jax.tree.map(lambda entries: entries[0], path)
    x, _ = solver.step(denoise(x_T, c.level), solver.init(x_T), c, denoise)
    return x + c.noise * fresh_noise(x_T)


KEY = randomness.purpose_key(0, randomness.Purpose.SAMPLE)


def fresh_noise(x_T: Any) -> jax.Array:
    """What the first step of a solver with noise adds."""
    return randomness.row_normal(KEY, LEVELS[0], jnp.arange(len(x_T)), x_T.shape[1:])


def closed_form(name: str, images: np.ndarray, x: np.ndarray, alpha_bar: float) -> np.ndarray:
    """The first step from alpha_bar at T, in float64; images [n, d], x [B, d]."""
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    alpha_s, sigma_s = (np.float64(side[LEVELS[1]]) for side in FIXED)
    r = sigma_s * alpha / (sigma * alpha_s)
    guess = alpha * x + sigma * images.mean(axis=0)
    if SOLVERS[name].stochastic:
        z = np.asarray(fresh_noise(x), np.float64)
        fresh = sigma_s * np.sqrt(1 - r**2) * z
        return sigma_s / sigma * r * x + alpha_s * (1 - r**2) * guess + fresh
    y = sigma_s / sigma * x + alpha_s * (1 - r) * guess
    if "Heun" not in name:
        return y
    logits = alpha_s * (y @ images.T - alpha_s * np.sum(images**2, axis=1) / 2) / sigma_s**2
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    change = weights @ images / weights.sum(axis=1, keepdims=True) - guess
    return y + alpha_s * ((1 / r - 1) if name == IN_SIGMA else (1 - r)) * change / 2


def measure(smoke: bool) -> dict[str, Any]:
    """The first step's error from every start, and what becomes of the samples."""
    most = 96 if smoke else 2048
    images, _ = data.load_arrays(data.open_source("brightness/32"), 32, most=most)
    key = randomness.purpose_key(0, randomness.Purpose.START)
    x_T = randomness.row_normal(key, 0, jnp.arange(4 if smoke else 128), images.shape[1:])
    sizes = [HACK] if smoke else SIZES
    found = {name: first_errors(name, images, x_T[:8], sizes) for name in SOLVERS}
    for name, ends in drawn(images, x_T).items():
        found[name] |= ends
    return {
        "rows": [line for name, here in found.items() for line in rows(name, here)],
        "sizes": sizes,
        "num_samples": len(x_T),
        "found": found,
    }


def first_errors(name: str, images: np.ndarray, x_T: Any, sizes: list[float]) -> dict[str, Any]:
    """Root mean square distance of the first step from the limit: from 0 itself, and beside it."""
    solver = SOLVERS[name]
    flat, x = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (images, x_T))
    limit = closed_form("Heun" if name == IN_SIGMA else name, flat, x, 0.0)

    def error(alpha_bar: float) -> float:
        schedule = started_at(alpha_bar)
        path = samplers.coefficients(solver, schedule, LEVELS)
        return rms(
            np.asarray(first_step(solver, images, schedule, path, x_T)).reshape(x.shape) - limit
        )

    return {
        "at_0": None if name == IN_SIGMA else error(0.0),
        "beside": [error(size) for size in sizes],
        "predicted": rms(closed_form(name, flat, x, HACK) - limit),
    }


def drawn(images: np.ndarray, x_T: Any) -> dict[str, dict[str, Any]]:
    """What becomes of the samples; those of Heun in sigma/alpha are beside Heun's from 0."""
    data_brightness, from_0, found = brightness.mean_brightness(images), {}, {}
    for name, solver in SOLVERS.items():
        ends = []
        for schedule in (FIXED, started_at(HACK)):
            if name == IN_SIGMA and schedule is FIXED:
                ends.append(from_0["Heun"])
                continue
            path = samplers.coefficients(solver, schedule, LEVELS)
            ends.append(np.asarray(samples(solver, images, schedule, path, x_T)))
        from_0[name], beside = ends
        moved = np.max(abs(beside - from_0[name]), axis=(1, 2, 3))
        ratios = [brightness.std_ratio(brightness.mean_brightness(end), data_brightness)
                  for end in ends]  # fmt: skip
        found[name] = {
            "rms": rms(beside - from_0[name]),
            "changed": float(np.mean(moved > 0.05)),
            "std_ratio": [None if name == IN_SIGMA else ratios[0], ratios[1]],
        }
    return found


def rms(values: Any) -> float:
    """Root mean square, in float64."""
    return float(np.sqrt(np.mean(np.square(np.float64(values)))))


def rows(name: str, here: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A solver's part of the table."""
    at_hack = here["beside"][SIZES.index(HACK) if len(here["beside"]) > 1 else 0]
    if name != IN_SIGMA:
        yield row(f"{name}: error of the first step from 0, rms", None, 0.0, here["at_0"])
    yield row(f"{name}: the same with 2^-24", None, here["predicted"], at_hack)
    yield row(
        f"{name}: samples changed (a value by > 0.05) by 2^-24, %", ours=100 * here["changed"]
    )
    yield row(f"{name}: samples moved by 2^-24, rms", ours=here["rms"])
    yield row(f"{name}: brightness std ratio from 0, and with 2^-24", ours=here["std_ratio"])


COLOURS = dict(
    zip(SOLVERS, ["#0072b2", "#0072b2", plotting.PURPLE, plotting.PURPLE, "#009e73", "#d55e00"])
)


def draw(results: dict[str, Any]) -> Figure:
    """The error of the first step by what stands in place of 0, and the samples' brightness."""
    figure = Figure(figsize=(9, 7.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[1.35, 1])
    draw_errors(above, results)
    draw_samples(below, results["found"])
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_errors(axes: Axes, results: dict[str, Any]) -> None:
    """Errors over sizes, and at the left those from 0 itself."""
    powers = [round(np.log2(size)) for size in results["sizes"]]
    zero = powers[0] - 4
    labels = {
        "DPM-Solver++(2M)": ("DDIM, Euler,\nDPM-Solver++(2M)", -14),
        "DDPM, Euler ancestral": ("DDPM, Euler ancestral,\nSDE-DPM-Solver++(2M)", 0),
        "Heun": ("Heun in alpha/sigma", 12),
        IN_SIGMA: ("Heun in sigma/alpha", 0),
    }
    for name, (label, up) in labels.items():
        here, colour = results["found"][name], COLOURS[name]
        axes.semilogy(powers, here["beside"], color=colour, lw=2.2, marker="o", ms=5)
        if here["at_0"] is not None:
            axes.semilogy(zero, here["at_0"], color=colour, marker="D", ms=7)
        axes.annotate(label, (powers[-1], here["beside"][-1]), (10, up), color=colour,
                      textcoords="offset points", weight="bold", va="center")  # fmt: skip
    at_0 = results["found"]["DDIM, Euler"]["at_0"]
    axes.annotate("float32\nrounding", (zero, at_0), (0, 12), textcoords="offset points",
                  ha="center", color=plotting.LIGHT.ink)  # fmt: skip
    names = {zero: "0\nas here", -24: "2$^{-24}$\nthe usual patch"}
    ticks = [zero, *powers]
    axes.set_xticks(ticks, [names.get(power, f"2$^{{{power}}}$") for power in ticks])
    axes.set(xlim=(zero - 2, -15.2), ylim=(1e-8, 3e3))
    axes.set(
        xlabel="alpha_bar at T, where the solver starts", ylabel="error of the first step, rms"
    )
    axes.set_title("What does a start beside zero SNR cost the first step?", loc="left",
                   weight="bold")  # fmt: skip


def draw_samples(axes: Axes, found: dict[str, Any]) -> None:
    """The spread of brightness at the end: from 0, and with 2^-24."""
    theme = plotting.LIGHT
    for place, here in enumerate(found.values()):
        right, wrong = here["std_ratio"]
        if right is not None:
            axes.plot(right, -place, color=theme.samples, marker="D", ms=9, ls="",
                      label="_" * (place > 0) + "from 0")  # fmt: skip
        else:
            axes.text(0.05, -place, "no limit at 0", va="center", color=theme.ink)
        axes.plot(wrong, -place, color=theme.flawed, marker="o", ms=6, ls="",
                  label="_" * (place > 0) + "from 2$^{-24}$")  # fmt: skip
        text = f"{100 * here['changed']:.0f} % of samples changed"
        axes.text(2.28, -place, text, va="center", ha="right", color=theme.ink)
    axes.axvline(1, color=theme.faint, lw=1, zorder=0)
    axes.legend(loc="upper left", frameon=False)
    axes.set_yticks(range(0, -len(found), -1), list(found))
    axes.set(xlim=(0, 2.3), ylim=(0.4 - len(found), 0.6))
    axes.set_xlabel(
        "standard deviation of brightness after ten steps, over the data's (1 is right)"
    )
    axes.set_title("And the samples?", loc="left", weight="bold")


def check(results: dict[str, Any]) -> None:
    """From 0, rounding alone; beside it what the closed form says, without limit for one."""
    for name, here in results["found"].items():
        at_hack = here["beside"][results["sizes"].index(HACK)]
        np.testing.assert_allclose(at_hack, here["predicted"], rtol=0.01)
        if name == IN_SIGMA:
            assert here["beside"][0] > 100 * at_hack > 100
            assert here["std_ratio"][1] > 1.3 and here["changed"] > 0.9
        else:
            assert here["at_0"] < 1e-6 < at_hack / 10  # float32
            assert here["beside"][0] < at_hack / 10 and 0 < here["std_ratio"][0] <= 1.05


def summary(results: dict[str, Any]) -> str:
    """Errors of the first step, from 0 and from 2^-24."""
    found = measured(results)
    from_0 = max(
        found[what] for what in found if what.endswith("error of the first step from 0, rms")
    )
    euler, ancestral, heun = (
        found[f"{name}: the same with 2^-24"]
        for name in ("DDIM, Euler", "DDPM, Euler ancestral", "Heun in sigma/alpha")
    )
    return (
        f"every solver's first step is its closed form to {from_0:.0e}; with 2^-24 it is off by "
        f"{euler:.0e} (Euler, 2M), {ancestral:.0e} (ancestral, SDE), {heun:.1f} (Heun in "
        "sigma/alpha)"
    )


EXPERIMENT = Experiment(
    "solvers_at_zero",
    "Section 6",
    "Every solver's first step from SNR = 0 is its closed form; 2^-24 in place of 0 costs most of "
    "them a little, and Heun in sigma/alpha everything.",
    measure,
    draw,
    check,
    '"same logic applies to other samplers"',
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
