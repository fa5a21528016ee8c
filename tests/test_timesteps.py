"""Sample steps against Table 2 of the paper, in exact rational arithmetic."""

import numpy as np
import oracles
import pytest

from zsnr_jax import schedules
from zsnr_jax.errors import UsageError
from zsnr_jax.timesteps import SPACINGS, make_timesteps

TABLE_2 = ("leading", "linspace", "trailing")
EVEN = {"karras": lambda ratio: ratio ** (1 / 7), "uniform_logsnr": np.log}  # in sigma/alpha


def schedule(T=1000, zero_terminal_snr=True, name="scaled_linear"):
    return schedules.make_schedule(name, T, zero_terminal_snr)


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


@pytest.mark.parametrize("zero_terminal_snr", [True, False])
@pytest.mark.parametrize("T", [1000, 250, 37, 2])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_gives_that_many_decreasing_levels(spacing, T, zero_terminal_snr):
    for S in range(1, T + 1):
        levels = make_timesteps(spacing, T, S, schedule(T, zero_terminal_snr))
        assert levels.dtype == np.int32 and levels.shape == (S,), S
        assert np.all(np.diff(levels) < 0) and levels[-1] >= 1 and levels[0] <= T, S
        assert spacing == "leading" or levels[0] == T, S


@pytest.mark.parametrize("T", [1000, 250, 37, 2])
@pytest.mark.parametrize("spacing", TABLE_2)
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


# Beyond the paper: even in a function of sigma/alpha, which is infinite at T.


@pytest.mark.parametrize("S", [3, 5, 10, 25])
@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("spacing", EVEN)
def test_all_but_T_are_even_from_a_hundredth_below_it_to_the_first(spacing, name, S):
    levels = make_timesteps(spacing, 1000, S, schedule(name=name))
    assert levels[:2].tolist() == [1000, 990] and levels[-1] == 1
    _assert_even(spacing, levels[1:], oracles.alphas_cumprod(name, zero_terminal_snr=True))


@pytest.mark.parametrize("spacing", EVEN)
@pytest.mark.parametrize(
    "T, S, first",
    [(1000, 125, [1000, 992]), (1000, 2, [1000, 500]), (1000, 1, [1000]), (50, 9, [50, 49])],
)
def test_the_first_step_is_short_whatever_T_and_S(spacing, T, S, first):
    assert make_timesteps(spacing, T, S, schedule(T))[:2].tolist() == first


@pytest.mark.parametrize("spacing", EVEN)
def test_all_are_even_where_the_terminal_snr_is_not_zero(spacing):
    levels = make_timesteps(spacing, 1000, 10, schedule(zero_terminal_snr=False))
    assert levels[0] == 1000 and levels[-1] == 1
    _assert_even(spacing, levels, oracles.alphas_cumprod("scaled_linear", zero_terminal_snr=False))


def _assert_even(spacing, levels, abar):
    """Every level is, but for repeats, the nearest to its even share."""
    even = EVEN[spacing](np.sqrt(1 / abar[: levels[0]] - 1))
    wanted = np.linspace(even[levels[0] - 1], even[levels[-1] - 1], len(levels))
    for level, value in zip(levels, wanted):
        nearest = 1 + np.argmin(np.abs(even - value))
        assert abs(level - nearest) <= 1 or level < 2 * len(levels)


def test_karras_on_stable_diffusions_own_schedule_is_edms_formula():
    levels = make_timesteps("karras", 1000, 8, schedule(zero_terminal_snr=False))
    sigma = np.sqrt(1 / oracles.alphas_cumprod("scaled_linear", zero_terminal_snr=False) - 1)
    most, least = sigma[-1] ** (1 / 7), sigma[0] ** (1 / 7)
    edm = (most + np.arange(8) / 7 * (least - most)) ** 7
    np.testing.assert_allclose(sigma[levels - 1], edm, rtol=0.02)


@pytest.mark.parametrize(
    "arguments, offset, message",
    [
        (("middle", 1000, 10), 0, "'middle'.*leading, linspace, trailing"),
        (("trailing", 1000, 0), 0, "from 1 to T = 1000, and it is 0"),
        (("trailing", 1000, 1001), 0, "from 1 to T = 1000, and it is 1001"),
        (
            ("trailing", 1000, 10),
            1,
            "steps_offset=1 belongs to leading spacing: set it to 0 for trailing",
        ),
        (("leading", 1000, 1000), 1, "steps_offset=1 spans levels 2..1001, outside 1..1000"),
        (("leading", 1000, 10), -1, "steps_offset=-1 spans levels 0..900, outside 1..1000"),
        (("karras", 1000, 10), 0, "karras spacing needs the schedule: pass schedule="),
        (("karras", 500, 10, schedule()), 0, "has 1000 levels.*timesteps are made for 500"),
        (("trailing", 500, 10, schedule()), 0, "has 1000 levels.*timesteps are made for 500"),
    ],
)
def test_make_timesteps_refuses(arguments, offset, message):
    with pytest.raises(UsageError, match=message):
        make_timesteps(*arguments, steps_offset=offset)
