"""What is run on both sides: solvers, settings, data and starts. No torch here.

Every case is Stable Diffusion's schedule with T = 1000 and a v-prediction network that is the exact
denoiser of the data, started from the same 24 numbers, with the same noise at the same levels.
"""

from typing import Any, NamedTuple

import numpy as np
import oracles

STEPS = (5, 10, 25, 50)
SEED = 0  # of the noise that is added on the way, on both sides


class Data(NamedTuple):
    """A mixture of two Gaussians of one deviation, which is one Gaussian where the means agree."""

    means: tuple[float, float]
    weights: tuple[float, float]
    std: float

    @property
    def mean(self) -> float:
        return sum(w * m for w, m in zip(self.weights, self.means))


DATA = {
    "gaussian": Data((0.9, 0.9), (0.5, 0.5), 0.3),  # its denoiser is affine
    "mixture": Data((-0.8, 0.9), (0.3, 0.7), 0.3),  # dark and bright: its denoiser is not
}

# The largest difference of a sample that float32 explains. Our arithmetic is float32, and so are
# diffusers' tables, products of 1000 rounded numbers: they put alpha and sigma wrong by up to 3e-7
# and 9e-7. The Gaussian's samplers shrink such errors, and 1.1e-6 is the most measured; those of
# the mixture stretch them, tenfold between its two heaps, and 1.0e-5 is the most measured.
TOLERANCE = {"gaussian": 3e-6, "mixture": 3e-5}


class Solver(NamedTuple):
    """One solver under its two names."""

    sampler: str
    scheduler: str
    eta: float | None = None  # where both sides take one
    options: dict[str, Any] = {}  # of the scheduler
    fresh_noise: bool = False  # whether a step from SNR = 0 leaves nothing of x_T


SOLVERS = {
    "ddim(eta=0)": Solver("ddim", "DDIMScheduler", eta=0.0),
    "ddim(eta=1)": Solver("ddim", "DDIMScheduler", eta=1.0, fresh_noise=True),
    "ddpm": Solver("ddpm", "DDPMScheduler", fresh_noise=True),
    "euler": Solver("euler", "EulerDiscreteScheduler"),
    "euler_ancestral": Solver(
        "euler_ancestral", "EulerAncestralDiscreteScheduler", fresh_noise=True
    ),
    "heun": Solver("heun", "HeunDiscreteScheduler"),
    "dpmpp_2m": Solver("dpmpp_2m", "DPMSolverMultistepScheduler"),
    "dpmpp_2m_sde": Solver(
        "dpmpp_2m_sde",
        "DPMSolverMultistepScheduler",
        options={"algorithm_type": "sde-dpmsolver++"},
        fresh_noise=True,
    ),
}


class Case(NamedTuple):
    """A solver, how it is set, and the data."""

    solver: str
    data: str
    num_steps: int
    zero_terminal_snr: bool = False
    # Stable Diffusion's own: leading steps moved by one, which end at level 1, not at clean data.
    as_stable_diffusion: bool = False

    @property
    def name(self) -> str:
        setting = "zero_snr" if self.zero_terminal_snr else "flawed"
        setting = "stable_diffusion" if self.as_stable_diffusion else setting
        return f"{self.solver}-{setting}-{self.data}-{self.num_steps}"

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_bar of levels 0..T, in float64."""
        return np.append(1.0, oracles.alphas_cumprod("scaled_linear", self.zero_terminal_snr))


def exact_cases() -> list[Case]:
    """Where diffusers does what the textbook says, so that both sides must agree."""
    cases = [
        Case(solver, data, S, zero, as_sd)
        for data in DATA
        for S in STEPS
        for zero, as_sd, solvers in (
            (False, False, [name for name in SOLVERS if name != "heun"]),
            (True, False, ["ddim(eta=0)", "ddim(eta=1)", "ddpm"]),
            (False, True, ["ddim(eta=0)"]),
        )
        for solver in solvers
    ]
    # There diffusers' DDIM is not a number: see `deviations`.
    return [
        c
        for c in cases
        if not (c.solver == "ddim(eta=1)" and c.zero_terminal_snr) or c.num_steps in (5, 50)
    ]


def starts() -> np.ndarray:
    """x_T: 24 numbers, exact in float32, across the standard normal and evenly about 0."""
    return np.arange(-2.875, 3, 0.25, dtype=np.float32)


def posterior_mean(x: Any, alpha: Any, sigma: Any, data: Data, exp: Any) -> Any:
    """E[x0 | x_t], the exact denoiser, with the `exp` of NumPy, JAX or torch."""
    variance = (alpha * data.std) ** 2 + sigma**2
    exponents = [(alpha * m * x - (alpha * m) ** 2 / 2) / variance for m in data.means]
    odds = [w * exp(e - exponents[0]) for w, e in zip(data.weights, exponents)]
    parts = [
        o * oracles.gaussian_x0(x, alpha, sigma, m, data.std) for o, m in zip(odds, data.means)
    ]
    return sum(parts) / sum(odds)


def velocity(x: Any, alpha: Any, sigma: Any, data: Data, exp: Any) -> Any:
    """The v-prediction of the exact denoiser, for sigma > 0."""
    return (alpha * x - posterior_mean(x, alpha, sigma, data, exp)) / sigma
