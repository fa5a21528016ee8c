"""The autoencoder of Stable Diffusion: its size, its dtypes, how latents are drawn.

That it computes what diffusers computes is shown in tests/parity/test_sd_networks.py.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import sd_configs

from zsnr_jax.errors import UsageError
from zsnr_jax.models.autoencoder import AutoencoderKL, sample_latents

SMALL = {
    **sd_configs.VAE,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


@functools.cache
def _images() -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (2, 8, 4, 3), minval=-1, maxval=1)


@functools.cache
def _params():
    """Parameters of every layer at random, none zero or the identity."""
    shapes = jax.eval_shape(AutoencoderKL.from_config(SMALL).init, jax.random.key(0), _images())
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape, np.float32), shapes)


def _run(method: str, x: jax.Array, **options) -> np.ndarray:
    model = AutoencoderKL.from_config(SMALL, **options)
    run = jax.jit(functools.partial(model.apply, method=method))
    return np.asarray(run(_params(), x))


def test_at_full_size_it_has_as_many_parameters_as_stable_diffusion() -> None:
    model = AutoencoderKL.from_config(sd_configs.VAE)
    assert model.scaling_factor == 0.18215
    images = jnp.zeros((1, 512, 512, 3))
    output, params = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == 83_653_863
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert (output.shape, output.dtype) == (images.shape, jnp.float32)
    moments = jax.eval_shape(lambda p: model.apply(p, images, method="encode"), params)
    assert (moments.shape, moments.dtype) == ((1, 64, 64, 8), jnp.float32)


def test_bfloat16_computes_close_to_float32_and_returns_float32() -> None:
    full, half = (_run("__call__", _images(), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (half.shape, half.dtype) == ((2, 8, 4, 3), np.float32)
    assert np.any(half != full)
    assert np.sqrt(np.mean((half - full) ** 2)) < 0.05 * np.std(full)


def test_remat_recomputes_every_block_and_renames_nothing() -> None:
    plain, remat = (AutoencoderKL.from_config(SMALL, remat=remat) for remat in (False, True))
    shapes = [jax.eval_shape(m.init, jax.random.key(0), _images()) for m in (plain, remat)]
    assert shapes[0] == shapes[1]
    programs = [jax.make_jaxpr(model.apply)(_params(), _images()) for model in (plain, remat)]
    blocks = (2 + 2) + (2 + 4)  # residual blocks of the encoder and the decoder
    names = [[eqn.primitive.name for eqn in program.eqns] for program in programs]
    assert [program.count("remat2") for program in names] == [0, blocks]


def test_decode_undoes_the_scale_of_the_latents() -> None:
    latents = jax.random.normal(jax.random.key(2), (1, 4, 4, 4))
    scale = AutoencoderKL().scaling_factor
    model = AutoencoderKL.from_config(SMALL | {"scaling_factor": 1.0})
    unscaled = jax.jit(functools.partial(model.apply, method="decode"))(_params(), latents / scale)
    np.testing.assert_allclose(_run("decode", latents), unscaled, rtol=1e-4, atol=1e-5)


# Drawing latents.


def _moments(mean: float, logvar: float, rows: int = 4) -> jax.Array:
    shape = (rows, 32, 32, 3)
    return jnp.concatenate([jnp.full(shape, mean), jnp.full(shape, logvar)], axis=-1)


def test_latents_have_the_mean_and_deviation_of_their_moments_times_the_scale() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    latents = np.asarray(sample_latents(_moments(3.0, 2 * math.log(0.5)), keys, 0.2))
    assert latents.shape == (4, 32, 32, 3)
    assert np.mean(latents) == pytest.approx(0.2 * 3, abs=0.2 * 0.5 * 4 / math.sqrt(latents.size))
    assert np.std(latents) == pytest.approx(0.2 * 0.5, rel=4 / math.sqrt(2 * latents.size))


def test_the_smallest_variance_gives_the_mean() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    latents = sample_latents(_moments(3.0, -30.0), keys, 0.5)
    np.testing.assert_allclose(latents, 1.5, rtol=1e-5)


def test_a_row_depends_on_its_own_key_alone() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    moments = _moments(0.0, 0.0)
    whole = np.asarray(sample_latents(moments, keys, 1.0))
    np.testing.assert_array_equal(whole[2:], sample_latents(moments[2:], keys[2:], 1.0))
    assert np.abs(np.corrcoef(whole.reshape(4, -1)) - np.eye(4)).max() < 0.1


def test_moments_may_be_stored_in_half_precision() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    latents = sample_latents(_moments(1.0, 0.0).astype(jnp.float16), keys, 1.0)
    np.testing.assert_array_equal(latents, sample_latents(_moments(1.0, 0.0), keys, 1.0))
    assert latents.dtype == jnp.float32


# Settings.


@pytest.mark.parametrize(
    "setting, allowed",
    [
        ({"_class_name": "AutoencoderTiny"}, "'AutoencoderKL'"),
        ({"act_fn": "relu"}, "'silu'"),
        ({"use_quant_conv": False}, "True"),
        ({"mid_block_add_attention": False}, "True"),
        ({"shift_factor": 0.1159}, "no such setting"),
        ({"latents_mean": [0.0] * 4}, "no such setting"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "'DownEncoderBlock2D'"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "one for each of 2 resolutions"),
    ],
)
def test_a_setting_that_it_does_not_implement_is_refused(setting, allowed) -> None:
    key, value = next(iter(setting.items()))
    with pytest.raises(UsageError) as caught:
        AutoencoderKL.from_config({**SMALL, **setting})
    message = str(caught.value)
    assert message.startswith(f"{key}={value!r} is not implemented by AutoencoderKL, which takes")
    assert allowed in message


def test_settings_that_change_nothing_here_are_passed_over() -> None:
    extra = {"sample_size": 512, "force_upcast": True, "shift_factor": None, "latents_std": None}
    assert AutoencoderKL.from_config(SMALL | extra) == AutoencoderKL.from_config(SMALL)
