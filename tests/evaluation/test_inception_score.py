"""The Inception score beside its definition, written out, and where it is known."""

import math

import numpy as np
import pytest

from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation.inception_score import evaluate, inception_score


def by_definition(logits):
    """exp of the mean divergence of each image's classes from those of all, in plain loops."""
    rows = [[math.exp(x) for x in row] for row in logits.tolist()]
    p = [[x / sum(row) for x in row] for row in rows]
    q = [sum(column) / len(p) for column in zip(*p)]
    divergences = [sum(a * math.log(a / b) for a, b in zip(row, q)) for row in p]
    return math.exp(sum(divergences) / len(p))


@pytest.mark.parametrize("splits, n", [(1, 17), (3, 17), (10, 10), (10, 59)])
def test_score_of_parts_is_its_definition(splits, n):
    logits = 2 * np.random.default_rng(n).standard_normal((n, 5)).astype(np.float32)
    parts = [logits[i * n // splits : (i + 1) * n // splits] for i in range(splits)]
    scores = [by_definition(part.astype(np.float64)) for part in parts]
    mean = sum(scores) / splits
    std = math.sqrt(sum((score - mean) ** 2 for score in scores) / splits)
    assert inception_score(logits, splits) == pytest.approx((mean, std), rel=1e-9, abs=1e-12)


def test_ends_of_the_scale():
    sure = 1e4 * np.tile(np.eye(7), (6, 1))  # each of one class, all classes alike
    assert inception_score(sure, splits=2) == pytest.approx((7, 0))
    assert inception_score(np.ones((20, 7))) == pytest.approx((1, 0))  # no idea
    assert inception_score(np.tile(sure[:1], (20, 1))) == pytest.approx((1, 0))  # all the same


def test_too_few_images_are_refused():
    with pytest.raises(UsageError, match="9 images make no 10 splits"):
        inception_score(np.zeros((9, 4)))


def test_names_of_the_results():
    logits = np.random.default_rng(0).standard_normal((30, 4))
    mean, std = inception_score(logits)
    assert dict(evaluate(logits)) == {
        "inception_score/mean": {"value": mean, "n": 30},
        "inception_score/std": {"value": std, "n": 30},
    }
