"""CLIP and its images beside transformers', live: the same vectors, the same pixels."""
# pyright: reportMissingImports=false

import copy
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import clip_folder
import clip_model
import jax
import torch
import transformers
from parity.full_width import nchw, nhwc
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from zsnr_jax import torch_weights
from zsnr_jax.evaluation import frames, weights
from zsnr_jax.models import clip
from zsnr_jax.models.clip import CLIP

TOLERANCE = 1e-5  # of vectors of length 1; measured: 3e-7 at most
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 24, 24, 3), np.uint8)
CAPTIONS = ["a photo of a cat", "the old garden in the rain!!"]


def gelu():
    """As LAION's CLIPs have it: another activation, and towers of different sizes."""
    config = copy.deepcopy(clip_model.CONFIG)
    config["text_config"] |= {"hidden_act": "gelu", "hidden_size": 24, "num_hidden_layers": 3}
    config["vision_config"] |= {"hidden_act": "gelu", "patch_size": 6, "layer_norm_eps": 1e-2}
    return config


def twice():
    """As OpenAI's large CLIPs have it: a second dict, which outweighs the first, and its gaps."""
    config = copy.deepcopy(clip_model.CONFIG)
    sizes = {k: clip_model.TOWER[k] for k in ("hidden_size", "intermediate_size")}
    config["text_config_dict"] = {**sizes, "num_hidden_layers": 1, "vocab_size": 49408}
    config["vision_config_dict"] = {**sizes, "num_attention_heads": 4, "image_size": 64}
    return config


def random_torch(config):
    """transformers' model with random weights, none zero or the identity."""
    torch.manual_seed(0)
    # It writes into the dicts that it is given.
    network = transformers.CLIPModel(transformers.CLIPConfig(**copy.deepcopy(config))).eval()
    with torch.no_grad():
        for name, x in network.named_parameters():
            x[...] = 0.3 * torch.randn(x.shape) + (
                1.0 if "norm" in name and "weight" in name else 0
            )
    return network


def state(network):
    """The weights by the names of files, which transformers 5 shortens on some networks."""
    return {k: x.numpy() for k, x in network.state_dict().items() if k != "logit_scale"}


@pytest.mark.parametrize("make", [lambda: clip_model.CONFIG, gelu, twice])
def test_the_vectors_are_the_same(make):
    config = make()
    network, model = random_torch(config), CLIP.from_config(config)
    side, vocab_size = model.vision.image_size, model.text.vocab_size
    pixels = RNG.standard_normal((2, side, side, 3), np.float32)
    ids = RNG.integers(0, vocab_size - 1, (2, 9))
    ids[0, 5:] = ids[1, 8] = vocab_size - 1  # the end token, and padding of the same
    with torch.no_grad():
        theirs = network(torch.from_numpy(ids), nchw(pixels))
    images = pixels * np.array(clip.STD, np.float32) + np.array(clip.MEAN, np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, ids)["params"]
    params = torch_weights.from_torch(state(network), shapes, "torch")
    ours = jax.jit(model.apply)({"params": params}, images, ids)
    for found, expected in zip(ours, (theirs.image_embeds, theirs.text_embeds)):
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE)


def test_scores_are_those_of_transformers_on_the_same_folder(tmp_path):
    clip_model.write(tmp_path)
    network = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    images = RNG.integers(0, 256, (2, 40, 31, 3), np.uint8)
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    pixels = CLIPImageProcessorPil(**size)(list(images), return_tensors="pt").pixel_values
    ids = tokenizer(CAPTIONS, padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        output = network(ids, pixels)
    cosines = (output.image_embeds * output.text_embeds).sum(dim=1).numpy()
    ours = weights.load_clip(tmp_path, batch_size=2).scores(images, CAPTIONS)
    np.testing.assert_allclose(ours, 100 * np.maximum(cosines, 0), atol=1e-3)


@pytest.mark.parametrize("height, width", [(40, 31), (31, 40), (224, 224), (64, 64), (301, 512)])
def test_pixels_are_those_of_transformers(height, width):
    images = RNG.integers(0, 256, (2, height, width, 3), np.uint8)
    theirs = CLIPImageProcessorPil()(list(images), return_tensors="pt").pixel_values
    pixels = nhwc(theirs) * np.array(clip.STD) + np.array(clip.MEAN)
    np.testing.assert_allclose(frames.crop_clip(images, 224) / 255, pixels, atol=1e-3)


def test_a_folder_that_transformers_saved_is_read(tmp_path):
    config = copy.deepcopy(clip_model.CONFIG)
    config["text_config"]["eos_token_id"] = clip_model.VOCAB_SIZE - 1
    network = random_torch(config)
    network.save_pretrained(tmp_path)
    clip_folder.write(tmp_path, pad=clip_folder.END)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert CLIP.from_config(saved) == CLIP.from_config(config)
    assert weights.load_clip(tmp_path, batch_size=1).name == tmp_path.name
