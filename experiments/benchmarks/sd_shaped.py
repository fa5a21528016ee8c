"""The network that both libraries are timed on: Stable Diffusion 2.1's UNet, narrow, 36 M weights.

Its weights are drawn once, on disk, and read by both sides.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zsnr_jax import architectures, diffusers_io, files, random_folder, safetensors_files
from zsnr_jax import torch_weights as names

CHANNELS = (64, 128, 256, 256)
CONFIG = architectures.SD21["unet"] | {
    "block_out_channels": list(CHANNELS),
    "attention_head_dim": [channels // 32 for channels in CHANNELS],  # of heads, as in the folder
    "cross_attention_dim": 512,
}
NUM_STEPS = 1000  # T
GUIDANCE, RESCALE = 7.5, 0.7


class Sizes(NamedTuple):
    """Of what is computed."""

    batch: int  # of a call and of a training step
    images: int  # that are drawn at once
    steps: int  # of the sampler
    size: int  # of latents
    width: int | None = None  # of an embedded prompt; None: CONFIG's


class Setting(NamedTuple):
    """What computes it, and how."""

    dtype: str = "float32"  # of products and convolutions; training keeps its weights in float32
    remat: bool = False  # training computes blocks twice instead of storing them
    device: str = "cpu"  # as torch has it; ours takes what JAX finds


def write_weights(folder: Path, config: dict[str, Any] | None = None) -> int:
    """Draw the weights, of CONFIG or another, into a folder as diffusers has it.

    Returns: how many.
    """
    config = config or CONFIG
    params = random_folder.random_params("unet", config, seed=0)
    tensors = names.to_torch(params)
    folder.mkdir(parents=True)
    safetensors_files.save(folder, diffusers_io.weight_stem("unet"), tensors)
    files.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return sum(tensor.size for tensor in tensors.values())


def inputs(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latents [B, H, W, 4], noise like them, timesteps [B] in 0..T-1 and contexts [B, 77, D]."""
    rng = np.random.default_rng(0)
    shape = (sizes.batch, sizes.size, sizes.size, 4)
    latents, noise = (rng.standard_normal(shape, np.float32) for _ in range(2))
    timestep = rng.integers(NUM_STEPS, size=sizes.batch)
    return latents, noise, timestep, contexts(sizes.batch, sizes.width)


def contexts(count: int, width: int | None = None) -> np.ndarray:
    """Embedded prompts, [count, 77, width]; not of any words."""
    shape = (count, 77, width or CONFIG["cross_attention_dim"])
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def describe(num_weights: int, sizes: Sizes) -> dict[str, Any]:
    """What a result says of it."""
    return {"config": CONFIG, "weights": num_weights, **sizes._asdict()}
