"""Attention, by what is fastest on the hardware a program is compiled for.

On TPUs that is JAX's own, and on NVIDIA's GPUs cuDNN's kernel, where that serves. On CPUs XLA adds
up a row of weights one after another, since it may not change the order that a program says, and
stores the weights of all heads, for the gradient too. Here rows are reduced in lanes; many weights
are taken head by head, and in the gradient some keys at a time, so that they stay in the cache; and
the gradient computes them anew.

One head at a time does not pay for few weights, nor all heads at once for many.
`python -m experiments.benchmarks.layers` measures both ways, and torch's.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from zsnr_jax.models.blocks import rows_at_once

_LANES = 16  # numbers in the widest vector register
_FEW = 2**17  # weights of a head, up to which all heads are taken at once


# A network has many alike: traced and differentiated once a shape.
@functools.partial(jax.jit, static_argnames="is_causal")
def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """Mix values by softmax(query key^T / sqrt(D)), in float32; on CPUs float64 stays float64.

    Args: query [B, N, heads, D]; key, value [B, M, heads, D]. is_causal: token i sees 0..i only, by
      JAX's own, in float32 whatever the dtype.
    Returns: [B, N, heads, D], of the query's dtype.
    The choice is made when a program is compiled, for the platform it is compiled for; cuDNN's
    kernel is among the choices where this host has cuDNN. On CPUs the gradient is written out:
    jax.grad and jax.vjp serve, and forward mode, jax.jvp, does not.
    """
    by_jax = functools.partial(jax.nn.dot_product_attention, is_causal=is_causal)
    if is_causal:  # text alone, of few tokens
        return by_jax(query, key, value)
    choices = {"cpu": _on_cpu, "default": by_jax}
    if _cudnn_serves(query, key, value):
        choices["cuda"] = _by_cudnn
    return jax.lax.platform_dependent(query, key, value, **choices)


def _cudnn_serves(*inputs: jax.Array) -> bool:
    """Whether this host has cuDNN, and JAX lets its kernel take these and give their gradients.

    It takes the half precisions, and never stores the weights.
    """
    dtype, head_dim = inputs[0].dtype, inputs[0].shape[-1]
    if dtype not in (jnp.bfloat16, jnp.float16) or head_dim % 8 or head_dim > 128:
        return False
    slope = jax.grad(lambda *inputs: _by_cudnn(*inputs).sum().astype(jnp.float32), (0, 1, 2))
    try:
        jax.eval_shape(slope, *inputs)
    except RuntimeError:  # no cuDNN; or, NotImplementedError, nothing for such shapes
        return False
    return True


def _by_cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Keys are made even in number, or JAX refuses the gradient; as for the 77 tokens of a text."""
    tokens, lengths = key.shape[1], None
    if tokens % 2:
        key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (key, value))
        lengths = jnp.full(len(key), tokens, jnp.int32)
    return jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation="cudnn"
    )


@jax.custom_vjp
def _on_cpu(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return _forward(query, key, value)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Any]:
    """The mixture, and what the gradient needs: all but the weights."""
    q, k, v = (_heads_first(x) for x in (query, key, value))
    over_heads = jax.vmap if _few(q, k) else _one_by_one
    mixed, log_sum = over_heads(_mix_head)(q * q.shape[-1] ** -0.5, k, v)
    return _heads_last(mixed, query), (query, key, value, mixed, log_sum)


def _backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, mixed, log_sum = saved
    q, k, v, g = (_heads_first(x) for x in (query, key, value, gradient))
    scale = q.shape[-1] ** -0.5
    shift = (g * mixed).sum(-1)
    of_heads = jax.vmap(_head_gradient) if _few(q, k) else _one_by_one(_head_gradient_in_blocks)
    dq, dk, dv = of_heads(q * scale, k, v, g, log_sum, shift)
    return _heads_last(dq * scale, query), _heads_last(dk, key), _heads_last(dv, value)


_on_cpu.defvjp(_forward, _backward)


def _mix_head(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of one head: [N, D], [M, D], [M, D] -> the mixture [N, D], and log sum exp of logits [N]."""
    logits = q @ k.T
    highest = _reduce(jnp.max, logits)
    weights = jnp.exp(logits - highest[:, None])
    total = _reduce(jnp.sum, weights)
    return (weights @ v) / total[:, None], highest + jnp.log(total)


def _head_gradient(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    log_sum: jax.Array,
    shift: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one head: by q, k and v, where g is the gradient by the mixture, and shift [N] = g mixed.

    d softmax(a) = softmax(a) (da - softmax(a) da), and softmax(a) da = shift when summed over M.
    """
    weights = jnp.exp(q @ k.T - log_sum[:, None])
    by_logits = weights * (g @ v.T - shift[:, None])
    return by_logits @ k, by_logits.T @ q, weights.T @ g


def _head_gradient_in_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    log_sum: jax.Array,
    shift: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same, some keys at a time; weights have a row for each key, as dk and dv take them."""
    keys = rows_at_once(len(k), len(q))

    def block(dq: jax.Array, rows: Any) -> Any:
        k, v = rows
        weights = jnp.exp(k @ q.T - log_sum[None])
        by_logits = weights * (v @ g.T - shift[None])
        return dq + k.T @ by_logits, (by_logits @ q, weights @ g)

    blocks = [rearrange(x, "(b n) d -> b n d", n=keys) for x in (k, v)]
    dq, (dk, dv) = jax.lax.scan(block, jnp.zeros_like(q.T), tuple(blocks))
    return dq.T, dk.reshape(k.shape), dv.reshape(v.shape)


def _few(q: jax.Array, k: jax.Array) -> bool:
    return q.shape[1] * k.shape[1] <= _FEW


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of one head to [B heads, ...], to one after another."""
    return lambda *heads: jax.lax.map(lambda head: function(*head), heads)


def _reduce(function: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """Reduce the last axis, first to as many numbers as fit a register, where that goes."""
    if x.shape[-1] % _LANES:
        return function(x, axis=-1)
    return function(function(rearrange(x, "... (m l) -> ... m l", l=_LANES), axis=-2), axis=-1)


def _heads_first(x: jax.Array) -> jax.Array:
    """[B, N, heads, D] -> [B heads, N, D], in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return rearrange(wide, "b n h d -> (b h) n d")


def _heads_last(x: jax.Array, like: jax.Array) -> jax.Array:
    return rearrange(x, "(b h) n d -> b n h d", b=like.shape[0]).astype(like.dtype)
