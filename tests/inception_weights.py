"""Weights for Inception-v3 under torch's names, made of nothing but NumPy: the same everywhere.

Batch norms differ from the identity, and convolutions keep the size of what passes, so that all
that is in the network shows in its output.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Fill tensors, of the shapes that torch has, each from a generator of its own."""
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def images(size: int = 75) -> np.ndarray:
    """Two pictures, a smooth and a rough one, uint8 [2, size, size + 9, 3]."""
    rng = np.random.default_rng(7)
    rough = rng.integers(0, 256, (size, size + 9, 3))
    y, x = np.mgrid[0:size, 0 : size + 9] / size
    smooth = np.stack([x, y, np.sin(5 * x * y) ** 2], axis=-1).clip(0, 1) * 255
    return np.stack([rough, smooth]).astype(np.uint8)


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng: Any = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        x = rng.uniform(0.3, 2.0, shape)
    elif name.endswith("bn.weight"):
        x = rng.uniform(0.7, 1.4, shape)
    elif len(shape) > 1:  # what keeps the variance of what is positive only
        x = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        x = 0.2 * rng.standard_normal(shape)
    return np.asarray(x, np.float32)
