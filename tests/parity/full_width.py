"""Our networks beside those of torch, with the same random weights. At the sizes of Stable
Diffusion 2.1 by hand, since they need up to 8 GB of memory:

PYTHONPATH=tests python -m parity.full_width unet vae text
"""
# pyright: reportMissingImports=false

import gc
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import diffusers
import jax
import numpy as np
import torch
from einops import rearrange
from parity import sd_configs

from zsnr_jax import torch_weights
from zsnr_jax.models.autoencoder import AutoencoderKL
from zsnr_jax.models.sd_unet import UNet2DCondition


class Pair(NamedTuple):
    """What the two give for the same inputs, NHWC."""

    ours: np.ndarray
    theirs: np.ndarray

    @property
    def error(self) -> float:
        """The largest difference over the largest value of theirs."""
        return float(np.abs(self.ours - self.theirs).max() / np.abs(self.theirs).max())


# What layers write is normalised by others, but for what these write.
_UNNORMALISED = re.compile(r"norm|to_[qkv]|time_embedding|ff|quant|conv_out")


def random_torch(model: type, config: Mapping[str, Any], scale: float = 1.0):
    """Make a torch model of a config with random weights, no norm the identity.

    A small scale makes all that norms read so small that their epsilons matter.
    """
    torch.manual_seed(0)
    network = model.from_config(dict(config)).eval()
    with torch.no_grad():
        for name, x in network.named_parameters():
            if "norm" in name:
                x += 0.2 * torch.randn(x.shape)
            if not _UNNORMALISED.search(name):
                x *= scale
    return network


def tensors(network) -> dict[str, np.ndarray]:
    """The weights of a torch model, by its names, sharing its memory."""
    return {name: x.numpy() for name, x in network.state_dict().items()}


def flax_params(model, weights: Mapping[str, np.ndarray], *inputs: np.ndarray):
    """The weights as a model's parameters. `inputs` are what it is called with."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return {"params": torch_weights.from_torch(weights, shapes["params"], "torch")}


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rearrange(x, "b h w c -> b c h w").copy())


def nhwc(x: torch.Tensor) -> np.ndarray:
    return rearrange(x.detach().numpy(), "b c h w -> b h w c")


def unet_inputs(config: Mapping[str, Any], height: int, width: int) -> list[np.ndarray]:
    """Latents, the two ends of the timesteps, and a context of 77 tokens."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, height, width, config["in_channels"]), np.float32)
    context = rng.standard_normal((2, 77, config["cross_attention_dim"]), np.float32)
    return [latents, np.array([0, 999]), context]


def unet(config: Mapping[str, Any], height: int, width: int, scale: float = 1.0) -> Pair:
    """One call of the UNet."""
    inputs = latents, timestep, context = unet_inputs(config, height, width)
    network = random_torch(diffusers.UNet2DConditionModel, config, scale)
    with torch.no_grad():
        output = network(nchw(latents), torch.from_numpy(timestep), torch.from_numpy(context))
    model = UNet2DCondition.from_config(config)
    params = flax_params(model, tensors(network), *inputs)
    del network  # a copy at a time: at full size they are large
    gc.collect()
    return Pair(np.asarray(jax.jit(model.apply)(params, *inputs)), nhwc(output.sample))


def vae(config: Mapping[str, Any], height: int, width: int, scale: float = 1.0) -> dict[str, Pair]:
    """Encoding of an image to its moments, and decoding of latents.

    The last two channels' log variances are pushed beyond the bounds, one on either side.
    """
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, height, width, config["in_channels"])).astype(np.float32)
    network = random_torch(diffusers.AutoencoderKL, config, scale)
    with torch.no_grad():
        network.quant_conv.bias[-2:] += torch.tensor([50.0, -50.0])
        posterior = network.encode(nchw(images)).latent_dist
        latents = rng.standard_normal(nhwc(posterior.mean).shape, np.float32)
        pictures = network.decode(nchw(latents) / network.config.scaling_factor).sample
    model = AutoencoderKL.from_config(config)
    params = flax_params(model, tensors(network), images)
    moments = jax.jit(lambda p, x: model.apply(p, x, method=model.encode))(params, images)
    decoded = jax.jit(lambda p, z: model.apply(p, z, method=model.decode))(params, latents)
    mean, logvar = np.split(np.asarray(moments), 2, axis=-1)
    their_mean, their_logvar = nhwc(posterior.mean), nhwc(posterior.logvar)
    return {
        "mean": Pair(mean, their_mean),
        "logvar": Pair(logvar[..., :-2], their_logvar[..., :-2]),
        "clipped": Pair(logvar[..., -2:], their_logvar[..., -2:]),
        "decoded": Pair(np.asarray(decoded), nhwc(pictures)),
    }


def full_width(part: str) -> dict[str, float]:
    """The errors of one network at the sizes of Stable Diffusion 2.1, on small pictures."""
    if part == "text":
        from parity import full_width_text  # which itself imports this file

        return full_width_text.full_width()
    if part == "unet":
        return {"output": unet(sd_configs.UNET_2, 16, 16).error}
    return {name: pair.error for name, pair in vae(sd_configs.VAE, 128, 128).items()}


if __name__ == "__main__":
    for part in sys.argv[1:]:
        print(part, full_width(part), flush=True)
