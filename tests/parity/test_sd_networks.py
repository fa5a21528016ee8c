"""The networks of Stable Diffusion beside diffusers', live: the same weights, the same outputs."""
# pyright: reportMissingImports=false

import dataclasses
import inspect

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers
from parity import full_width, sd_configs

from zsnr_jax import torch_weights
from zsnr_jax.models.autoencoder import AutoencoderKL
from zsnr_jax.models.sd_unet import UNet2DCondition

TOLERANCE = 1e-5  # relative to the largest output; measured: 3e-6 at most
SMALL = {"block_out_channels": [32, 64, 64, 64], "norm_num_groups": 8, "cross_attention_dim": 24}
UNETS = {
    "2.x": {**sd_configs.UNET_2, **SMALL, "attention_head_dim": [1, 2, 2, 4]},
    "1.x": {**sd_configs.UNET_1, **SMALL, "attention_head_dim": 2},
}
VAE = {**sd_configs.VAE, "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 8}
# Weights as torch draws them, and so small that the epsilons of the norms weigh.
SCALES = [1.0, 0.01]
CLASSES = [
    (UNet2DCondition, diffusers.UNet2DConditionModel, UNETS["2.x"]),
    (UNet2DCondition, diffusers.UNet2DConditionModel, UNETS["1.x"]),
    (AutoencoderKL, diffusers.AutoencoderKL, VAE),
]
IDS = ["unet-2.x", "unet-1.x", "vae"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("version", UNETS)
def test_the_unet_predicts_the_same(version, scale):
    assert full_width.unet(UNETS[version], 16, 8, scale).error < TOLERANCE


@pytest.mark.parametrize("scale", SCALES)
def test_the_autoencoder_encodes_and_decodes_the_same(scale):
    pairs = full_width.vae(VAE, 32, 16, scale)
    assert {name: pair.error for name, pair in pairs.items() if pair.error > TOLERANCE} == {}
    clipped = pairs["clipped"].ours
    assert np.all(clipped[..., 0] == 20) and np.all(clipped[..., 1] == -30)


@pytest.mark.parametrize("ours, theirs, config", CLASSES, ids=IDS)
def test_weights_come_back_as_they_were(ours, theirs, config):
    weights = full_width.tensors(full_width.random_torch(theirs, config))
    inputs = (
        full_width.unet_inputs(config, 8, 8)
        if ours is UNet2DCondition
        else [np.zeros((1, 8, 8, 3), np.float32)]
    )
    params = full_width.flax_params(ours.from_config(config), weights, *inputs)
    back = torch_weights.to_torch(params["params"])
    assert back.keys() == weights.keys()
    for name, x in weights.items():
        assert (back[name].shape, back[name].dtype) == (x.shape, x.dtype), name
        assert back[name].tobytes() == x.tobytes(), name


@pytest.mark.parametrize("ours, theirs, config", CLASSES, ids=IDS)
def test_a_config_written_by_diffusers_is_read_as_its_own(ours, theirs, config):
    written = dict(theirs.from_config(config).config)  # with every key that it knows
    assert ours.from_config(written) == ours.from_config(config)


@pytest.mark.parametrize("ours, theirs, config", CLASSES[1:], ids=IDS[1:])
def test_absent_keys_mean_what_they_do_in_diffusers(ours, theirs, config):
    defaults = {k: p.default for k, p in inspect.signature(theirs.__init__).parameters.items()}
    fields = {field.name: field.default for field in dataclasses.fields(ours)}
    shared = fields.keys() & defaults.keys()
    assert len(shared) >= 9
    assert {key: fields[key] for key in shared} == {key: defaults[key] for key in shared}
