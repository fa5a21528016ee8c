"""Sample steps against Table 2 of the paper, in exact rational arithmetic."""

import numpy as np
import oracles
import pytest

from zsnr_jax.errors import UsageError
from zsnr_jax.timesteps import SPACINGS, make_timesteps


@pytest.mark.parametrize(
    "spacing, levels",
    [
        ("leading", [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]),
        ("linspace", [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]),
        ("trailing", [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]),
    ],
)
def test_table_2_literally(spacing, levels):
    assert make_timesteps(spacing, 1000, 10).tolist() == levels[::-1]


@pytest.mark.parametrize("T", [1000, 250, 37, 2, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_gives_that_many_decreasing_levels(spacing, T):
    for S in range(1, T + 1):
        levels = make_timesteps(spacing, T, S)
        assert levels.dtype == np.int32 and levels.shape == (S,), S
        assert np.all(np.diff(levels) < 0) and levels[-1] >= 1 and levels[0] <= T, S
        assert spacing == "leading" or levels[0] == T, S


@pytest.mark.parametrize("T", [1000, 250, 37, 2])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_level_is_the_exact_one_rounded_half_to_even(spacing, T):
    # Of the 1000 values of S, every seventh, and those where floating point or halves mislead.
    chosen = {*range(1, T + 1, 7 if T == 1000 else 1), 15, 16, 30, 61, 103, 208, 240, 500, T}
    for S in (S for S in chosen if S <= T):
        assert make_timesteps(spacing, T, S).tolist() == oracles.table_2(spacing, T, S), S


def test_ties_go_to_the_even_level():
    levels = make_timesteps("trailing", 1000, 16)  # 62.5 and 812.5 are ties
    assert {62, 188, 812, 938} <= set(levels.tolist())


@pytest.mark.parametrize("S", [1, 2, 5, 10, 50, 1000])
def test_leading_starts_one_stride_short_of_the_end(S):
    assert make_timesteps("leading", 1000, S)[0] == 1000 - 1000 // S + 1


def test_stable_diffusions_own_setting_is_leading_with_offset_1():
    timesteps = make_timesteps("leading", 1000, 50, steps_offset=1) - 1  # as networks are told
    assert timesteps.tolist() == list(range(981, 0, -20))


@pytest.mark.parametrize(
    "arguments, offset, message",
    [
        (("middle", 1000, 10), 0, "'middle'.*leading, linspace, trailing"),
        (("trailing", 1000, 0), 0, "from 1 to T = 1000, and it is 0"),
        (("trailing", 1000, 1001), 0, "from 1 to T = 1000, and it is 1001"),
        (("trailing", 1000, 10), 1, "steps_offset=1 belongs to leading spacing, not trailing"),
        (("leading", 1000, 1000), 1, "steps_offset=1 spans levels 2..1001, outside 1..1000"),
        (("leading", 1000, 10), -1, "steps_offset=-1 spans levels 0..900, outside 1..1000"),
    ],
)
def test_make_timesteps_refuses(arguments, offset, message):
    with pytest.raises(UsageError, match=message):
        make_timesteps(*arguments, steps_offset=offset)
