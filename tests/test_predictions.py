"""Conversions between x_t, x0, eps and v, at every level and at both ends."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsnr_jax import predictions, schedules
from zsnr_jax.errors import UsageError

TOLERANCE = 2e-6  # float32 rounding of a sum of two terms of size up to 4
MENDED = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
FLAWED = schedules.make_schedule("scaled_linear")

alphas = st.sampled_from([0.0, 1e-30, 1e-8, 1e-4, 0.5, 0.9999, 1.0]) | st.floats(1e-30, 1)
floats = st.floats(-4, 4, width=32, allow_subnormal=False)  # which XLA flushes to zero
values = st.lists(floats, min_size=2, max_size=2).map(lambda x: np.array(x, np.float32))


def coefficients(alpha) -> Any:
    return np.float32(alpha), np.float32(np.sqrt(1 - np.float64(alpha) ** 2))


@given(values, values, alphas)
def test_noising_and_velocity_are_the_papers(x0, eps, alpha):
    abar = np.float64(alpha) ** 2
    x_t = predictions.add_noise(x0, eps, *coefficients(alpha))
    v = predictions.velocity(x0, eps, *coefficients(alpha))
    np.testing.assert_allclose(x_t, oracles.noised(x0, eps, abar), atol=TOLERANCE)
    np.testing.assert_allclose(v, oracles.v_from(x0, eps, abar), atol=TOLERANCE)


@given(values, values, alphas)
def test_a_v_output_is_rotated_as_the_paper_does(v, x_t, alpha):
    x0_hat, eps_hat = predictions.to_x0_eps(v, x_t, *coefficients(alpha), prediction="v")
    x0, eps = oracles.x0_eps_from_v(v, x_t, np.float64(alpha) ** 2)
    np.testing.assert_allclose(x0_hat, x0, atol=TOLERANCE)
    np.testing.assert_allclose(eps_hat, eps, atol=TOLERANCE)


@given(values, values, alphas)
def test_v_returns_the_data_and_the_noise_at_every_level(x0, eps, alpha):
    alpha, sigma = coefficients(alpha)
    x_t = predictions.add_noise(x0, eps, alpha, sigma)
    v = predictions.velocity(x0, eps, alpha, sigma)
    x0_hat, eps_hat = predictions.to_x0_eps(v, x_t, alpha, sigma, "v")
    np.testing.assert_allclose(x0_hat, x0, atol=TOLERANCE)
    np.testing.assert_allclose(eps_hat, eps, atol=TOLERANCE)


@given(values, values, alphas.filter(lambda alpha: alpha < 0.99999))
def test_x0_returns_the_noise_wherever_there_is_some(x0, eps, alpha):
    alpha, sigma = coefficients(alpha)
    x_t = predictions.add_noise(x0, eps, alpha, sigma)
    x0_hat, eps_hat = predictions.to_x0_eps(x0, x_t, alpha, sigma, "x0")
    np.testing.assert_array_equal(x0_hat, x0)
    np.testing.assert_allclose(eps_hat, eps, atol=TOLERANCE / sigma)


@given(values, values, alphas.filter(lambda alpha: alpha > 1e-5))
def test_eps_returns_the_data_wherever_there_is_some(x0, eps, alpha):
    alpha, sigma = coefficients(alpha)
    x_t = predictions.add_noise(x0, eps, alpha, sigma)
    x0_hat, eps_hat = predictions.to_x0_eps(eps, x_t, alpha, sigma, "eps")
    np.testing.assert_allclose(x0_hat, x0, atol=TOLERANCE / alpha)
    np.testing.assert_array_equal(eps_hat, eps)


@given(values, values)
def test_at_zero_snr_everything_is_exact(x0, eps):
    x_T = predictions.add_noise(x0, eps, 0.0, 1.0)
    v_T = predictions.velocity(x0, eps, 0.0, 1.0)
    np.testing.assert_array_equal(x_T, eps)
    np.testing.assert_array_equal(v_T, -x0)
    for prediction, output in (("v", v_T), ("x0", x0)):
        x0_hat, eps_hat = predictions.to_x0_eps(output, x_T, 0.0, 1.0, prediction)
        np.testing.assert_array_equal(x0_hat, x0)
        np.testing.assert_array_equal(eps_hat, eps)


@given(values, values, st.floats(0, np.pi / 2))
def test_v_is_the_derivative_of_x_in_the_angle(x0, eps, angle):
    def x(angle):
        return predictions.add_noise(x0, eps, jnp.cos(angle), jnp.sin(angle))

    _, derivative = jax.jvp(x, (jnp.float32(angle),), (jnp.float32(1),))
    v = predictions.velocity(x0, eps, jnp.cos(angle), jnp.sin(angle))
    np.testing.assert_allclose(derivative, v, atol=TOLERANCE)


@pytest.mark.parametrize("rest", [(), (2,), (2, 2, 3)])
@pytest.mark.parametrize("prediction", predictions.PREDICTIONS)
def test_coefficients_per_example_run_along_the_batch(prediction, rest):
    x, y = np.random.default_rng(0).normal(size=(2, 3, *rest)).astype(np.float32)
    alpha, sigma = MENDED.alpha[[200, 500, 700]], MENDED.sigma[[200, 500, 700]]
    for function in (
        predictions.add_noise,
        predictions.velocity,
        lambda *args: predictions.to_x0_eps(*args, prediction=prediction)[0],
        lambda *args: predictions.to_x0_eps(*args, prediction=prediction)[1],
    ):
        rows = [function(x[b : b + 1], y[b : b + 1], alpha[b], sigma[b])[0] for b in range(3)]
        np.testing.assert_allclose(function(x, y, alpha, sigma), np.stack(rows), rtol=1e-6)


@pytest.mark.parametrize("function", ["to_x0_eps", "make_denoise"])
def test_an_unknown_prediction_is_refused(function):
    call = {
        "to_x0_eps": lambda: predictions.to_x0_eps(X, X, 0.6, 0.8, "score"),
        "make_denoise": lambda: predictions.make_denoise(lambda x, t: x, FLAWED, "score"),
    }[function]
    with pytest.raises(UsageError, match="'score' is unknown: choose one of v, x0, eps"):
        call()


X = jnp.linspace(-2, 2, 6).reshape(2, 3)


@pytest.mark.parametrize("level", [1, 500, 1000])
def test_a_network_is_told_the_level_less_one_for_each_example(level):
    told = []

    def network(x_t, timestep):
        told.append((x_t, timestep))
        return x_t

    predictions.make_denoise(network, MENDED, "v")(X, jnp.int32(level))
    ((x_t, timestep),) = told
    assert timestep.dtype == jnp.int32 and timestep.tolist() == [level - 1] * 2
    np.testing.assert_array_equal(x_t, X)


@pytest.mark.parametrize("level", [1, 500, 1000])
@pytest.mark.parametrize("prediction", predictions.PREDICTIONS)
def test_denoise_uses_the_coefficients_of_its_level(prediction, level):
    denoise = predictions.make_denoise(lambda x, t: 0.5 * x, FLAWED, prediction)
    coefficients = FLAWED.alpha[level], FLAWED.sigma[level]
    expected = predictions.to_x0_eps(0.5 * X, X, *coefficients, prediction)
    np.testing.assert_allclose(denoise(X, jnp.int32(level)), expected, rtol=1e-6)


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_at_zero_snr_values_and_gradients_are_finite_in_any_dtype(prediction, dtype):
    def estimates(weight, x_T):
        network = lambda x, t: weight.astype(dtype) * x.astype(dtype)  # noqa: E731
        return predictions.make_denoise(network, MENDED, prediction)(x_T, jnp.int32(1000))

    x0_hat, eps_hat = estimates(jnp.float32(0.3), X)
    assert x0_hat.dtype == eps_hat.dtype == jnp.float32
    sign = -1 if prediction == "v" else 1
    output = (jnp.asarray(0.3, dtype) * X.astype(dtype)).astype(jnp.float32)
    np.testing.assert_array_equal(x0_hat, sign * output)
    np.testing.assert_array_equal(eps_hat, X)
    loss = lambda *args: sum(jnp.sum(estimate**2) for estimate in estimates(*args))  # noqa: E731
    gradients = jax.grad(loss, argnums=(0, 1))(jnp.float32(0.3), X)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    assert gradients[0] != 0


def test_eps_is_refused_at_zero_snr_and_allowed_above_it():
    with pytest.raises(UsageError, match="zero terminal SNR.*set prediction to v"):
        predictions.make_denoise(lambda x, t: x, MENDED, "eps")
    x0_hat, _ = predictions.make_denoise(lambda x, t: x, FLAWED, "eps")(X, jnp.int32(1000))
    assert np.all(np.isfinite(x0_hat))


def test_an_output_of_another_shape_is_refused():
    denoise = predictions.make_denoise(lambda x, t: x[..., :1], MENDED, "v")
    with pytest.raises(UsageError, match=r"returned shape \(2, 1\) for x_t of \(2, 3\)"):
        denoise(X, jnp.int32(5))
