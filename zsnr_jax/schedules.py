"""Noise schedules, and their rescale to zero terminal SNR.

A schedule is the pair of arrays in x_t = alpha[t] x0 + sigma[t] eps with alpha^2 + sigma^2 = 1.
Level 0 is clean data, levels 1..T are the paper's timesteps, and T is terminal. Everything here is
NumPy float64 on the host; the result is cast to float32 once, at the end. Both arrays are finite
at every level, so that nothing downstream needs a clamp: at SNR = 0, alpha is exactly 0.

Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), section
3.1, Algorithm 1 and Table 1. Where it prints the cosine schedule over (t-1)/(T-1), the numbers of
its own Table 1 come from the grid t/T of Nichol and Dhariwal (arXiv 2102.09672), used here.
"""

import warnings
from typing import NamedTuple

import numpy as np

from zsnr_jax.errors import UsageError

SCHEDULES = ("linear", "cosine", "scaled_linear")
MAX_STEPS = 10**6  # a thousand times what anyone trains with; more would only take memory

# beta_1 and beta_T of DDPM (linear) and Stable Diffusion (scaled_linear), both made for T = 1000.
BETA_RANGE = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
_COSINE_OFFSET = 0.008
_COSINE_MAX_BETA = 0.999
# Above this, a start from pure noise visibly disagrees with what the network was trained on.
_TERMINAL_SNR_WORTH_A_WARNING = 1e-4


class NoiseSchedule(NamedTuple):
    """x_t = alpha[t] x0 + sigma[t] eps for the levels t = 0..T; a pytree of two arrays."""

    alpha: np.ndarray  # float32 [T+1], from 1 at level 0 strictly down, 0 at T where SNR(T) = 0
    sigma: np.ndarray  # float32 [T+1], sqrt(1 - alpha^2), from 0 at level 0

    @property
    def num_steps(self) -> int:
        """T, the terminal level."""
        return self.alpha.shape[0] - 1


def make_schedule(
    name: str,
    num_steps: int = 1000,
    zero_terminal_snr: bool = False,
    beta_start: float | None = None,
    beta_end: float | None = None,
) -> NoiseSchedule:
    """Make a schedule of Table 1 of the paper, flawed or mended.

    Args:
      name: `linear` (DDPM), `scaled_linear` (Stable Diffusion) or `cosine` (improved DDPM).
      num_steps: T, 2 to 10^6.
      zero_terminal_snr: make alpha[T] exactly 0. `linear` and `scaled_linear` are rescaled by
        Algorithm 1; `cosine` drops the clip on beta that alone kept its end above 0.
      beta_start, beta_end: beta_1 and beta_T in (0, 1), for the two linear schedules only.
    Returns: the schedule, T + 1 levels.
    Raises: UsageError for an unknown name or a value out of range. Warns where a T other than 1000
      leaves SNR(T) above 1e-4, since the betas' endpoints are made for 1000 steps.
    """
    if name not in SCHEDULES:
        raise UsageError(
            f"schedule name {name!r} is unknown: choose one of {', '.join(SCHEDULES)}."
        )
    if not 2 <= num_steps <= MAX_STEPS:
        raise UsageError(
            f"a schedule needs at least 2 steps and at most {MAX_STEPS}, and num_steps is "
            f"{num_steps}."
        )
    if name == "cosine":
        if beta_start is not None or beta_end is not None:
            raise UsageError("the cosine schedule has no beta_start or beta_end: leave both unset.")
        alphas_cumprod = _cosine_alphas_cumprod(num_steps, clip=not zero_terminal_snr)
    else:
        alphas_cumprod = np.cumprod(1.0 - _linear_betas(name, num_steps, beta_start, beta_end))
        if zero_terminal_snr:
            alphas_cumprod = _rescale(np.sqrt(alphas_cumprod)) ** 2
    schedule = from_alphas_cumprod(alphas_cumprod)
    terminal_snr = float(snr(schedule)[-1])
    if num_steps != 1000 and terminal_snr > _TERMINAL_SNR_WORTH_A_WARNING:
        warnings.warn(
            f"{name} with num_steps={num_steps} ends at SNR(T) = {terminal_snr:.2g}, far from pure "
            "noise: its betas are made for 1000 steps; set zero_terminal_snr=True.",
            stacklevel=2,
        )
    return schedule


def from_betas(betas: np.ndarray) -> NoiseSchedule:
    """Make a schedule from beta_1..beta_T, [T], each in (0, 1], of which only the last may be 1.

    alpha_t = sqrt(prod_{s<=t} (1 - beta_s)), the product taken in float64.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not (np.all(betas > 0) and np.all(betas <= 1)):
        raise UsageError("betas must be one row of values in (0, 1].")
    return from_alphas_cumprod(np.cumprod(1.0 - betas))


def from_alphas_cumprod(alphas_cumprod: np.ndarray) -> NoiseSchedule:
    """Make a schedule from alpha_bar_1..alpha_bar_T, [T], strictly decreasing within [0, 1).

    A last value of 0 means zero terminal SNR. Level 0, clean data, is put in front.
    """
    alphas_cumprod = np.asarray(alphas_cumprod, np.float64)
    if (
        alphas_cumprod.ndim != 1
        or alphas_cumprod.size == 0
        or not np.all(np.diff(alphas_cumprod, prepend=1.0) < 0)
        or alphas_cumprod[-1] < 0
    ):
        raise UsageError(
            "alphas_cumprod must be one row of strictly decreasing values below 1, the last of "
            "them 0 or more."
        )
    alphas_cumprod = np.concatenate([[1.0], alphas_cumprod])
    return NoiseSchedule(
        np.sqrt(alphas_cumprod).astype(np.float32),
        np.sqrt(1.0 - alphas_cumprod).astype(np.float32),
    )


def rescale_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """Shift and scale alpha so that alpha[T] is exactly 0 and alpha[1] is kept.

    alpha_t <- (alpha_t - alpha_T) alpha_1 / (alpha_1 - alpha_T) for t >= 1     (Algorithm 1)

    A schedule that already ends at 0 comes back unchanged.
    """
    return from_alphas_cumprod(_rescale(_alpha_float64(schedule)[1:]) ** 2)


def to_betas(schedule: NoiseSchedule) -> np.ndarray:
    """The betas of a schedule, float64 [T]; the inverse of `from_betas`.

    beta_t = 1 - (alpha_t / alpha_{t-1})^2, which is 1 at T where SNR(T) = 0.
    """
    alpha = _alpha_float64(schedule)
    sigma = _sigma_float64(schedule)
    # The difference of squares is taken from whichever of the two is small: no cancellation.
    drop = np.where(
        alpha[:-1] > sigma[:-1],
        sigma[1:] ** 2 - sigma[:-1] ** 2,
        alpha[:-1] ** 2 - alpha[1:] ** 2,
    )
    return drop / alpha[:-1] ** 2


def snr(schedule: NoiseSchedule) -> np.ndarray:
    """alpha^2 / sigma^2 per level, float64 [T+1]: inf at level 0, 0 at T where alpha[T] is 0."""
    with np.errstate(divide="ignore"):
        return _alpha_float64(schedule) ** 2 / _sigma_float64(schedule) ** 2


def logsnr(schedule: NoiseSchedule) -> np.ndarray:
    """log SNR per level, float64 [T+1], for pictures: inf at level 0, -inf where SNR is 0."""
    with np.errstate(divide="ignore"):
        return np.log(snr(schedule))


def _linear_betas(
    name: str, num_steps: int, beta_start: float | None, beta_end: float | None
) -> np.ndarray:
    default_start, default_end = BETA_RANGE[name]
    start = default_start if beta_start is None else beta_start
    end = default_end if beta_end is None else beta_end
    if not 0 < start <= end < 1:
        raise UsageError(
            f"beta_start={start} and beta_end={end} must satisfy 0 < beta_start <= beta_end < 1."
        )
    if name == "linear":
        return np.linspace(start, end, num_steps)
    return np.linspace(np.sqrt(start), np.sqrt(end), num_steps) ** 2


def _cosine_alphas_cumprod(num_steps: int, clip: bool) -> np.ndarray:
    grid = np.arange(num_steps + 1) / num_steps
    f = np.cos((grid + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * np.pi / 2) ** 2
    if clip:
        return np.cumprod(1.0 - np.minimum(1.0 - f[1:] / f[:-1], _COSINE_MAX_BETA))
    alphas_cumprod = f[1:] / f[0]
    alphas_cumprod[-1] = 0.0  # cos(pi/2) is 0; in floating point it is only nearly so
    return alphas_cumprod


def _rescale(alpha: np.ndarray) -> np.ndarray:
    """Algorithm 1 on alpha_1..alpha_T, float64 [T]; x - x makes the last one exactly 0."""
    first, last = alpha[0], alpha[-1]
    return (alpha - last) * (first / (first - last))


def _alpha_float64(schedule: NoiseSchedule) -> np.ndarray:
    """alpha to more digits than float32 alpha holds near 1, where sigma still has them."""
    alpha, sigma = (np.asarray(x, np.float64) for x in schedule)
    return np.where(sigma < alpha, np.sqrt(1.0 - np.minimum(sigma, 1.0) ** 2), alpha)


def _sigma_float64(schedule: NoiseSchedule) -> np.ndarray:
    alpha, sigma = (np.asarray(x, np.float64) for x in schedule)
    return np.where(sigma < alpha, sigma, np.sqrt(1.0 - np.minimum(alpha, 1.0) ** 2))
