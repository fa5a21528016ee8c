"""The CLIP score: how near CLIP places an image to its caption. NumPy, float64.

    score = 100 max(cos(image, caption), 0)

Source: arXiv 2104.08718, section 3, whose weight is 2.5 where 100 has become usual. Scores of two
CLIPs do not compare: the model's name is part of the number.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from zsnr_jax.evaluation.brightness import bootstrap


def clip_scores(image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
    """Scores of images with their captions, float64 [n], from vectors [n, D] of any length."""
    image, text = (_normalize(x) for x in (image_embeds, text_embeds))
    return 100 * np.maximum(np.sum(image * text, axis=1), 0)


def evaluate(scores: np.ndarray, model: str, seed: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Average the scores [n] that a CLIP of the name `model` gave. Args: seed: of the bootstrap.

    Yields: (name, {"value", "low", "high", "n"}) for clip_score/<model>, with the 95 % bootstrap
      interval over the images.
    """
    rng = np.random.default_rng(seed)
    estimate = bootstrap(lambda groups: float(np.mean(groups[0])), [scores], rng)
    yield f"clip_score/{model}", {**estimate, "n": len(scores)}


def _normalize(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
