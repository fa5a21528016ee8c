"""The Frechet distance between the Gaussians of two sets of features. NumPy, float64.

    d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2

Source: arXiv 1706.08500, section 4. Of few samples it is too large: the covariances are estimated.
"""

from typing import NamedTuple

import numpy as np

from zsnr_jax.errors import UsageError


class Statistics(NamedTuple):
    """What the distance needs to know of a set of features, float64."""

    mean: np.ndarray  # [D]
    cov: np.ndarray  # [D, D], divided by n - 1
    n: int  # samples


def statistics(features: np.ndarray) -> Statistics:
    """Mean and covariance of features [n, D].

    Raises: UsageError for fewer than two samples, or where some are not finite.
    """
    if len(features) < 2:
        raise UsageError(f"{len(features)} images have no covariance: give two at least.")
    if broken := int(np.sum(~np.isfinite(features).all(axis=1))):
        raise UsageError(
            f"features of {broken} of {len(features)} images are not finite: check the file of "
            "weights."
        )
    # The products overflow no float64, and the mean is taken off first: no digits are lost.
    centred = features.astype(np.float64)
    mean = centred.mean(axis=0)
    centred -= mean
    return Statistics(mean, centred.T @ centred / (len(features) - 1), len(features))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared Frechet distance; 0 for the same statistics, and never less.

    With symmetric roots R1, R2 of the covariances, from their eigenvalues, the last trace is the
    sum of the singular values of R1 R2: (C1^1/2 C2 C1^1/2)^1/2 = ((R1 R2)(R1 R2)^T)^1/2. So no
    root is taken of a product that is not symmetric, which can turn out complex, nor of the
    eigenvalues of a product, where a rounding of 1e-16 in place of 0 would count as 1e-8, for each
    of the directions in which fewer samples than features do not vary.
    """
    gap = a.mean - b.mean
    cross = np.linalg.svd(_root(a.cov).T @ _root(b.cov), compute_uv=False).sum()
    distance = gap @ gap + np.trace(a.cov) + np.trace(b.cov) - 2 * cross
    return max(float(distance), 0.0)


def _root(cov: np.ndarray) -> np.ndarray:
    """R [D, r] with R R^T = cov, of rank r: without the directions that are rounding only.

    It is the symmetric root but for a rotation on the right, which no singular value sees.
    """
    values, vectors = np.linalg.eigh(cov)
    real = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0.0)
    return vectors[:, real] * np.sqrt(values[real])
