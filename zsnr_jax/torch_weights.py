"""Weights between torch's names and layouts, in safetensors files, and Flax parameters.

The networks under `models/` that have a torch counterpart name their submodules after it, so that
one rule serves all of them:

    down_blocks_0/resnets_1/conv1/kernel [3, 3, I, O]  <->  down_blocks.0.resnets.1.conv1.weight [O, I, 3, 3]

A leaf named kernel, scale or embedding is torch's weight, and every other keeps its name. Kernels
are transposed: of convolutions from [H, W, I, O] to [O, I, H, W], of dense layers from [I, O] to
[O, I].
"""  # noqa: E501

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zsnr_jax.errors import UsageError

# Submodules that are members of a list in torch: their number is a name of its own there.
_LISTS = (
    "down_blocks", "up_blocks", "resnets", "attentions", "transformer_blocks", "downsamplers",
    "upsamplers", "to_out", "net", "layers",
)  # fmt: skip
_WEIGHTS = ("kernel", "scale", "embedding")
_MEMBER = re.compile(rf"^({'|'.join(_LISTS)})_(\d+)$")
_SHOWN = 5  # names in a message


def torch_name(path: tuple[str, ...]) -> str:
    """What torch calls the parameter at a path of Flax parameters."""
    *modules, leaf = (_MEMBER.sub(r"\1.\2", part) for part in path)
    return ".".join([*modules, "weight" if leaf in _WEIGHTS else leaf])


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flax parameters (without the outer "params") as torch has them, by its names."""
    flat = _flat(params)
    return {torch_name(path): _to_torch_layout(path, np.asarray(x)) for path, x in flat.items()}


def from_torch(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Fill Flax parameters with torch's tensors, each leaf exactly once.

    Args: tensors: by torch's names.  shapes: the parameters, or their `jax.eval_shape`, without the
      outer "params".  where: the file, for the message.
    Returns: like `shapes`, of NumPy arrays that keep the tensors' dtypes.
    Raises: UsageError that lists what is missing, extra, misshapen, or not of floats.
    """
    like = _flat(shapes)
    wanted = {torch_name(path): path for path in like}
    filled = {
        path: _to_flax_layout(path, np.asarray(tensors[name]))
        for name, path in wanted.items()
        if name in tensors
    }
    misshapen = [
        f"{name} {list(tensors[name].shape)} for {list(_torch_shape(path, like[path].shape))}"
        for name, path in wanted.items()
        if name in tensors and filled[path].shape != like[path].shape
    ]
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "extra": sorted(tensors.keys() - wanted.keys()),
        "misshapen": misshapen,
        "not of floats": [
            f"{name} {tensors[name].dtype}"
            for name in wanted
            if name in tensors and not jnp.issubdtype(tensors[name].dtype, jnp.floating)
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{what} {_listed(names)}" for what, names in faults.items() if names)
        raise UsageError(
            f"{where} is not of this network, {listed}: give the folder whose config.json belongs "
            "to it, or a whole copy."
        )
    return traverse_util.unflatten_dict(filled)


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return dict(traverse_util.flatten_dict(tree))  # pyright: ignore[reportArgumentType]


def _listed(names: list[str]) -> str:
    names = [name if name.isprintable() else ascii(name) for name in names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _to_torch_layout(path: tuple[str, ...], x: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return x
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T)


def _to_flax_layout(path: tuple[str, ...], x: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return x
    return np.ascontiguousarray(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T)


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
