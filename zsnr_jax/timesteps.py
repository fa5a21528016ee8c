"""Which levels a sampler visits: the paper's three spacings, and two in the log SNR.

Levels count 1..T; T is terminal. The paper's formulas are in floating point, where
`arange(T, 0, -T/S)` has one entry too many for 62 of the values S = 1..1000; here they are
integer arithmetic, and every S from 1 to T gives exactly S levels. Ties round half to even, as
NumPy's `round` does; for 50 values of S of trailing, and 85 of linspace, the floats miss a tie, and
programs that round them visit a level next to ours.

Beyond the paper, `karras` and `uniform_logsnr` space the levels evenly in a function of
sigma/alpha. At zero terminal SNR that ratio is infinite at T, and nothing is clamped: T stands by
itself, as the first level, and the formula spaces the S - 1 others, from the second level, s, down
to level 1. Of what varies over N values with standard deviation tau, a first step to s keeps
1 / sqrt(1 + SNR(s) N tau^2) of the spread at best; so s is a hundredth of T below T, or nearer
where S is above 100. They are for second-order solvers and some 8 steps or more: with fewer, that
short step costs too much, and with two there is nothing to space, and they are trailing's. Where
SNR(T) is not 0, the formula spaces all S from T down to level 1, as it does elsewhere.

Source: arXiv 2305.08891, section 3.3 and Table 2; Karras et al., arXiv 2206.00364, Eq. 5; Lu et
al., arXiv 2206.00927, section 3.3 (uniform in log SNR).
"""

import numpy as np

from zsnr_jax.errors import UsageError
from zsnr_jax.schedules import NoiseSchedule

SPACINGS = ("leading", "linspace", "trailing", "karras", "uniform_logsnr")

_KARRAS_RHO = 7
_LEAST_DIVISION = 100  # the first step from SNR = 0 is at most this part of T


def make_timesteps(
    spacing: str,
    num_train_steps: int,
    num_sample_steps: int,
    schedule: NoiseSchedule | None = None,
    steps_offset: int = 0,
) -> np.ndarray:
    """Choose the levels that a sampler of S steps visits, noisiest first.

    leading         1, 1 + T//S, ... and S of them: never reaches T unless S = T (DDIM's)
    linspace        S evenly spaced levels from T to 1; at S = 1, only T
    trailing        T, T - T/S, ... rounded, down to T/S: wastes no step (the paper's)
    karras          even in (sigma/alpha)^(1/7), rounded to levels without repeats; starts at T
    uniform_logsnr  even in log(alpha/sigma), rounded to levels without repeats; starts at T

    Args:
      spacing: one of `SPACINGS`.
      num_train_steps: T.
      num_sample_steps: S, from 1 to T.
      schedule: of T + 1 levels; karras and uniform_logsnr need it, the others only agree with it.
      steps_offset: added to every level of `leading`; Stable Diffusion's own setting is 1.
    Returns: int32 [S], strictly decreasing, within 1..T.
    Raises: UsageError for an unknown spacing, S out of range, a schedule that is missing or of
      another T, or an offset that would pass T.
    """
    T, S = num_train_steps, num_sample_steps
    if spacing not in SPACINGS:
        raise UsageError(f"spacing {spacing!r} is unknown: choose one of {', '.join(SPACINGS)}.")
    if not 1 <= S <= T:
        raise UsageError(f"the number of sample steps must be from 1 to T = {T}, and it is {S}.")
    if schedule is not None and schedule.num_steps != T:
        raise UsageError(
            f"the schedule has {schedule.num_steps} levels and the timesteps are made for {T}: "
            "make both for the same T."
        )
    if steps_offset and spacing != "leading":
        raise UsageError(
            f"steps_offset={steps_offset} belongs to leading spacing: set it to 0 for {spacing}."
        )
    if spacing == "leading":
        levels = _leading(T, S, steps_offset)
    elif spacing == "linspace":
        steps = max(S - 1, 1)
        levels = _divide_half_even(steps + (T - 1) * np.arange(steps, steps - S, -1), steps)
    elif spacing == "trailing":
        levels = _trailing(T, S)
    elif schedule is None:
        raise UsageError(f"{spacing} spacing needs the schedule: pass schedule=.")
    else:
        levels = _even_in_noise(spacing, schedule, S)
    return levels.astype(np.int32)


def _leading(T: int, S: int, steps_offset: int) -> np.ndarray:
    levels = 1 + T // S * np.arange(S)[::-1] + steps_offset
    if not 1 <= levels[-1] <= levels[0] <= T:
        raise UsageError(
            f"leading spacing with {S} steps and steps_offset={steps_offset} spans levels "
            f"{levels[-1]}..{levels[0]}, outside 1..{T}: change the offset."
        )
    return levels


def _trailing(T: int, S: int) -> np.ndarray:
    return _divide_half_even(T * np.arange(S, 0, -1), S)


def _divide_half_even(numerator: np.ndarray, denominator: int) -> np.ndarray:
    quotient, remainder = np.divmod(numerator, denominator)
    round_up = (2 * remainder > denominator) | (
        (2 * remainder == denominator) & (quotient % 2 == 1)
    )
    return quotient + round_up


def _even_in_noise(spacing: str, schedule: NoiseSchedule, S: int) -> np.ndarray:
    """karras and uniform_logsnr. T comes first by itself where its sigma/alpha is infinite."""
    T = schedule.num_steps
    first = [T] if schedule.alpha[T] == 0 else []
    if first and S <= 2:
        return _trailing(T, S)  # nothing is left to space
    highest = _trailing(T, max(S, min(T, _LEAST_DIVISION)))[1] if first else T
    alpha, sigma = (np.asarray(side, np.float64)[1 : highest + 1] for side in schedule)
    ratio = sigma / alpha
    measure = ratio ** (1 / _KARRAS_RHO) if spacing == "karras" else np.log(ratio)
    even = np.linspace(measure[-1], measure[0], S - len(first))
    nearest = np.rint(np.interp(even, measure, np.arange(1, highest + 1)))
    return _without_repeats(np.append(first, nearest))


def _without_repeats(levels: np.ndarray) -> np.ndarray:
    """Move equal neighbours apart: down where there is room below, else up."""
    place = np.arange(len(levels))
    levels = np.maximum(levels, len(levels) - place)  # leaves room for those that follow
    return np.minimum.accumulate(levels + place) - place
