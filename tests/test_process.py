"""The one record of the diffusion process."""

import dataclasses
import json

import numpy as np
import pytest

from zsnr_jax import schedules
from zsnr_jax.errors import UsageError
from zsnr_jax.process import DiffusionProcess

MENDED = DiffusionProcess()
RECORDS = [
    MENDED,
    DiffusionProcess(zero_terminal_snr=False, prediction="eps"),
    DiffusionProcess("linear", 20, True, "x0", beta_start=0.001, beta_end=0.5),
    DiffusionProcess("cosine", 100, prediction="v"),
]


def test_the_default_is_the_papers_method():
    assert MENDED.to_dict() == {
        "schedule": "scaled_linear",
        "num_steps": 1000,
        "zero_terminal_snr": True,
        "prediction": "v",
        "beta_start": None,
        "beta_end": None,
    }


@pytest.mark.parametrize("process", RECORDS)
def test_a_record_survives_json(process):
    assert DiffusionProcess.from_dict(json.loads(json.dumps(process.to_dict()))) == process


@pytest.mark.parametrize("process", RECORDS)
def test_the_arrays_are_those_of_make_schedule(process):
    made = schedules.make_schedule(
        process.schedule,
        process.num_steps,
        process.zero_terminal_snr,
        process.beta_start,
        process.beta_end,
    )
    np.testing.assert_array_equal(process.noise_schedule, made)
    assert process.noise_schedule.num_steps == process.num_steps


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_prediction_and_zero_terminal_snr_are_two_settings(prediction, zero):
    process = DiffusionProcess(prediction=prediction, zero_terminal_snr=zero)
    assert (process.noise_schedule.alpha[-1] == 0) == zero


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prediction": "eps"}, "eps-prediction cannot be used with zero terminal SNR"),
        ({"prediction": "score"}, "'score' is unknown: choose one of v, x0, eps"),
        ({"schedule": "sigmoid"}, "'sigmoid' is unknown"),
        ({"num_steps": 1}, "at least 2 steps"),
        ({"beta_start": 0.5}, "beta_start=0.5 and beta_end=0.012"),
    ],
)
def test_a_bad_record_is_refused_when_made(fields, message):
    with pytest.raises(UsageError, match=message):
        DiffusionProcess(**fields)
    with pytest.raises(UsageError, match=message):
        DiffusionProcess.from_dict(DiffusionProcess().to_dict() | fields)


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MENDED.prediction = "x0"  # pyright: ignore[reportAttributeAccessIssue]


def test_an_unknown_field_is_named():
    with pytest.raises(UsageError, match="differ in shift: use"):
        DiffusionProcess.from_dict({**MENDED.to_dict(), "shift": 3.0})


def test_equal_records_agree():
    MENDED.require_same(DiffusionProcess(), "the config", "the checkpoint")


@pytest.mark.parametrize(
    "change, theirs, ours",
    [
        ({"prediction": "x0"}, "prediction='x0'", "prediction='v'"),
        ({"zero_terminal_snr": False}, "zero_terminal_snr=False", "zero_terminal_snr=True"),
        ({"num_steps": 999}, "num_steps=999", "num_steps=1000"),
        ({"beta_end": 0.013}, "beta_end=0.013", "beta_end=None"),
    ],
)
def test_a_difference_is_refused_with_both_values(change, theirs, ours):
    other = dataclasses.replace(MENDED, **change)
    with pytest.raises(UsageError) as refusal:
        MENDED.require_same(other, "the config", "the checkpoint")
    sentence = str(refusal.value)
    assert f"the checkpoint was made with {theirs}" in sentence
    assert f"the config says {ours}" in sentence
