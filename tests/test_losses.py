"""The training loss, its weights, and the proportionality of the three errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsnr_jax import losses
from zsnr_jax.errors import UsageError

# What each name promises: w(SNR), the weight of the squared error of x0_hat.
WEIGHTS = {"snr_plus_one": lambda snr: snr + 1, "snr": lambda snr: snr}
PREDICTIONS = ("v", "x0", "eps")

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


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weight", losses.LOSS_WEIGHTS)
@given(alpha=alphas)
def test_the_multiplier_is_the_weight_over_the_errors_proportion(weight, prediction, alpha):
    snr = np.float64(alpha) ** 2 / (1 - np.float64(alpha) ** 2)
    proportion = {"v": snr + 1, "x0": 1, "eps": snr}[prediction]
    result = losses.multiplier(weight, *coefficients(alpha), prediction=prediction)
    assert result.dtype == jnp.float32 and result.shape == (1,)
    np.testing.assert_allclose(result, WEIGHTS[weight](snr) / proportion, rtol=1e-6)


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


@pytest.mark.parametrize("weight", losses.LOSS_WEIGHTS)
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
            jnp.float32(output), x0, eps, alpha, sigma, prediction, weight
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


@pytest.mark.parametrize("weight", losses.LOSS_WEIGHTS)
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_losses_and_gradients_are_finite_at_zero_snr(prediction, weight):
    output, x0, eps = batch()

    def loss(output):
        terms = losses.per_example_loss(
            output, x0, eps, jnp.zeros(3), jnp.ones(3), prediction, weight
        )
        return jnp.sum(terms)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(output, jnp.bfloat16))
    assert value.dtype == jnp.float32
    assert np.isfinite(value) and np.all(np.isfinite(gradient.astype(jnp.float32)))
    assert (value == 0) == (weight == "snr")


def test_the_loss_of_a_bfloat16_output_is_float32():
    output, x0, eps = batch()
    alpha, sigma = coefficients([0.9, 0.5, 0.1])
    output = jnp.asarray(output, jnp.bfloat16)
    loss = losses.per_example_loss(output, x0, eps, alpha, sigma, "x0")
    assert loss.dtype == jnp.float32
    expected = np.mean((np.float64(output) - x0) ** 2, axis=(1, 2, 3)) / sigma**2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_an_unknown_weight_is_refused():
    with pytest.raises(UsageError, match="loss weight 'min_snr' is unknown.*snr_plus_one"):
        losses.multiplier("min_snr", *coefficients(0.5), prediction="v")


def test_an_output_of_another_shape_is_refused():
    output, x0, eps = batch()
    alpha, sigma = coefficients([0.9, 0.5, 0.1])
    with pytest.raises(UsageError, match=r"\(3, 4, 4, 1\) for data of \(3, 4, 4, 2\)"):
        losses.per_example_loss(output[..., :1], x0, eps, alpha, sigma, "v")
