"""A small CLIP folder in transformers' format, with made-up weights."""

import json
from pathlib import Path
from typing import Any

import clip_folder
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from zsnr_jax import torch_weights
from zsnr_jax.models.clip import CLIP

# As openai/clip-vit-large-patch14 has it, in short, and small. The end token is the last one.
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "do_sample": False,
    "top_k": 50,
    "architectures": None,
}
VOCAB_SIZE = len(clip_folder.train()[0])
CONFIG: dict[str, Any] = {
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 12,
    "text_config": {
        **TOWER,
        "model_type": "clip_text_model",
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 77,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "projection_dim": 12,
    },
    "vision_config": {
        **TOWER,
        "model_type": "clip_vision_model",
        "image_size": 24,
        "patch_size": 8,
        "num_channels": 3,
        "projection_dim": 12,
    },
    "torch_dtype": "float32",
    "transformers_version": None,
}


def write(folder: Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer."""
    clip_folder.write(folder, pad=clip_folder.END)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = torch_weights.to_torch(params(CLIP.from_config(CONFIG)))
    # Files have these two besides: no parameters of what we compute.
    tensors["logit_scale"] = np.array(2.6592, np.float32)
    tensors["vision_model.embeddings.position_ids"] = np.arange(10)[None]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def params(model: CLIP) -> dict[str, Any]:
    """Parameters at random, none zero or the identity."""
    side = model.vision.image_size
    inputs = jnp.zeros((1, side, side, 3)), jnp.zeros((1, 7), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape, np.float32), shapes)
