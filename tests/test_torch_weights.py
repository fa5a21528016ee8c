"""Torch's names and layouts. Beside torch's own modules: tests/parity."""

import numpy as np
import pytest

from zsnr_jax import torch_weights
from zsnr_jax.errors import UsageError

PATHS = {
    ("down_blocks_0", "resnets_11", "conv1", "kernel"): "down_blocks.0.resnets.11.conv1.weight",
    ("mid_block", "attentions_0", "norm", "scale"): "mid_block.attentions.0.norm.weight",
    ("time_embedding", "linear_1", "bias"): "time_embedding.linear_1.bias",
    ("attn1", "to_out_0", "kernel"): "attn1.to_out.0.weight",
    ("embeddings", "token_embedding", "embedding"): "embeddings.token_embedding.weight",
}  # fmt: skip
RNG = np.random.default_rng(0)
PARAMS = {
    "conv_in": {
        "kernel": RNG.normal(size=(3, 1, 4, 5)).astype(np.float32),
        "bias": RNG.normal(size=5).astype(np.float16),
    },
    "resnets_0": {"proj": {"kernel": RNG.normal(size=(4, 7)).astype(np.float32)}},
    "norm": {"scale": RNG.normal(size=6).astype(np.float32)},
}


@pytest.mark.parametrize("path", PATHS, ids="/".join)
def test_names(path):
    assert torch_weights.torch_name(path) == PATHS[path]


def test_kernels_are_turned_and_all_comes_back():
    tensors = torch_weights.to_torch(PARAMS)
    assert {name: x.shape for name, x in tensors.items()} == {
        "conv_in.weight": (5, 4, 3, 1),
        "conv_in.bias": (5,),
        "resnets.0.proj.weight": (7, 4),
        "norm.weight": (6,),
    }
    kernel, weight = PARAMS["conv_in"]["kernel"], tensors["conv_in.weight"]
    assert weight[4, 3, 2, 0] == kernel[2, 0, 3, 4]
    dense = PARAMS["resnets_0"]["proj"]["kernel"]
    assert tensors["resnets.0.proj.weight"][6, 1] == dense[1, 6]
    back = torch_weights.from_torch(tensors, PARAMS, "there")
    again = torch_weights.to_torch(back)
    for name, x in tensors.items():
        assert again[name].dtype == x.dtype and again[name].tobytes() == x.tobytes()
    np.testing.assert_array_equal(back["conv_in"]["kernel"], kernel)


def test_every_leaf_is_filled_once_or_all_faults_are_listed():
    tensors = torch_weights.to_torch(PARAMS)
    del tensors["norm.weight"]
    tensors["conv_in.bias"] = tensors["conv_in.bias"][:4]
    tensors |= {f"extra.{i}": np.zeros(1) for i in range(7)}
    with pytest.raises(UsageError) as caught:
        torch_weights.from_torch(tensors, PARAMS, "unet/model.safetensors")
    said = str(caught.value)
    assert said.startswith("unet/model.safetensors is not of this network, missing norm.weight; ")
    assert "extra extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more; " in said
    assert "misshapen conv_in.bias [4] for [5]" in said
