"""The UNet of Stable Diffusion: its size, its dtypes, and what it refuses.

That it computes what diffusers computes is shown in tests/parity/test_sd_networks.py.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import sd_configs

from zsnr_jax.errors import UsageError
from zsnr_jax.models.sd_unet import UNet2DCondition, project_context

SMALL = {
    **sd_configs.UNET_2,
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 4],
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "norm_num_groups": 8,
}


def _inputs(config: dict[str, Any], size: int = 8) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_t = jax.random.normal(jax.random.key(0), (2, size, size, 4))
    context = jax.random.normal(jax.random.key(1), (2, 77, config["cross_attention_dim"]))
    return x_t, jnp.array([0, 999]), context


@functools.cache
def _params():
    """Parameters of every layer at random, none zero or the identity."""
    shapes = jax.eval_shape(
        UNet2DCondition.from_config(SMALL).init, jax.random.key(0), *_inputs(SMALL)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape, np.float32), shapes)


def _apply(**options) -> np.ndarray:
    model = UNet2DCondition.from_config(SMALL, **options)
    return np.asarray(jax.jit(model.apply)(_params(), *_inputs(SMALL)))


@pytest.mark.parametrize(
    "config, count", [(sd_configs.UNET_2, 865_910_724), (sd_configs.UNET_1, 859_520_964)]
)
def test_at_full_size_it_has_as_many_parameters_as_stable_diffusion(config, count) -> None:
    model = UNet2DCondition.from_config(config)
    inputs = _inputs(config, size=64)
    output, params = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert (output.shape, output.dtype) == ((2, 64, 64, 4), jnp.float32)


def test_a_fresh_network_predicts_zero() -> None:
    model = UNet2DCondition.from_config(SMALL)
    init = jax.jit(lambda key: model.init(key, *_inputs(SMALL))["params"]["conv_out"])
    assert not any(np.any(x) for x in jax.tree.leaves(init(jax.random.key(0))))


@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 1e-6), (jnp.bfloat16, 0)])
def test_keys_and_values_of_a_text_stand_for_it(dtype, atol) -> None:
    model = UNet2DCondition.from_config(SMALL, dtype=dtype, remat=True)
    x_t, timestep, text = _inputs(SMALL)
    projected = project_context(_params()["params"], text, dtype)
    assert len(jax.tree.leaves(projected)) == 2 * 4  # of the transformers: 1 down, 1 middle, 2 up
    apply = jax.jit(model.apply)
    found = apply(_params(), x_t, timestep, projected)
    np.testing.assert_allclose(found, apply(_params(), x_t, timestep, text), rtol=0, atol=atol)

    params = jax.tree_util.tree_map_with_path(  # that they are not computed again
        lambda path, x: x * jnp.nan if "['attn2']['to_k']" in jax.tree_util.keystr(path) else x,
        _params(),
    )
    np.testing.assert_array_equal(apply(params, x_t, timestep, projected), found)


def test_several_texts_may_meet_one_input() -> None:
    model = UNet2DCondition.from_config(SMALL)
    x_t, timestep, text = _inputs(SMALL)
    texts = jnp.concatenate([text, text[::-1], 2 * text])  # three for each of two rows
    apply = jax.jit(model.apply)
    wanted = apply(_params(), x_t.repeat(3, axis=0), timestep.repeat(3), texts)
    found = apply(_params(), x_t, timestep, texts)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    found = apply(_params(), x_t, timestep, project_context(_params()["params"], texts))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_what_comes_before_the_text_is_computed_once_for_all_texts() -> None:
    model = UNet2DCondition.from_config(SMALL)
    x_t, timestep, text = _inputs(SMALL)
    program = jax.make_jaxpr(model.apply)(_params(), x_t, timestep, text.repeat(2, axis=0))
    rows = [
        eqn.outvars[0].aval.shape[0]
        for eqn in program.eqns
        if eqn.primitive.name == "conv_general_dilated"
    ]
    # Rows of the 3x3 convolutions; those before the first attention to the text are three.
    assert rows[:3] == [2, 2, 2] and set(rows[3:]) == {4}


def test_texts_that_cannot_be_shared_evenly_are_refused() -> None:
    model = UNet2DCondition.from_config(SMALL)
    x_t, timestep, text = _inputs(SMALL)
    with pytest.raises(ValueError, match="2 rows cannot be shared evenly by 3"):
        jax.eval_shape(model.apply, _params(), x_t, timestep, text[:1].repeat(3, axis=0))


def test_bfloat16_computes_close_to_float32_and_returns_float32() -> None:
    full, half = _apply(), _apply(dtype=jnp.bfloat16)
    assert half.dtype == np.float32
    assert np.any(half != full)
    assert np.sqrt(np.mean((half - full) ** 2)) < 0.05 * np.std(full)


def test_bfloat16_keeps_float32_parameters_of_the_same_names() -> None:
    models = [UNet2DCondition.from_config(SMALL, dtype=dtype) for dtype in ("float32", "bfloat16")]
    shapes = [jax.eval_shape(m.init, jax.random.key(0), *_inputs(SMALL)) for m in models]
    assert shapes[0] == shapes[1]


def test_remat_recomputes_every_block_and_renames_nothing() -> None:
    plain, remat = (UNet2DCondition.from_config(SMALL, remat=remat) for remat in (False, True))
    shapes = [jax.eval_shape(m.init, jax.random.key(0), *_inputs(SMALL)) for m in (plain, remat)]
    assert shapes[0] == shapes[1]
    programs = [jax.make_jaxpr(m.apply)(_params(), *_inputs(SMALL)) for m in (plain, remat)]
    blocks = (2 + 1) + (2 + 1) + (4 + 2)  # residual blocks and transformers: down, middle, up
    names = [[eqn.primitive.name for eqn in program.eqns] for program in programs]
    assert [program.count("remat2") for program in names] == [0, blocks]


@pytest.mark.parametrize(
    "setting, allowed",
    [
        ({"_class_name": "AutoencoderKL"}, "'UNet2DConditionModel'"),
        ({"act_fn": "gelu"}, "'silu' or 'swish'"),
        ({"flip_sin_to_cos": False}, "True"),
        ({"resnet_time_scale_shift": "scale_shift"}, "'default'"),
        ({"transformer_layers_per_block": [1, 2, 10]}, "1"),
        ({"addition_embed_type": "text_time"}, "no such setting"),
        ({"class_embed_type": "projection"}, "no such setting"),
        ({"a_key_of_the_future": 1}, "no such setting"),
        ({"down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"]}, "'DownBlock2D'"),
        ({"up_block_types": ["UpBlock2D"]}, "one for each of 2 resolutions"),
        ({"attention_head_dim": [5, 10, 20]}, "one for each of 2 resolutions"),
        ({"layers_per_block": [1, 2]}, "one whole number"),
        ({"norm_num_groups": None}, "one whole number"),
    ],
)
def test_a_setting_that_it_does_not_implement_is_refused(setting, allowed) -> None:
    key, value = next(iter(setting.items()))
    with pytest.raises(UsageError) as caught:
        UNet2DCondition.from_config({**SMALL, **setting})
    message = str(caught.value)
    assert message.startswith(f"{key}={value!r} is not implemented by UNet2DCondition, which takes")
    assert allowed in message


def test_settings_that_change_nothing_here_are_passed_over() -> None:
    extra = {"sample_size": 96, "upcast_attention": True, "encoder_hid_dim": None, "_commit": "0a"}
    assert UNet2DCondition.from_config(SMALL | extra) == UNet2DCondition.from_config(SMALL)
