"""FID, Inception score and CLIP score of a set of pictures, as far as the weights are there."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsnr_jax.data.pipeline import fit_image
from zsnr_jax.evaluation import clip_score, fid, inception_score, weights
from zsnr_jax.evaluation.networks import VARIANTS, Clip, Inception

Estimates = dict[str, dict[str, Any]]
_INCEPTION = (
    "FID and Inception score are not measured: set evaluation.inception to Inception's weights; "
    f"{weights.HOW_TO_GET_INCEPTION}."
)
_FID = (
    "FID is not measured: set evaluation.fid_statistics to what python -m zsnr_jax.evaluation.fid "
    "makes of real images."
)
_CLIP = (
    "The CLIP score is not measured: set evaluation.prompts, and evaluation.clip to a folder of "
    "CLIP in transformers' format, as that of openai/clip-vit-large-patch14."
)


@dataclasses.dataclass(frozen=True)
class Judges:
    """The networks that measure, each of which may be absent."""

    inception: Inception | None
    reference: fid.Reference | None
    clip: Clip | None

    @property
    def provenance(self) -> dict[str, str]:
        """Which networks measured, by the sha256 of their weights."""
        found = {}
        if self.inception is not None:
            found[f"inception ({self.inception.variant})"] = self.inception.sha256
        if self.clip is not None:
            found[self.clip.name] = self.clip.sha256
        return found

    def measure(self, images: np.ndarray, captions: Sequence[str]) -> Estimates:
        """Scores of pictures, uint8 [n, H, W, 3], with their captions, [n] or none.

        For Inception they are resized to the size of the real images that FID is taken against.
        """
        found: Estimates = {}
        if self.inception is not None:
            size = images.shape[1] if self.reference is None else self.reference.image_size
            fitted = np.stack([fit_image(image, size) for image in images])
            pool, logits = self.inception.features(fitted)
            if len(images) >= inception_score.SPLITS:  # each part needs a picture
                found |= inception_score.evaluate(logits)
            if self.reference is not None:
                of = self.inception
                found |= fid.evaluate(pool, of.variant, of.sha256, self.reference)
        if self.clip is not None and captions:
            scores = self.clip.scores(images, captions)
            found |= clip_score.evaluate(scores, self.clip.name)
        return found

    def missing(self, captions: Sequence[str]) -> list[str]:
        """What is not measured, and what to set: a sentence each."""
        reference = _INCEPTION if self.inception is None else None if self.reference else _FID
        return [x for x in (reference, None if self.clip and captions else _CLIP) if x]


def load(settings: Mapping[str, Any]) -> Judges:
    """Read what evaluation.{inception,fid_statistics,clip} name, as far as they are set.

    Raises: UsageError for what is missing, with how to get it, or broken.
    """
    place = lambda name: Path(settings[name]).expanduser()  # noqa: E731
    reference = fid.load(place("fid_statistics")) if settings["fid_statistics"] else None
    variant = VARIANTS[0] if reference is None else reference.variant
    return Judges(
        weights.load_inception(place("inception"), variant) if settings["inception"] else None,
        reference,
        weights.load_clip(place("clip")) if settings["clip"] else None,
    )
