"""The pixel UNet: shapes, dtypes, and that no row sees another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax.models.unet import UNet

SMALL = {"channels": (8, 16), "num_res_blocks": 1, "attention": (False, True), "head_dim": 8}


@functools.cache
def _inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    x_t = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    return x_t, jnp.array([0, 1, 500, 999]), jnp.array([0, 1, 2, 3])


def _model(**options) -> UNet:
    return UNet(num_classes=3, **SMALL | options)


@functools.cache
def _noisy_params():
    """Parameters moved off their initial zeros, so that every layer has a say."""
    params = _model().init(jax.random.key(1), *_inputs())
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten(
        [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    )


def _output(model: UNet, params, *inputs) -> Any:
    return model.apply(params, *inputs)


def _apply(model: UNet, *inputs) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)(_noisy_params(), *inputs))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_fresh_network_predicts_zero_in_the_shape_of_its_input(patch_size: int) -> None:
    output, _ = jax.jit(_model(patch_size=patch_size).init_with_output)(
        jax.random.key(0), *_inputs()
    )
    np.testing.assert_array_equal(output, np.zeros((4, 8, 8, 3)))


def test_all_parameters_are_float32_and_matter() -> None:
    x_t, timestep, _ = _inputs()
    every_label = jnp.array([0, 1, 2, 3])

    def loss(params):
        return jnp.sum(jnp.square(_output(_model(), params, x_t, timestep, every_label)))

    gradients = jax.jit(jax.grad(loss))(_noisy_params())
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert gradient.dtype == jnp.float32
        assert np.any(gradient != 0), jax.tree_util.keystr(path)


def test_bfloat16_computes_close_to_float32_and_returns_float32() -> None:
    full, half = (_apply(_model(dtype=dtype), *_inputs()) for dtype in (jnp.float32, jnp.bfloat16))
    assert half.dtype == np.float32
    assert np.any(half != full)
    assert np.sqrt(np.mean((half - full) ** 2)) < 0.05 * np.std(full)


def test_remat_changes_nothing() -> None:
    def gradient(remat: bool):
        model = _model(remat=remat)
        return jax.jit(
            jax.grad(lambda params: jnp.sum(jnp.square(_output(model, params, *_inputs()))))
        )

    plain, remat = (gradient(remat)(_noisy_params()) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, remat)


def test_a_row_does_not_see_the_others_not_even_through_dropout() -> None:
    keys = jax.random.split(jax.random.key(3), 4)
    model = _model(dropout=0.5)
    whole = _apply(model, *_inputs(), keys)
    half = _apply(model, *(x[2:] for x in _inputs()), keys[2:])
    np.testing.assert_allclose(whole[2:], half, rtol=1e-4, atol=1e-4)


def test_dropout_depends_on_the_key_and_is_off_without_one() -> None:
    model = _model(dropout=0.5)
    first, second = (
        _apply(model, *_inputs(), jax.random.split(jax.random.key(seed), 4)) for seed in (0, 1)
    )
    assert np.any(first != second)
    np.testing.assert_array_equal(_apply(model, *_inputs()), _apply(_model(), *_inputs()))


def test_a_fresh_label_is_as_long_as_its_scale() -> None:
    for scale in (1.0, 20.0):
        model = UNet(1000, **SMALL, label_scale=scale)
        params = jax.jit(model.init)(jax.random.key(0), *_inputs())["params"]
        squares = np.square(params["label"]["embedding"]).sum(axis=1)
        np.testing.assert_allclose(np.mean(squares), scale**2, rtol=0.05)


def test_level_and_label_change_the_output() -> None:
    x_t, timestep, label = _inputs()
    output = _apply(_model(), x_t, timestep, label)
    assert np.any(_apply(_model(), x_t, timestep + 1, label)[0] != output[0])
    assert np.any(_apply(_model(), x_t, timestep, label[::-1])[0] != output[0])
