"""Schedules against Table 1 and Algorithm 1 of the paper."""

import warnings

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsnr_jax import schedules
from zsnr_jax.errors import UsageError

FLOAT32 = 1.2e-7  # relative rounding of a float32, with room for one operation in float64
EVERY_SCHEDULE = [(name, zero) for name in schedules.SCHEDULES for zero in (False, True)]


@pytest.mark.parametrize(
    "name, snr_digits, alpha_digits",
    [
        ("linear", "4.035993e-05", "0.006353"),
        ("scaled_linear", "0.004682", "0.068265"),
    ],
)
def test_terminal_values_are_table_1_to_the_printed_digits(name, snr_digits, alpha_digits):
    schedule = schedules.make_schedule(name)
    snr_format = ".6e" if "e" in snr_digits else ".6f"
    assert format(schedules.snr(schedule)[-1], snr_format) == snr_digits
    assert format(schedule.alpha[-1], ".6f") == alpha_digits


def test_the_cosine_row_of_table_1_is_within_2e_5():
    schedule = schedules.make_schedule("cosine")
    assert schedules.snr(schedule)[-1] == pytest.approx(2.428735e-09, rel=2e-5)
    assert schedule.alpha[-1] == pytest.approx(4.928220e-05, rel=2e-5)


def test_the_cosine_row_of_table_1_comes_from_float32_betas():
    betas = oracles.table_1_betas("cosine").astype(np.float32)
    schedule = schedules.from_betas(betas)
    assert format(schedule.alpha[-1], ".6e") == "4.928220e-05"
    # Half a unit of the last printed digit, and alpha's own rounding twice.
    assert schedules.snr(schedule)[-1] == pytest.approx(2.428735e-09, rel=2.1e-7 + FLOAT32)


@pytest.mark.parametrize("num_steps", [1000, 37])
@pytest.mark.parametrize("name, zero", EVERY_SCHEDULE)
@pytest.mark.filterwarnings("ignore:.*made for 1000 steps")
def test_every_level_is_the_papers(name, zero, num_steps):
    schedule = schedules.make_schedule(name, num_steps, zero)
    abar = oracles.alphas_cumprod(name, zero, num_steps)
    np.testing.assert_allclose(schedule.alpha[1:], np.sqrt(abar), rtol=FLOAT32, atol=0)
    np.testing.assert_allclose(schedule.sigma[1:], np.sqrt(1 - abar), rtol=FLOAT32, atol=0)


@pytest.mark.parametrize("name, zero", EVERY_SCHEDULE)
def test_a_schedule_is_finite_float32_and_monotone_from_clean_data(name, zero):
    schedule = schedules.make_schedule(name, zero_terminal_snr=zero)
    assert schedule.num_steps == 1000
    for array in schedule:
        assert array.dtype == np.float32 and array.shape == (1001,)
        assert np.all(np.isfinite(array))
    assert schedule.alpha[0] == 1.0 and schedule.sigma[0] == 0.0
    assert np.all(np.diff(schedule.alpha) < 0)
    assert np.all(np.diff(schedule.sigma) >= 0) and np.all(schedule.sigma[1:] > 0)
    assert (schedule.alpha[-1] == 0.0) == zero


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_the_mended_end_is_exact_and_the_start_is_kept(name):
    flawed = schedules.make_schedule(name)
    mended = schedules.make_schedule(name, zero_terminal_snr=True)
    assert mended.alpha[-1] == 0.0 and mended.sigma[-1] == 1.0
    assert mended.alpha[1] == flawed.alpha[1] and mended.sigma[1] == flawed.sigma[1]


@pytest.mark.parametrize(
    "name, alphas",
    [
        (
            "scaled_linear",
            {
                1: 0.999575,
                100: 0.942383,
                250: 0.808820,
                500: 0.492300,
                750: 0.182130,
                900: 0.055073,
                990: 0.004528,
                999: 0.000444,
            },
        ),
        ("linear", {250: 0.722173, 500: 0.275733, 750: 0.051861, 900: 0.010302, 999: 0.000065}),
    ],
)
def test_rescaled_schedules_have_the_known_values(name, alphas):
    schedule = schedules.make_schedule(name, zero_terminal_snr=True)
    assert {t: round(float(schedule.alpha[t]), 6) for t in alphas} == alphas


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_rescaling_a_schedule_is_making_it_rescaled(name):
    rescaled = schedules.rescale_zero_terminal_snr(schedules.make_schedule(name))
    made = schedules.make_schedule(name, zero_terminal_snr=True)
    # Near T, alpha is a difference of float32 numbers of size alpha[T], 0.07 at most.
    np.testing.assert_allclose(rescaled.alpha, made.alpha, rtol=FLOAT32, atol=1e-8)
    np.testing.assert_allclose(rescaled.sigma, made.sigma, rtol=3 * FLOAT32, atol=0)
    assert rescaled.alpha[-1] == 0.0


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_rescaling_a_mended_schedule_changes_nothing(name):
    mended = schedules.make_schedule(name, zero_terminal_snr=True)
    again = schedules.rescale_zero_terminal_snr(mended)
    np.testing.assert_allclose(again.alpha, mended.alpha, rtol=FLOAT32, atol=0)
    np.testing.assert_allclose(again.sigma, mended.sigma, rtol=FLOAT32, atol=0)


@given(st.lists(st.floats(1e-4, 0.5), min_size=2, max_size=50))
def test_algorithm_1_holds_for_any_betas(betas):
    schedule = schedules.from_betas(np.array(betas))
    mended = schedules.rescale_zero_terminal_snr(schedule)
    assert mended.alpha[-1] == 0.0
    np.testing.assert_allclose(mended.alpha[1], schedule.alpha[1], rtol=FLOAT32)
    assert np.all(np.isfinite(mended)) and np.all(np.diff(mended.alpha) < 0)
    truth = np.sqrt(np.cumprod(1 - oracles.algorithm_1(np.array(betas))))
    # The rescale stretches the rounding of the float32 schedule that it starts from.
    stretch = schedule.alpha[1] / (schedule.alpha[1] - schedule.alpha[-1])
    np.testing.assert_allclose(mended.alpha[1:], truth, rtol=FLOAT32, atol=2 * FLOAT32 * stretch)


@pytest.mark.parametrize("name, zero", EVERY_SCHEDULE)
def test_to_betas_inverts_from_betas(name, zero):
    schedule = schedules.make_schedule(name, zero_terminal_snr=zero)
    betas = schedules.to_betas(schedule)
    again = schedules.from_betas(betas)
    np.testing.assert_allclose(again.alpha, schedule.alpha, rtol=FLOAT32, atol=0)
    np.testing.assert_allclose(again.sigma, schedule.sigma, rtol=FLOAT32, atol=0)
    if zero:
        assert betas[-1] == 1.0
    else:
        truth = oracles.table_1_betas(name)
        np.testing.assert_allclose(betas, truth, rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_rescaled_betas_end_in_one_minus_k_over_k_plus_one_squared(name):
    betas = schedules.to_betas(schedules.make_schedule(name, zero_terminal_snr=True))
    k = np.arange(5)
    np.testing.assert_allclose(betas[::-1][:5], 1 - (k / (k + 1)) ** 2, atol=0.01)


def test_snr_is_inf_at_clean_data_and_zero_at_the_mended_end():
    schedule = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
    snr, logsnr = schedules.snr(schedule), schedules.logsnr(schedule)
    assert snr[0] == np.inf and snr[-1] == 0.0 and snr.shape == (1001,)
    assert logsnr[0] == np.inf and logsnr[-1] == -np.inf
    abar = oracles.alphas_cumprod("scaled_linear", True)
    np.testing.assert_allclose(snr[1:], abar / (1 - abar), rtol=3 * FLOAT32)
    abar = abar[:-1]
    np.testing.assert_allclose(logsnr[1:-1], np.log(abar / (1 - abar)), atol=3 * FLOAT32)


@pytest.mark.parametrize("name, power", [("linear", 1), ("scaled_linear", 2)])
def test_the_beta_range_can_be_set(name, power):
    schedule = schedules.make_schedule(name, beta_start=0.001, beta_end=0.03)
    betas = np.linspace(0.001 ** (1 / power), 0.03 ** (1 / power), 1000) ** power
    np.testing.assert_allclose(
        schedule.alpha[1:], np.sqrt(np.cumprod(1 - betas)), rtol=FLOAT32, atol=0
    )


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_few_steps_with_betas_made_for_1000_are_warned_of(name):
    with pytest.warns(UserWarning, match="num_steps=250 .*zero_terminal_snr=True"):
        schedules.make_schedule(name, 250)


@pytest.mark.parametrize(
    "name, num_steps, zero",
    [
        ("scaled_linear", 1000, False),
        ("linear", 250, True),
        ("linear", 4000, False),
        ("cosine", 250, False),
    ],
)
def test_no_warning_at_1000_steps_or_with_little_terminal_snr(name, num_steps, zero):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedules.make_schedule(name, num_steps, zero)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "sigmoid"}, "'sigmoid'.*linear, cosine, scaled_linear"),
        ({"name": "linear", "num_steps": 1}, "at least 2 steps.* 1"),
        ({"name": "cosine", "beta_start": 0.1}, "no beta_start"),
        ({"name": "cosine", "beta_end": 0.1}, "no beta_start or beta_end"),
        ({"name": "linear", "beta_start": 0.0}, "beta_start=0.0 "),
        ({"name": "linear", "beta_start": 0.03}, "beta_start=0.03 and beta_end=0.02"),
        ({"name": "scaled_linear", "beta_end": 1.0}, "beta_end=1.0"),
    ],
)
def test_make_schedule_refuses(arguments, message):
    with pytest.raises(UsageError, match=message):
        schedules.make_schedule(**arguments)


@pytest.mark.parametrize(
    "betas", [[[0.1, 0.2]], [0.0, 0.1], [0.1, 1.1], [0.1, float("nan")], [-0.1], []]
)
def test_from_betas_refuses(betas):
    with pytest.raises(UsageError, match="must be one row"):
        schedules.from_betas(np.array(betas))


def test_only_the_last_beta_may_be_one():
    assert schedules.from_betas(np.array([0.1, 1.0])).alpha[-1] == 0.0
    with pytest.raises(UsageError, match="strictly decreasing"):
        schedules.from_betas(np.array([1.0, 0.1]))


@pytest.mark.parametrize(
    "abar",
    [[[0.9, 0.8]], [], [1.0, 0.5], [0.5, 0.5], [0.5, 0.6], [0.5, -0.1], [0.5, float("nan")]],
)
def test_from_alphas_cumprod_refuses(abar):
    with pytest.raises(UsageError, match="alphas_cumprod must be"):
        schedules.from_alphas_cumprod(np.array(abar))
