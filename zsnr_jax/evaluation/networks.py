"""Inception-v3 and CLIP over many images, in batches of one shape, so that each compiles once.

Both run in full float32: matrix units that round to bfloat16 would move the scores.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from zsnr_jax import preemption
from zsnr_jax.data.tokenizer import ClipTokenizer
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import clip_score, frames
from zsnr_jax.models.clip import CLIP
from zsnr_jax.models.inception import SIZE, InceptionV3

VARIANTS = ("pytorch-fid", "clean")


class Inception:
    """The network of FID and of the Inception score.

    variant: how images come to 299 x 299. "pytorch-fid": bilinear without antialiasing, then
      x / 127.5 - 1 of 0..255, as the package of that name. "clean": PIL's bicubic with it, in
      floats, then (x - 128) / 128, as the package clean-fid (arXiv 2104.11222), though by the
      weights of pytorch-fid, where clean-fid has another conversion of the same ones.
    sha256: of the file of weights.

    Numbers of two variants do not compare.
    """

    def __init__(self, params: Any, variant: str, sha256: str, batch_size: int) -> None:
        """Args: params: of InceptionV3. See `weights.load_inception`."""
        self.variant, self.sha256, self.batch_size = variant, sha256, batch_size
        self._params = jax.device_put(params)  # once: a batch would take it along each time

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pooled features and logits of images, with progress shown.

        The logits are without the bias of the last layer, as the Inception score takes them.

        Args: images: uint8 [n, H, W, 3]; another height or width compiles anew.
        Returns: float32 [n, 2048] and [n, 1008].
        """
        _require_pictures(images)
        starts = tqdm(
            range(0, len(images), self.batch_size), desc="Inception", unit="batch", leave=False
        )
        parts = []
        for i in starts:
            preemption.check("measuring FID")
            parts.append(self.run(images[i : i + self.batch_size]))
        pool, logits = zip(*parts)
        return np.concatenate(pool), np.concatenate(logits)

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`features` of one batch, of batch_size images at most, without progress."""
        _require_pictures(images)
        x = images
        if self.variant == "clean":
            x = (frames.resize_clean(images, SIZE) - 128) / 128
        pool, logits = _run(InceptionV3(), self._params, x, size=self.batch_size)
        return pool, logits - np.asarray(self._params["fc"]["bias"])[None]


class Clip:
    """CLIP, as a judge of how well images keep to their captions.

    name: of the model, without which its scores mean nothing.  sha256: of the file of weights.
    """

    def __init__(
        self,
        model: CLIP,
        params: Any,
        tokenizer: ClipTokenizer,
        name: str,
        sha256: str,
        batch_size: int,
    ) -> None:
        """Args: params: of the model. See `weights.load_clip`."""
        self.name, self.sha256, self.batch_size = name, sha256, batch_size
        self._size = model.vision.image_size
        self._tokenizer = tokenizer
        self._model, self._params = model, jax.device_put(params)

    def scores(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """The CLIP score of each image with its caption, with progress shown.

        Args: images: uint8 [n, H, W, 3]; captions: n, of which what is too long is cut off.
        Returns: float64 [n] in [0, 100].
        """
        if len(images) != len(captions):
            raise UsageError(
                f"{len(images)} images with {len(captions)} captions: give one for each."
            )
        _require_pictures(images)
        ids = self._tokenizer(captions).ids
        starts = range(0, len(images), self.batch_size)
        parts = []
        for i in tqdm(starts, desc="CLIP", unit="batch", leave=False):
            preemption.check("measuring the CLIP score")
            rows = slice(i, i + self.batch_size)
            pixels = frames.crop_clip(images[rows], self._size)
            embeds = _run(self._model, self._params, pixels, ids[rows], size=self.batch_size)
            parts.append(clip_score.clip_scores(*embeds))
        return np.concatenate(parts)


def _run(model: nn.Module, params: Any, *inputs: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Run a batch of `size` rows at most, filled up to it by repeating rows."""
    index = np.arange(size) % len(inputs[0])
    with jax.default_matmul_precision("highest"):
        outputs = _apply(model, params, *(x[index] for x in inputs))
    return tuple(np.asarray(x)[: len(inputs[0])] for x in outputs)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: nn.Module, params: Any, *inputs: jax.Array) -> Any:
    return model.apply({"params": params}, *inputs)


def _require_pictures(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise UsageError(
            f"images are {images.dtype} {list(images.shape)}: give some in colour as uint8 "
            "[n, H, W, 3], rounded from samples as picture files would."
        )
