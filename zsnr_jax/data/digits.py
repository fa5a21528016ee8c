"""Digits: scikit-learn's 1797 scanned digits at 16x16, half of them white on black, half inverted.

The smallest set of real handwriting that needs no download. The scans' paper is black in the
original, so as they come all means are dark; inverting every second image gives both dark and
bright pictures, which is what a start at the wrong SNR gets wrong.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIZE = 16
SPLITS = {"train": slice(0, 1500), "test": slice(1500, 1797)}
_SEED = 0


def make_digits() -> tuple[np.ndarray, np.ndarray]:
    """The whole set in its seeded order; those at odd places are inverted (white paper).

    Returns: images uint8 [1797, 16, 16, 1]; labels int64 [1797] in 0..9.
    """
    from sklearn.datasets import load_digits  # late: it takes longer to import than JAX

    scans: Any = load_digits()
    order = np.random.default_rng(_SEED).permutation(len(scans.target))
    images = np.stack([_enlarge(scan) for scan in scans.images[order]])[..., None]
    images[1::2] = 255 - images[1::2]
    return images, scans.target[order].astype(np.int64)


def _enlarge(scan: np.ndarray) -> np.ndarray:
    """One scan, float [8, 8] in 0..16, to uint8 [16, 16]."""
    grey = Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


class Digits(tfds.core.GeneratorBasedBuilder):
    """The TFDS set digits; needs no TensorFlow. Rows are those of make_digits, in order."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(SIZE, SIZE, 1), dtype=np.uint8, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scanned 8x8 digits enlarged to 16x16, every second one inverted.",
            features=tfds.features.FeaturesDict(
                {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the order is already random, and odd rows stay inverted
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        images, labels = (part[SPLITS[split]] for part in make_digits())
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}
