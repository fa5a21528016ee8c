"""The training loss, its weights, and the proportionality of the three errors."""

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from zsnr_jax import config as config_lib
from zsnr_jax import losses
from zsnr_jax.build import build_objective, build_process
from zsnr_jax.errors import UsageError
from zsnr_jax.models.unet import UNet

# What each name promises: w(SNR), the weight of the squared error of x0_hat.
WEIGHTS = {
    "snr_plus_one": lambda snr: snr + 1,
    "snr": lambda snr: snr,
    "uniform": lambda snr: 1.0,
    "truncated_snr": lambda snr: max(snr, 1),
    "min_snr_plus_one": lambda snr, gamma=5: min(snr, gamma) + 1,
    "min_snr_at_least_one": lambda snr, gamma=5: max(min(snr, gamma), 1),
    "min_snr_zero_at_terminal": lambda snr, gamma=5: min(snr, gamma),
}
MIN_SNR = [name for name in WEIGHTS if name.startswith("min_snr")]
ZERO_AT_T = ("snr", "min_snr_zero_at_terminal")
PREDICTIONS = ("v", "x0", "eps")
RECIPE = Path(__file__).parents[1] / "configs" / "brightness.py"

alphas = st.floats(1 / 16, 511 / 512, width=32)
images = st.lists(st.floats(-2, 2, width=32, allow_subnormal=False), min_size=6, max_size=6).map(
    lambda x: np.array(x, np.float32).reshape(1, 3, 2)
)


def coefficients(alpha) -> Any:
    alpha = np.atleast_1d(np.float64(alpha))
    return np.float32(alpha), np.float32(np.sqrt(1 - alpha**2))


def of_all_predictions(v_hat, x_t, abar):
    x0_hat, eps_hat = oracles.x0_eps_from_v(v_hat, x_t, abar)
    return {"v": v_hat, "x0": x0_hat, "eps": eps_hat}


def made(name, **options) -> losses.LossWeight:
    """make_weight, without the warning that a test of its own looks for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "min_snr_zero_at_terminal is 0")
        return losses.make_weight(name, **options)


def test_every_weight_has_an_oracle():
    assert losses.LOSS_WEIGHTS.keys() == WEIGHTS.keys()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
@given(alpha=alphas)
def test_the_multiplier_is_the_weight_over_the_errors_proportion(weight, prediction, alpha):
    snr = np.float64(alpha) ** 2 / (1 - np.float64(alpha) ** 2)
    proportion = {"v": snr + 1, "x0": 1, "eps": snr}[prediction]
    result = losses.multiplier(made(weight), *coefficients(alpha), prediction=prediction)
    assert result.dtype == jnp.float32 and result.shape == (1,)
    np.testing.assert_allclose(result, WEIGHTS[weight](snr) / proportion, rtol=1e-6)


@pytest.mark.parametrize("weight", MIN_SNR)
@given(alpha=alphas, gamma=st.floats(0.01, 100))
def test_gamma_caps_the_snr(weight, alpha, gamma):
    snr = np.float64(alpha) ** 2 / (1 - np.float64(alpha) ** 2)
    result = losses.multiplier(made(weight, gamma=gamma), *coefficients(alpha), prediction="x0")
    np.testing.assert_allclose(result, [WEIGHTS[weight](snr, gamma)], rtol=1e-6)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_multipliers_at_zero_snr_are_exact_and_as_documented(weight):
    expected = ("0", "0", "nan") if weight in ZERO_AT_T else ("1", "1", "inf")
    found = [
        float(losses.multiplier(made(weight), jnp.zeros(1), jnp.ones(1), prediction)[0])
        for prediction in PREDICTIONS
    ]
    assert [f"{value:g}" for value in found] == list(expected)
    (row,) = re.findall(rf"^ +{weight} .* (\w+) +(\w+) +(\w+)$", str(losses.__doc__), re.M)
    assert row == expected


@given(images, images, images, alphas)
def test_the_three_errors_are_proportional(x0, eps, v_hat, alpha):
    abar = np.float64(alpha) ** 2
    outputs = of_all_predictions(v_hat, oracles.noised(x0, eps, abar), abar)
    mean_square = {}
    for prediction, output in outputs.items():
        target = losses.target(x0, eps, *coefficients(alpha), prediction=prediction)
        mean_square[prediction] = float(np.mean((output - np.float64(target)) ** 2))
    snr = abar / (1 - abar)
    for prediction, factor in (("x0", 1 + snr), ("eps", 1 + 1 / snr)):
        # Near a zero error, what is left is the rounding of the float32 targets, 2.5e-7 or less.
        left = factor * (np.sqrt(mean_square[prediction]) * 1e-6 + 1e-12)
        expected = factor * mean_square[prediction]
        assert mean_square["v"] == pytest.approx(expected, rel=1e-5, abs=left)


@pytest.mark.parametrize("weight", WEIGHTS)
@given(images, images, images, alphas)
def test_a_weight_gives_one_loss_whatever_the_network_predicts(weight, x0, eps, v_hat, alpha):
    abar = np.float64(alpha) ** 2
    alpha, sigma = coefficients(alpha)
    v_hat = v_hat + 5  # an error that rounding does not drown
    outputs = of_all_predictions(v_hat, oracles.noised(x0, eps, abar), abar)
    x0_error = np.mean((outputs["x0"] - x0) ** 2)
    expected = WEIGHTS[weight](abar / (1 - abar)) * x0_error
    for prediction, output in outputs.items():
        loss = losses.per_example_loss(
            jnp.float32(output), x0, eps, alpha, sigma, prediction, made(weight)
        )
        np.testing.assert_allclose(loss, [expected], rtol=1e-4)


def batch(B=3, seed=0) -> Any:
    return np.random.default_rng(seed).normal(size=(3, B, 4, 4, 2)).astype(np.float32)


def test_the_v_loss_at_zero_snr_is_the_distance_to_minus_the_data():
    output, x0, eps = batch()
    loss = losses.per_example_loss(output, x0, eps, jnp.zeros(3), jnp.ones(3), "v")
    np.testing.assert_allclose(loss, np.mean((output + x0) ** 2, axis=(1, 2, 3)), rtol=1e-6)


def test_the_default_weight_is_one_on_the_v_error():
    output, x0, eps = batch()
    alpha, sigma = coefficients([0.9, 0.5, 0.1])
    loss = losses.per_example_loss(output, x0, eps, alpha, sigma, "v")
    abar = np.float64(alpha).reshape(3, 1, 1, 1) ** 2
    expected = np.mean((output - oracles.v_from(x0, eps, abar)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_examples_loss_does_not_depend_on_its_batch(prediction):
    output, x0, eps = batch()
    alpha, sigma = coefficients([0.9, 0.5, 0.1])
    whole = losses.per_example_loss(output, x0, eps, alpha, sigma, prediction)
    rows = []
    for b in range(3):
        row = (array[b : b + 1] for array in (output, x0, eps, alpha, sigma))
        rows.append(losses.per_example_loss(*row, prediction=prediction))
    assert whole.shape == (3,)
    np.testing.assert_allclose(whole, jnp.concatenate(rows), rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_is_what_is_predicted(prediction):
    _, x0, eps = batch()
    alpha, sigma = coefficients([0.9, 0.5, 0.1])
    abar = np.float64(alpha).reshape(3, 1, 1, 1) ** 2
    expected = {"v": oracles.v_from(x0, eps, abar), "x0": x0, "eps": eps}[prediction]
    np.testing.assert_allclose(
        losses.target(x0, eps, alpha, sigma, prediction), expected, atol=1e-6
    )


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_losses_and_gradients_are_finite_at_zero_snr(prediction, weight):
    output, x0, eps = batch()

    def loss(output):
        terms = losses.per_example_loss(
            output, x0, eps, jnp.zeros(3), jnp.ones(3), prediction, made(weight)
        )
        return jnp.sum(terms)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(output, jnp.bfloat16))
    assert value.dtype == jnp.float32
    assert np.isfinite(value) and np.all(np.isfinite(gradient.astype(jnp.float32)))
    assert (value == 0) == (not np.any(gradient)) == (weight in ZERO_AT_T)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_multipliers_can_be_differentiated_in_the_level_at_zero_snr(prediction, weight):
    def total(alpha, sigma):
        return jnp.sum(losses.multiplier(made(weight), alpha, sigma, prediction))

    assert np.all(np.isfinite(jax.grad(total, argnums=(0, 1))(jnp.zeros(1), jnp.ones(1))))


def test_the_loss_of_a_bfloat16_output_is_float32():
    output, x0, eps = batch()
    alpha, sigma = coefficients([0.9, 0.5, 0.1])
    output = jnp.asarray(output, jnp.bfloat16)
    loss = losses.per_example_loss(output, x0, eps, alpha, sigma, "x0")
    assert loss.dtype == jnp.float32
    expected = np.mean((np.float64(output) - x0) ** 2, axis=(1, 2, 3)) / sigma**2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_weight_that_is_zero_at_T_is_warned_of_and_no_other():
    with pytest.warns(UserWarning, match="is 0 at t = T .* never learnt: use min_snr_plus_one or"):
        losses.make_weight("min_snr_zero_at_terminal", gamma=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in WEIGHTS.keys() - {"min_snr_zero_at_terminal"}:
            losses.make_weight(name)


def test_an_unknown_weight_is_refused():
    with pytest.raises(UsageError, match="loss weight 'min_snr' is unknown.*snr_plus_one"):
        losses.make_weight("min_snr")


@pytest.mark.parametrize("weight", [name for name in WEIGHTS if name not in MIN_SNR])
def test_a_weight_without_a_cap_takes_no_gamma(weight):
    with pytest.raises(UsageError, match=f"{weight} has no option gamma: it takes none"):
        losses.make_weight(weight, gamma=5.0)


@pytest.mark.parametrize("weight", MIN_SNR)
def test_wrong_options_are_refused(weight):
    with pytest.raises(UsageError, match=f"{weight} has no option gama: it takes gamma"):
        losses.make_weight(weight, gama=5.0)
    for gamma in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match=f"gamma must be above 0, and it is {gamma}"):
            losses.make_weight(weight, gamma=gamma)


def objective_of(**settings) -> Any:
    """What training makes of config.loss."""
    config = config_lib.default_config()
    config.loss.update(settings)
    return build_objective(config, build_process(config), UNet(1, (8,), 1, (False,)))


@pytest.mark.parametrize("settings, gamma", [({}, 5), ({"gamma": 3.0}, 3), ({"gamma": 2}, 2)])
def test_the_config_makes_the_weight(settings, gamma):
    alpha, sigma = coefficients(0.98)  # SNR = 24, above every cap
    weight = objective_of(weight="min_snr_plus_one", **settings).weight
    np.testing.assert_allclose(weight(alpha, sigma) / sigma**2, [gamma + 1], rtol=1e-6)


def test_a_gamma_is_refused_where_the_weight_takes_none():
    with pytest.raises(UsageError, match="snr_plus_one has no option gamma"):
        objective_of(gamma=5.0)


@pytest.mark.parametrize("arguments, gamma", [([], None), (["--config.loss.gamma=3.0"], 3.0)])
def test_gamma_can_be_given_on_the_command_line_and_is_null_in_json_otherwise(
    arguments, gamma, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["main", f"--config={RECIPE}", *arguments])
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(sys.argv)
    assert json.loads(json.dumps(config_lib.to_json(values.config)))["loss"]["gamma"] == gamma


def test_an_output_of_another_shape_is_refused():
    output, x0, eps = batch()
    alpha, sigma = coefficients([0.9, 0.5, 0.1])
    with pytest.raises(UsageError, match=r"\(3, 4, 4, 1\) for data of \(3, 4, 4, 2\)"):
        losses.per_example_loss(output[..., :1], x0, eps, alpha, sigma, "v")
