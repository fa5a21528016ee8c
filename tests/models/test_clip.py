"""CLIP: its size, where a caption ends, what its settings mean, what is refused.

That it computes what transformers computes is shown in tests/parity/test_clip_embeddings.py.
"""

import copy
import functools
import math

import clip_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax import torch_weights
from zsnr_jax.errors import UsageError
from zsnr_jax.models.clip import CLIP

# openai/clip-vit-base-patch16 and large-patch14, where they differ from transformers' defaults.
SIZES = {
    "base-patch16": (
        {"projection_dim": 512, "text_config": {}, "vision_config": {"patch_size": 16}},
        149_620_737,
    ),
    "large-patch14": (
        {
            "projection_dim": 768,
            "text_config_dict": {
                **{"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768},
                **{"num_attention_heads": 12, "num_hidden_layers": 12},
            },
            "vision_config_dict": {
                **{"hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 768},
                **{"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14},
            },
        },
        427_616_513,
    ),
}
IDS = np.array([[3, 9, 7, 50, 50, 50], [8, 50, 4, 4, 4, 4]])


def small(**text):
    config = copy.deepcopy(clip_model.CONFIG)
    config["text_config"] |= {"vocab_size": 51} | text
    return config


@functools.cache
def params():
    return {"params": clip_model.params(CLIP.from_config(small()))}


@functools.cache
def apply():
    return jax.jit(CLIP.from_config(small()).apply)


def embed(images, ids):
    return jax.tree.map(np.asarray, apply()(params(), images, ids))


@pytest.mark.parametrize("name", SIZES)
def test_at_full_size_it_has_as_many_parameters_as_openais(name):
    config, size = SIZES[name]
    model = CLIP.from_config({"model_type": "clip", **config})
    inputs = jnp.zeros((2, 224, 224, 3), jnp.uint8), jnp.zeros((2, 77), jnp.int32)
    outputs, found = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    scale = 1  # of logits, a parameter that scores do without
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(found)) + scale == size
    assert [x.shape for x in outputs] == [(2, config["projection_dim"])] * 2
    assert {x.dtype for x in outputs} == {jnp.dtype("float32")}


def test_names_are_those_of_transformers():
    names = set(torch_weights.to_torch(params()["params"]))
    assert {name.split(".")[0] for name in names} == {
        *("text_model", "vision_model", "text_projection", "visual_projection")
    }
    for name in (
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.pre_layrnorm.bias",
        "vision_model.encoder.layers.1.self_attn.out_proj.bias",
        "vision_model.post_layernorm.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.final_layer_norm.weight",
        "text_projection.weight",
    ):
        assert name in names


def test_bytes_and_floats_are_the_same_image_and_vectors_have_length_1():
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    image, text = embed(images, IDS)
    again, _ = embed(images.astype(np.float32) / 255, IDS)
    np.testing.assert_allclose(again, image, atol=1e-6)
    for vectors in (image, text):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    # Every patch is seen, the last one too.
    for corner in (0, 23):
        other = images.copy()
        other[:, corner, corner] ^= 255
        assert np.abs(embed(other, IDS)[0] - image).max() > 1e-4


def test_a_caption_is_read_up_to_its_end_and_no_further():
    images = np.zeros((2, 24, 24, 3), np.uint8)
    _, text = embed(images, IDS)
    padded = IDS.copy()
    padded[0, 4:], padded[1, 2:] = 0, 11
    np.testing.assert_allclose(embed(images, padded)[1], text, atol=1e-6)
    changed = IDS.copy()  # the last token before each end
    changed[0, 2] += 1
    changed[1, 0] += 1
    assert np.abs(embed(images, changed)[1] - text).max(axis=1).min() > 1e-3


def test_where_a_caption_ends():
    # 2 stands in early configs, where the end token is the last one all the same.
    assert CLIP.from_config(small(eos_token_id=2)).end_id == 50
    assert CLIP.from_config(small(eos_token_id=49)).end_id == 49


@pytest.mark.parametrize(
    "place, key, value, told",
    [
        ("", "model_type", "siglip", "model_type='siglip' .* CLIP, which takes 'clip'"),
        ("", "text_config", None, "text_config=None .* settings of that tower"),
        ("", "rope_theta", 1, "rope_theta=1 .* no such setting"),
        ("text_config", "hidden_act", "relu", "hidden_act='relu' .* TextEncoder"),
        ("vision_config", "hidden_act", "relu", "hidden_act='relu' .* VisionEncoder"),
        ("vision_config", "num_attention_heads", 5, "=5 .* a divisor of hidden_size=16"),
        ("vision_config", "attention_dropout", 0.1, "attention_dropout=0.1"),
        ("vision_config", "use_head", True, "use_head=True .* VisionEncoder"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(place, key, value, told):
    config = small()
    (config[place] if place else config)[key] = value
    with pytest.raises(UsageError, match=told):
        CLIP.from_config(config)
