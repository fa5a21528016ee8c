"""Images brought to the size of an evaluation network, on the host, by PIL."""

import numpy as np
from PIL import Image

_BICUBIC = Image.Resampling.BICUBIC  # PIL's, which averages over what it leaves out


def resize_clean(images: np.ndarray, size: int) -> np.ndarray:
    """Resize by clean-fid's rule: each channel in floats, and nothing rounded to 8 bits.

    Args: images: uint8 [n, H, W, 3].
    Returns: float32 [n, size, size, 3] in [0, 255].
    Source: arXiv 2104.11222, section 3.
    """
    resized = np.empty([len(images), size, size, 3], np.float32)
    for row, image in enumerate(images):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel].astype(np.float32))
            resized[row, ..., channel] = np.asarray(plane.resize((size, size), _BICUBIC))
    return resized.clip(0, 255)


def crop_clip(images: np.ndarray, size: int) -> np.ndarray:
    """Resize the short side to `size` and cut out the centre, as CLIP's images are.

    Args: images: uint8 [n, H, W, 3].
    Returns: uint8 [n, size, size, 3].
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    tall, broad = size * height // short, size * width // short
    top, left = (tall - size) // 2, (broad - size) // 2
    resized = [Image.fromarray(image).resize((broad, tall), _BICUBIC) for image in images]
    cropped = [np.asarray(image)[top : top + size, left : left + size] for image in resized]
    return np.stack(cropped)
