"""Our text encoder beside transformers', with the same random weights. At the size of Stable
Diffusion 2.1 by hand, since it needs 3 GB of memory:

PYTHONPATH=tests python -m parity.full_width_text
"""
# pyright: reportMissingImports=false

import gc
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers
from parity.full_width import Pair, flax_params
from parity.text_configs import TEXT_2

from zsnr_jax.models.text_encoder import TextEncoder


def random_torch(config: Mapping[str, Any], scale: float = 1.0) -> transformers.CLIPTextModel:
    """Make transformers' model with random weights, no bias zero and no norm the identity.

    Attention is made to choose: as transformers draws the weights, every token weighs alike. A
    small scale of all but the norms makes the epsilons of the norms matter.
    """
    torch.manual_seed(0)
    network = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).eval()
    with torch.no_grad():
        for name, x in network.named_parameters():
            if "norm" in name:
                x += 0.2 * torch.randn(x.shape)
            elif "q_proj" in name or "k_proj" in name:
                x[:] = 2 * torch.randn(x.shape) / x.shape[-1] ** 0.5
            elif "bias" in name:
                x += 0.2 * scale * torch.randn(x.shape)
            else:
                x *= scale
    return network


def tensors(network: transformers.CLIPTextModel) -> dict[str, np.ndarray]:
    """The weights by the names in Stable Diffusion's folders, sharing the network's memory.

    transformers 5 calls its own by shorter ones, and reads both.
    """
    return {
        f"text_model.{name.removeprefix('text_model.')}": x.numpy()
        for name, x in network.state_dict().items()
    }


def input_ids(config: Mapping[str, Any], length: int = 77) -> np.ndarray:
    """Two rows of random ids; the second ends in padding, as captions do."""
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], (2, length))
    ids[1, length // 2 :] = 0
    return ids


def text(config: Mapping[str, Any], scale: float = 1.0, length: int = 77) -> Pair:
    """One call of the text encoder."""
    ids = input_ids(config, length)
    network = random_torch(config, scale)
    with torch.no_grad():
        output = network(torch.from_numpy(ids)).last_hidden_state.numpy()
    model = TextEncoder.from_config(config)
    params = flax_params(model, tensors(network), ids)
    del network  # a copy at a time: at full size they are large
    gc.collect()
    return Pair(np.asarray(jax.jit(model.apply)(params, ids)), output)


def full_width() -> dict[str, float]:
    """The error at the size of Stable Diffusion 2.1."""
    return {"last_hidden_state": text(TEXT_2).error}


if __name__ == "__main__":
    print("text", full_width(), flush=True)
