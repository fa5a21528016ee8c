"""Our samplers against torch diffusers, live. Skipped where it is not installed:

pip install -e ".[test,parity]" && python -m pytest tests/parity
"""
# pyright: reportMissingImports=false

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from parity import cases, deviations, diffusers_timesteps, make_golden, ours
from parity.diffusers_samplers import PATCHED_ALPHA_BAR, run

from zsnr_jax import schedules

INF = float("inf")  # stands for a difference that is not finite

# The largest difference between diffusers and us after the first update, and at the end, to two
# digits. Each is held from below as well, so that a test fails on the day that diffusers is mended.
SIZES = {
    "patched-euler-zero_snr-gaussian-5": (2.9e-4, 3.7e-5),
    "patched-euler-zero_snr-gaussian-50": (2.3e-4, 6.0e-5),
    "patched-euler-zero_snr-mixture-5": (1.6e-4, 1.7e-4),
    "patched-euler-zero_snr-mixture-50": (1.0e-4, 1.8e-4),
    "patched-euler_ancestral-zero_snr-gaussian-5": (5.3e-3, 6.5e-5),
    "patched-euler_ancestral-zero_snr-gaussian-50": (7.6e-2, 6.4e-5),
    "patched-euler_ancestral-zero_snr-mixture-5": (5.3e-3, 8.4e-4),
    "patched-euler_ancestral-zero_snr-mixture-50": (7.6e-2, 8.3e-4),
    "patched-dpmpp_2m-zero_snr-gaussian-5": (3.1e-4, 1.3e-4),
    "patched-dpmpp_2m-zero_snr-gaussian-50": (2.3e-4, 6.3e-5),
    "patched-dpmpp_2m-zero_snr-mixture-5": (1.9e-4, 2.3e-3),
    "patched-dpmpp_2m-zero_snr-mixture-50": (1.0e-4, 1.5e-4),
    "patched-dpmpp_2m_sde-zero_snr-gaussian-5": (5.3e-3, 6.6e-5),
    "patched-dpmpp_2m_sde-zero_snr-gaussian-50": (7.6e-2, 6.4e-5),
    "patched-dpmpp_2m_sde-zero_snr-mixture-5": (5.3e-3, 3.0e-3),
    "patched-dpmpp_2m_sde-zero_snr-mixture-50": (7.6e-2, 7.4e-4),
    "stride-ddim(eta=0)-zero_snr-gaussian-30": (0, 1.3e-2),
    "stride-ddim(eta=0)-zero_snr-gaussian-60": (4.4e-4, 8.4e-2),
    "stride-ddim(eta=0)-zero_snr-gaussian-61": (0, 3.3e-2),
    "not_a_number-ddim(eta=1)-zero_snr-gaussian-10": (INF, INF),
    "not_a_number-ddim(eta=1)-zero_snr-gaussian-25": (INF, INF),
    "heun_variable-heun-flawed-gaussian-5": (4.0e-3, 1.5e-2),
    "heun_variable-heun-flawed-gaussian-50": (0, 6.1e-3),
    "heun_variable-heun-flawed-mixture-5": (3.4e-2, 0.16),
    "heun_variable-heun-flawed-mixture-50": (0, 5.8e-3),
    "heun_patched-heun-zero_snr-gaussian-5": (1.3, 0.19),
    "heun_patched-heun-zero_snr-gaussian-50": (4.8e-4, 6.4e-3),
    "heun_patched-heun-zero_snr-mixture-5": (11, 1.6),
    "heun_patched-heun-zero_snr-mixture-50": (3.1e-3, 7.0e-3),
    "heun_infinite-heun-zero_snr-gaussian-50": (INF, INF),
    "start-euler-flawed-gaussian-50": (6.7e-3, 1.8e-3),
    "start-euler-flawed-mixture-50": (6.7e-3, 2.1e-3),
    "last_noise-ddim(eta=1)-stable_diffusion-gaussian-50": (0, 3.7e-2),
}
EXACT = cases.exact_cases()
ROWS = {row.name: row for row in deviations.deviations()}


@pytest.fixture(scope="module")
def live():
    return make_golden.golden()


@pytest.fixture(scope="module")
def stored():
    return json.loads(make_golden.PATH.read_text())


def tolerance(case):
    return cases.TOLERANCE[case.data]


def is_nan_here(case, live):
    """Whether diffusers' first step is NaN: at which S a root is rounded up, processors differ."""
    at_zero = case.solver == "ddim(eta=1)" and case.zero_terminal_snr
    return at_zero and case.num_steps in live["timesteps"]["not_a_number"]


def skip_where_diffusers_is_fine(name, live):
    if ROWS[name].cause == "not_a_number" and not is_nan_here(ROWS[name].case, live):
        pytest.skip("diffusers has a number here, on this processor")


# Where diffusers does what the textbook says.


@pytest.mark.parametrize("index", range(len(EXACT)), ids=[case.name for case in EXACT])
def test_samples_agree(index, live):
    if is_nan_here(EXACT[index], live):
        pytest.skip("diffusers is NaN here, on this processor")
    theirs = live["cases"][index]["x_0"]
    np.testing.assert_allclose(ours.end(EXACT[index]), theirs, rtol=0, atol=tolerance(EXACT[index]))


# Where it does not.


def rows_of(live):
    return dict(zip(ROWS, live["deviations"], strict=True))


@pytest.mark.parametrize("name", ROWS)
def test_the_deviation_is_as_large_as_it_was(name, live):
    skip_where_diffusers_is_fine(name, live)
    row, least = rows_of(live)[name], tolerance(ROWS[name].case)
    for place, size in zip(("first_update", "end"), SIZES[name], strict=True):
        difference = INF if row[place]["difference"] is None else row[place]["difference"]
        assert 0.8 * size <= difference <= max(1.25 * size, least)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.closed_form == "limit"])
def test_the_closed_form_is_ours(name, live):
    skip_where_diffusers_is_fine(name, live)
    row, case = rows_of(live)[name], ROWS[name].case
    assert row["end"]["closer"] == "zsnr_jax"
    assert max(row[place]["zsnr_jax"] for place in ("first_update", "end")) <= tolerance(case)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.cause == "patched"])
def test_two_to_the_minus_24_is_the_whole_difference(name):
    case = ROWS[name].case
    abar = case.alphas_cumprod[1:].copy()
    abar[-1] = PATCHED_ALPHA_BAR
    as_they_do = ours.end(case, believed=schedules.from_alphas_cumprod(abar))
    # Euler's own step of 4096 in sigma/alpha, in float32, costs a little more: 9e-6 at most.
    theirs = run(case, ours.noise).end
    np.testing.assert_allclose(as_they_do, theirs, rtol=0, atol=3 * tolerance(case))


@pytest.mark.parametrize("S, mean", [(30, 0.8970), (60, 0.8861), (61, 0.8920)])
def test_ddims_stride_loses_the_mean(S, mean, live):
    row = rows_of(live)[f"stride-ddim(eta=0)-zero_snr-gaussian-{S}"]["mean"]
    assert row["diffusers"] == pytest.approx(mean, abs=1e-4)
    assert row["zsnr_jax"] == pytest.approx(row["exact"], abs=1e-6)


def test_heun_in_sigma_over_alpha_has_no_limit_and_ours_has(live):
    for data, worst in (("gaussian", 1e-5), ("mixture", 1e-3)):
        row = rows_of(live)[f"heun_patched-heun-zero_snr-{data}-5"]["first_update"]
        assert row["zsnr_jax"] < worst < 1 < row["diffusers"]


# Timesteps.


@pytest.mark.parametrize("solver", diffusers_timesteps.SOLVERS)
def test_trailing_timesteps_are_ours_but_for_an_extra_entry_or_a_tie(solver, stored):
    found = diffusers_timesteps.trailing(solver)
    assert found == {key: stored["timesteps"][key] for key in found}
    assert len(found["extra_entry"]) == 62


# The file.


def test_the_file_is_what_diffusers_gives(live, stored):
    assert stored.keys() == live.keys()
    assert live["noise_at_T"] == pytest.approx(stored["noise_at_T"], abs=1e-6)
    for key in stored.keys() - {"versions", "noise_at_T", "cases", "deviations", "timesteps"}:
        assert stored[key] == live[key], key
    of_both = [{**file["timesteps"], "not_a_number": None} for file in (stored, live)]
    assert of_both[0] == of_both[1] and live["timesteps"]["not_a_number"]
    for case, old, new in zip(EXACT, stored["cases"], live["cases"], strict=True):
        if not is_nan_here(case, live):
            # As exact as float32 is: the processor that stored them may have rounded otherwise.
            np.testing.assert_allclose(new["x_0"], old["x_0"], rtol=0, atol=tolerance(case))
        assert {**new, "x_0": None} == {**old, "x_0": None}
    for deviation, old, new in zip(
        ROWS.values(), map(flat, stored["deviations"]), map(flat, live["deviations"]), strict=True
    ):
        assert new.keys() == old.keys()
        if deviation.cause == "not_a_number" and not is_nan_here(deviation.case, live):
            continue
        for key, value in old.items():
            about = pytest.approx(value, rel=0.05, abs=2e-6) if type(value) is float else value
            assert new[key] == about, key


def flat(row):
    """A row of a table, with all that is inside others beside them."""
    pairs = {}
    for key, value in row.items():
        inside = flat(value) if isinstance(value, dict) else None
        pairs |= {f"{key}.{k}": v for k, v in inside.items()} if inside else {key: value}
    return pairs
