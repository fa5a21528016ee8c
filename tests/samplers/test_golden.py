"""Our samplers against what torch diffusers gave, where there is no torch: see tests/parity.

Where diffusers does what the textbook says, our samples are its samples. Where it does not, ours
are the closed form, and the file says how far diffusers is from it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from parity import cases, deviations, ours

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "diffusers_samplers.json").read_text())
ROWS = {row.name: row for row in deviations.deviations()}
STORED = dict(zip(ROWS, GOLDEN["deviations"], strict=True))
WITH_A_CLOSED_FORM = [name for name, row in ROWS.items() if row.closed_form]


def case_of(stored):
    return cases.Case(**{field: stored[field] for field in cases.Case._fields})


def test_the_file_holds_every_case_and_every_row():
    assert [case_of(stored) for stored in GOLDEN["cases"]] == cases.exact_cases()
    assert [case_of(row) for row in STORED.values()] == [row.case for row in ROWS.values()]
    assert {row["cause"] for row in STORED.values()} == GOLDEN["causes"].keys()


def test_starts_noise_and_data_are_the_files():
    np.testing.assert_array_equal(cases.starts(), np.float32(GOLDEN["x_T"]))
    np.testing.assert_allclose(ours.noise(1000), GOLDEN["noise_at_T"], atol=1e-6)
    assert GOLDEN["data"] == json.loads(json.dumps({k: d._asdict() for k, d in cases.DATA.items()}))


@pytest.mark.parametrize("stored", GOLDEN["cases"], ids=lambda stored: case_of(stored).name)
def test_our_samples_are_those_of_diffusers(stored):
    tolerance = cases.TOLERANCE[stored["data"]]
    np.testing.assert_allclose(ours.end(case_of(stored)), stored["x_0"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", WITH_A_CLOSED_FORM)
def test_where_diffusers_deviates_we_have_the_closed_form(name):
    row, stored = ROWS[name], STORED[name]
    tolerance = cases.TOLERANCE[row.case.data]
    found = deviations.errors(row, ours.first_update(row.case), ours.end(row.case))
    for place in deviations.Errors._fields:
        # Heun's formula is approximate, and its error is what it was; others have none.
        expected = stored[place]["zsnr_jax"] if row.closed_form == "flow" else 0
        assert getattr(found, place) == pytest.approx(expected, rel=0.02, abs=tolerance)


@pytest.mark.parametrize("name", [name for name, row in STORED.items() if row["mean"]])
def test_our_means_are_exact(name):
    assert np.mean(ours.end(ROWS[name].case)) == pytest.approx(0.9, abs=1e-6)
