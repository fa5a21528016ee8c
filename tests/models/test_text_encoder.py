"""The text encoder: its size, its dtypes, that no token sees a later one, what is refused.

That it computes what transformers computes is shown in tests/parity/test_text.py.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.text_configs import SIZES, TEXT_2

from zsnr_jax.errors import UsageError
from zsnr_jax.models.text_encoder import TextEncoder

SMALL = {
    **TEXT_2,
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@functools.cache
def _input_ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50, (2, 9))


@functools.cache
def _params():
    """Parameters of every layer at random, none zero or the identity."""
    shapes = jax.eval_shape(TextEncoder.from_config(SMALL).init, jax.random.key(0), _input_ids())
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes)


def _encode(input_ids: np.ndarray, **options) -> np.ndarray:
    model = TextEncoder.from_config(SMALL, **options)
    return np.asarray(jax.jit(model.apply)(_params(), input_ids))


@pytest.mark.parametrize("version", SIZES)
def test_at_full_size_it_has_as_many_parameters_as_stable_diffusion(version: str) -> None:
    config, size = SIZES[version]
    model = TextEncoder.from_config(config, dtype=jnp.bfloat16)
    input_ids = jnp.zeros((3, 77), jnp.int32)
    output, params = jax.eval_shape(model.init_with_output, jax.random.key(0), input_ids)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == size
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert (output.shape, output.dtype) == ((3, 77, config["hidden_size"]), jnp.float32)


def test_bfloat16_computes_close_to_float32_and_returns_float32() -> None:
    full, half = (_encode(_input_ids(), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (half.shape, half.dtype) == ((2, 9, 32), np.float32)
    assert np.any(half != full)
    assert np.sqrt(np.mean((half - full) ** 2)) < 0.05 * np.std(full)


def test_remat_recomputes_every_layer_and_renames_nothing() -> None:
    plain, remat = (TextEncoder.from_config(SMALL, remat=remat) for remat in (False, True))
    shapes = [jax.eval_shape(m.init, jax.random.key(0), _input_ids()) for m in (plain, remat)]
    assert shapes[0] == shapes[1]
    programs = [jax.make_jaxpr(model.apply)(_params(), _input_ids()) for model in (plain, remat)]
    assert [str(program).count("remat2[") for program in programs] == [0, 2]


def test_no_token_sees_a_later_one_and_all_see_the_first() -> None:
    before = _encode(_input_ids())
    for place in (0, 5, 8):
        input_ids = _input_ids().copy()
        input_ids[0, place] = (input_ids[0, place] + 1) % 50
        after = _encode(input_ids)
        np.testing.assert_array_equal(after[0, :place], before[0, :place])
        np.testing.assert_array_equal(after[1], before[1])
        assert np.all(np.abs(after[0, place:] - before[0, place:]).max(axis=-1) > 1e-3)


def test_the_place_of_a_token_matters() -> None:
    output = _encode(np.full((1, 9), 7))
    assert np.abs(np.diff(output[0], axis=0)).max(axis=-1).min() > 1e-3


def test_a_shorter_row_is_the_start_of_a_longer_one() -> None:
    short = _encode(_input_ids()[:, :4])
    np.testing.assert_allclose(short, _encode(_input_ids())[:, :4], rtol=1e-5, atol=1e-5)


def test_an_id_beyond_the_vocabulary_is_no_other_word() -> None:
    assert np.all(np.isnan(_encode(np.array([[49, 50]]))[0, 1]))


def test_more_tokens_than_places_are_refused() -> None:
    with pytest.raises(UsageError, match="78 tokens in a row, for a text encoder of 77"):
        _encode(np.zeros((1, 78), int))


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("hidden_act", "gelu_new", "hidden_act='gelu_new' .* 'gelu' or 'quick_gelu'"),
        ("num_attention_heads", 5, "num_attention_heads=5 .* a divisor of hidden_size=32"),
        ("attention_dropout", 0.1, "attention_dropout=0.1 .* 0.0"),
        ("model_type", "t5", "model_type='t5' .* 'clip_text_model'"),
        ("architectures", ["CLIPTextModelWithProjection"], r"takes \['CLIPTextModel'\]"),
        ("rope_theta", 10_000, "rope_theta=10000 .* no such setting"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key: str, value, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        TextEncoder.from_config(SMALL | {key: value})


def test_what_changes_nothing_is_ignored() -> None:
    later = {"dtype": "float16", "transformers_version": "5.23.0", "projection_dim": 9}
    assert TextEncoder.from_config(SMALL | later) == TextEncoder.from_config(SMALL)
    assert TextEncoder.from_config(SMALL | later, dtype=jnp.bfloat16).dtype == jnp.bfloat16
