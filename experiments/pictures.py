"""Pictures as text, so that a figure can be drawn again from an experiment's JSON alone."""

import base64
import io

import numpy as np
from PIL import Image

from zsnr_jax.generate import to_uint8


def pack(images: np.ndarray) -> str:
    """Square images [n, H, H, 3] in [-1, 1] as one PNG, in base64: 8 bits a value."""
    column = to_uint8(images).reshape(-1, *images.shape[2:])
    buffer = io.BytesIO()
    Image.fromarray(column).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def unpack(text: str) -> np.ndarray:
    """The images of `pack`, uint8 [n, H, H, 3]."""
    column = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    size = column.shape[1]
    return column.reshape(-1, size, size, 3)
