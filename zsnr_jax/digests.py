"""Digests of arrays that do not depend on how they lie on devices and hosts.

A cryptographic digest reads bytes in order, which no host has of an array in slices. This one is a
linear form modulo 2^64, whose slices are computed where they lie and added up:

    digest(x) = sum over i, j, ... of  a_i b_j ...  x_ij...

with x the elements' bits as integers, and weights a, b, ... of each axis that look random and are
odd. Odd numbers have an inverse modulo 2^64, so any change of one element changes the digest; any
other damage goes unseen about once in 2^64. It guards against disks and bugs, not an adversary.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def of_tree(tree: Any) -> dict[str, str]:
    """The digest of every array of a pytree: {"params/conv/kernel": 16 hexadecimal digits}.

    Arrays may lie over several hosts, all of which must call this together.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = _over_hosts(np.array([_on_this_host(leaf) for _, leaf in leaves], np.uint64))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{value:016x}"
        for (path, _), value in zip(leaves, sums)
    }


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """The names of arrays whose digests are not as expected, or which only one side has."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


def _on_this_host(x: Any) -> int:
    """The sum over what this host has of an array; of what several have, over the first's."""
    if not isinstance(x, jax.Array):
        return _of_slice(np.asarray(x), tuple(slice(0, n) for n in np.shape(x)))
    own = [shard for shard in x.addressable_shards if shard.replica_id == 0]
    return sum(_of_slice(np.asarray(shard.data), shard.index) for shard in own) % 2**64


def _of_slice(x: np.ndarray, place: tuple[slice, ...]) -> int:
    """The sum over a slice of an array, given where it lies in it."""
    bits = np.atleast_1d(x).view(f"u{x.dtype.itemsize}")
    weights = [
        _axis_weights(axis, (of.start or 0) + n)[-n:] if n else np.zeros(0, np.uint64)
        for axis, (n, of) in enumerate(zip(x.shape, place))
    ] or [np.ones(1, np.uint64)]  # of a scalar
    half = len(weights) // 2  # two products, each with few weights
    rows, columns = _outer(weights[:half]), _outer(weights[half:])
    matrix = bits.reshape(len(rows), len(columns))
    # einsum widens to 64 bits piece by piece, in a third of the time that @ takes (2 ns a value).
    return int(np.einsum("i,i->", rows, np.einsum("ij,j->i", matrix, columns)))


def _outer(weights: list[np.ndarray]) -> np.ndarray:
    """All products of weights, one of each axis, in the order of the elements."""
    size = math.prod(map(len, weights))
    return functools.reduce(np.multiply.outer, weights, np.ones((), np.uint64)).reshape(size)


@functools.lru_cache(maxsize=256)
def _axis_weights(axis: int, length: int) -> np.ndarray:
    """Odd weights along an axis, uint64 [length], by the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        x = (np.arange(length, dtype=np.uint64) + np.uint64(axis << 40)) * _GOLDEN + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)


def _over_hosts(sums: np.ndarray) -> np.ndarray:
    """Add up what each host found. It travels as uint32, since JAX cuts 64 bits to 32."""
    if jax.process_count() == 1:
        return sums
    halves = multihost_utils.process_allgather(sums.view(np.uint32))
    return np.ascontiguousarray(halves).view(np.uint64).sum(axis=0, dtype=np.uint64)
