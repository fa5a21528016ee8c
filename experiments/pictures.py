"""Pictures as text, so that a figure can be drawn again from an experiment's JSON alone."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from zsnr_jax import plotting
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


def show(
    axes: Axes,
    rows: Sequence[str],
    texts: Sequence[str],
    columns: Sequence[str] = (),
    scale: int = 2,
) -> None:
    """Draw a row of pictures, as `pack` has them, for each name in rows; alike many in each.

    Args: columns: names under the columns, each of which is for as many; scale: magnification.
    """
    images = [unpack(text) for text in texts]
    grid = plotting.image_grid(np.concatenate(images), columns=len(images[0]), scale=scale)
    axes.imshow(grid, interpolation="nearest")
    axes.set_yticks(_centres(grid.shape[0], len(rows)), rows)
    axes.set_xticks(_centres(grid.shape[1], len(columns)), columns, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _centres(length: int, count: int) -> np.ndarray:
    """Where the middles of so many equal parts of a grid's side are."""
    return (np.arange(count) + 0.5) * (length - 2) / max(count, 1)
