"""A whole Stable Diffusion 2.x folder in diffusers' format, tiny, of random weights."""

import functools
import json
from pathlib import Path

import clip_folder
import jax
import jax.numpy as jnp
import numpy as np
from parity.sd_configs import UNET_2, VAE
from test_scheduler_config import BASE

from zsnr_jax import safetensors_files, torch_weights
from zsnr_jax.models.autoencoder import AutoencoderKL
from zsnr_jax.models.sd_unet import UNet2DCondition
from zsnr_jax.models.text_encoder import TextEncoder

UNET = UNET_2 | {
    "block_out_channels": [32, 64], "attention_head_dim": [2, 4], "cross_attention_dim": 32,
    "layers_per_block": 1, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
AUTOENCODER = VAE | {
    "block_out_channels": [32, 64], "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": 600,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 77, "hidden_act": "gelu",
}  # fmt: skip
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.8.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
NETWORKS = {  # its class, settings, inputs, and the stem of its weights
    "unet": (UNet2DCondition, UNET, ((1, 4, 4, 4), (1,), (1, 1, 32)), "diffusion_pytorch_model"),
    "vae": (AutoencoderKL, AUTOENCODER, ((1, 4, 4, 3),), "diffusion_pytorch_model"),
    "text_encoder": (TextEncoder, TEXT_ENCODER, ((1, 1),), "model"),
}


@functools.cache
def weights(name: str) -> dict[str, np.ndarray]:
    """A network's tensors by torch's names; float32, of the UNet some float16."""
    kind, config, shapes, _ = NETWORKS[name]
    inputs = [jnp.zeros(shape, jnp.float32 if len(shape) > 2 else jnp.int32) for shape in shapes]
    like = jax.eval_shape(kind.from_config(config).init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    filled = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), like)
    tensors = torch_weights.to_torch(filled)
    if name == "unet":
        half = {key: x.astype(np.float16) for key, x in tensors.items() if "conv_in" in key}
        return tensors | half
    if name == "text_encoder":
        return tensors | {"text_model.embeddings.position_ids": np.arange(77)[None]}
    return tensors


def write(folder: Path) -> Path:
    """Write the folder, and return it."""
    for name, (_, config, _, stem) in NETWORKS.items():
        safetensors_files.save(folder / name, stem, weights(name))
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(BASE))
    clip_folder.write(folder / "tokenizer")
    return folder
