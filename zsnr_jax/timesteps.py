"""Which levels a sampler visits: leading, linspace or trailing.

Levels count 1..T; T is terminal. The paper's formulas are in floating point, where
`arange(T, 0, -T/S)` has one entry too many for 62 of the values S = 1..1000; here they are
integer arithmetic, and every S from 1 to T gives exactly S levels. Ties round half to even, as
NumPy's `round` does.

Source: arXiv 2305.08891, section 3.3 and Table 2.
"""

import numpy as np

from zsnr_jax.errors import UsageError

SPACINGS = ("leading", "linspace", "trailing")


def make_timesteps(
    spacing: str, num_train_steps: int, num_sample_steps: int, *, steps_offset: int = 0
) -> np.ndarray:
    """Choose the levels that a sampler of S steps visits, noisiest first.

    leading    1, 1 + T//S, ... and S of them: never reaches T unless S = T (DDIM, Stable Diffusion)
    linspace   S evenly spaced levels from T to 1; at S = 1, only T
    trailing   T, T - T/S, ... rounded, down to T/S: starts at T and wastes no step (the paper's)

    Args:
      spacing: one of `SPACINGS`.
      num_train_steps: T.
      num_sample_steps: S, from 1 to T.
      steps_offset: added to every level of `leading`; Stable Diffusion's own setting is 1.
    Returns: int32 [S], strictly decreasing, within 1..T.
    Raises: UsageError for an unknown spacing, S out of range, or an offset that would pass T.
    """
    T, S = num_train_steps, num_sample_steps
    if spacing not in SPACINGS:
        raise UsageError(f"spacing {spacing!r} is unknown: choose one of {', '.join(SPACINGS)}.")
    if not 1 <= S <= T:
        raise UsageError(f"the number of sample steps must be from 1 to T = {T}, and it is {S}.")
    if steps_offset and spacing != "leading":
        raise UsageError(f"steps_offset={steps_offset} belongs to leading spacing, not {spacing}.")
    if spacing == "leading":
        levels = 1 + T // S * np.arange(S)[::-1] + steps_offset
    elif spacing == "linspace":
        steps = max(S - 1, 1)
        levels = _divide_half_even(steps + (T - 1) * np.arange(steps, steps - S, -1), steps)
    else:
        levels = _divide_half_even(T * np.arange(S, 0, -1), S)
    if not 1 <= levels[-1] <= levels[0] <= T:
        raise UsageError(
            f"leading spacing with {S} steps and steps_offset={steps_offset} spans levels "
            f"{levels[-1]}..{levels[0]}, outside 1..{T}: change the offset."
        )
    return levels.astype(np.int32)


def _divide_half_even(numerator: np.ndarray, denominator: int) -> np.ndarray:
    quotient, remainder = np.divmod(numerator, denominator)
    round_up = (2 * remainder > denominator) | (
        (2 * remainder == denominator) & (quotient % 2 == 1)
    )
    return quotient + round_up
