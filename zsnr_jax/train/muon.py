"""Muon: convolutions' kernels move by their momentum made orthogonal, all else by AdamW.

A few directions hold most of a gradient. A step that is as long in all of them learns more: the
main job needed half the steps that AdamW alone did. Matrices of the embedding, which meet an image
once and not at each of its positions, gained nothing by it, and took twice as long as all of these.

Orthogonal is meant loosely, as is usual: the polynomial x -> a x + b x^3 + c x^5, five times over,
takes the singular values of a matrix, at most 1 before, to about 1, or the smallest far up. All
five are polynomials of one small matrix, X^T X, and are made of that alone: on CPUs in less than
half the time of multiplying X by each.

Sources: K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the
step's length, by which AdamW's learning rates serve: arXiv 2502.16982, section 2.2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zsnr_jax.train.optimizer import (
    Factors,
    Optimizer,
    decay_of,
    factors_of,
    next_mean,
    update_array,
)

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c
_TIMES = 5
_LENGTH = 0.2  # root mean square of a step over the learning rate, as AdamW's is in practice
_EPSILON = 1e-8


class MuonState(NamedTuple):
    """What is kept between updates."""

    count: jax.Array  # of updates so far
    mu: optax.Params  # the mean of gradients
    nu: optax.Params  # of their squares where AdamW is the rule, and nothing where Muon is


def make_muon(
    learning_rate: optax.Schedule, b1: float, b2: float, weight_decay: float, clip_norm: float
) -> Optimizer:
    """Clip the whole gradient to `clip_norm` (0: do not), then Muon for convolutions' kernels.

    m <- b1 m + (1 - b1) g
    u = b1 m / (1 - b1^(n + 1)) + (1 - b1) g / (1 - b1^n)
    p <- p - r (0.2 sqrt(max(rows, columns)) orthogonal(u) + weight_decay p)

    after n updates, at the rate r of the update; u is the mean as one more such gradient would
    leave it (Nesterov's momentum). A kernel [.., C, K] is a matrix of K columns. All else is by
    AdamW (`zsnr_jax.train.optimizer`).
    """

    def init(params: optax.Params) -> MuonState:
        mu = jax.tree.map(jnp.zeros_like, params)
        nu = jax.tree.map(
            lambda x: optax.MaskedNode() if _is_convolutions(x) else jnp.zeros_like(x), params
        )
        return MuonState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        grads: optax.Updates,
        norm: jax.Array,
        applied: jax.Array,
        state: Any,
        params: optax.Params,
    ) -> tuple[optax.Params, MuonState]:
        rate = learning_rate(state.count)
        factors = factors_of(applied, norm, state.count, rate, b1, b2, clip_norm)
        after_next = (state.count + 2).astype(float)
        ahead = b1 / (1 - b1**after_next), (1 - b1) / factors.m_bias

        def update_one(p: jax.Array, g: jax.Array, m: jax.Array, v: Any) -> Any:
            decay = decay_of(p, weight_decay)
            if _is_convolutions(p):
                return *_update_kernel(factors, ahead, decay, p, g, m), v
            return update_array(factors, decay, p, g, m, v)

        leaves, tree = jax.tree.flatten(params)
        updated = map(update_one, leaves, *map(tree.flatten_up_to, (grads, state.mu, state.nu)))
        params, mu, nu = map(tree.unflatten, zip(*updated, strict=True))
        return params, MuonState(state.count + applied, mu, nu)

    return Optimizer(init, update)


def _is_convolutions(x: jax.Array) -> bool:
    return x.ndim > 2


# Traced once a shape: a network has many arrays alike.
@jax.jit
def _update_kernel(
    factors: Factors,
    ahead: tuple[jax.Array, jax.Array],
    decay: jax.typing.ArrayLike,
    p: jax.Array,
    g: jax.Array,
    m: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The next kernel and its mean of gradients."""
    g, m = next_mean(factors, g, m)
    matrix = (ahead[0] * m + ahead[1] * g).reshape(-1, m.shape[-1])
    length = _LENGTH * max(matrix.shape) ** 0.5
    step = length * orthogonal(matrix).reshape(p.shape)
    return (p - factors.rate * (step + decay * p)).astype(p.dtype), m


def orthogonal(matrix: jax.Array) -> jax.Array:
    """U S' V^T of a matrix U S V^T, with singular values S' of about 1: [M, N] -> [M, N].

    S' = P(P(P(P(P(S / |S|))))), P(x) = a x + b x^3 + c x^5. Of a matrix of zeros: zeros.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = _COEFFICIENTS
    # Squares of singular values lose half the digits: on accelerators, too, all of float32.
    with jax.default_matmul_precision("highest"):
        x = matrix / (jnp.linalg.norm(matrix) + _EPSILON)
        square, identity = x.T @ x, jnp.eye(matrix.shape[1], dtype=matrix.dtype)
        product = identity  # X P(X)/X P(P(X))/P(X) ..: x @ product is the result
        for left in reversed(range(_TIMES)):
            factor = a * identity + b * square + c * square @ square
            product = product @ factor
            if left:
                square = square @ factor @ factor
        return x @ product
