"""The Inception score: are images each of one class, and all together of many? NumPy, float64.

    IS = exp( mean_x KL( p(y|x) || p(y) ) ),   p(y) = mean_x p(y|x)

Source: arXiv 1606.03498, section 4. The score is taken of each tenth of the images, in their
order, and what is reported is mean and standard deviation over the tenths. It grows with their
size, so that only scores of equally many images compare.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from zsnr_jax.errors import UsageError

SPLITS = 10  # parts, each of which has a score


def inception_score(logits: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation of the score over parts of the images.

    Args: logits: [n, classes], without the bias of the last layer, as the source's code has them.
    Returns: between 1, where all images tell the same, and the number of classes.
    Raises: UsageError where there are fewer images than parts.
    """
    if len(logits) < splits:
        raise UsageError(f"{len(logits)} images make no {splits} splits: give more images.")
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    starts = [i * len(logits) // splits for i in range(1, splits)]
    scores = [_score(part) for part in np.split(log_p, starts)]
    return float(np.mean(scores)), float(np.std(scores))


def evaluate(logits: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure images by their logits [n, classes].

    Yields: (name, {"value", "n"}) for inception_score/mean and inception_score/std.
    """
    for name, value in zip(("mean", "std"), inception_score(logits)):
        yield f"inception_score/{name}", {"value": value, "n": len(logits)}


def _score(log_p: np.ndarray) -> float:
    """The score of one part. Sums of logarithms: a class that no image tells of is 0, not NaN."""
    log_mean = logsumexp(log_p, axis=0, keepdims=True) - np.log(len(log_p))
    return float(np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_mean), axis=1))))
