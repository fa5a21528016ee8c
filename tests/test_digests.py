"""Digests: the formula in Python's integers, and what no damage may escape."""

import itertools

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsnr_jax import digests

ALL_BITS = 2**64 - 1


def weight(axis: int, place: int) -> int:
    """SplitMix64's finaliser of a place on an axis, made odd."""
    golden = 0x9E3779B97F4A7C15
    x = ((place + (axis << 40)) * golden + golden) & ALL_BITS
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ALL_BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ALL_BITS
    return (x ^ (x >> 31)) | 1


def expected(x: np.ndarray) -> str:
    """The sum in the module's first lines, term by term."""
    bits = np.atleast_1d(x).view(f"u{x.dtype.itemsize}")
    total = 0
    for place in itertools.product(*map(range, bits.shape)):
        term = int(bits[place])
        for axis, i in enumerate(place if x.ndim else ()):
            term *= weight(axis, i)
        total += term
    return f"{total % 2**64:016x}"


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, np.bool_, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (5,), (1, 7), (3, 4, 5), (2, 3, 2, 2), (0, 3)])
def test_a_digest_is_the_sum_over_places(dtype, shape) -> None:
    x = (np.random.default_rng(0).normal(size=shape) * 9).astype(dtype)
    found = digests.of_tree({"a": [jnp.asarray(x)], "b": np.asarray(x)})
    assert found == {"a/0": expected(np.asarray(x)), "b": expected(np.asarray(x))}


@given(st.integers(0, 59), st.integers(1, 2**32 - 1))
def test_any_change_of_one_element_shows(place: int, change: int) -> None:
    x = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    y = x.copy()
    y.view(np.uint32).reshape(-1)[place] ^= np.uint32(change)
    assert digests.of_tree(x) != digests.of_tree(y)


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: x[::-1],
        lambda x: x.T,
        lambda x: np.where(np.arange(8)[:, None] < 4, x, 0),  # a chunk that is not there
        lambda x: np.roll(x, 1, axis=1),
        lambda x: np.concatenate([x[:4], x[:4]]),
        np.zeros_like,
    ],
)
def test_other_damage_shows(damage) -> None:
    x = np.random.default_rng(2).normal(size=(8, 8)).astype(np.float32)
    whole, damaged = digests.of_tree(x), digests.of_tree(np.ascontiguousarray(damage(x)))
    assert digests.differing(whole, damaged) == [""]


def test_slices_add_up() -> None:
    x = np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32)
    parts = [
        digests._of_slice(x[rows, columns], (rows, columns))
        for rows in (slice(0, 2), slice(2, 6))
        for columns in (slice(0, 5), slice(5, 8))
    ]
    assert f"{sum(parts) % 2**64:016x}" == expected(x)


def test_what_differs_is_named() -> None:
    state = {"params": {"w": jnp.ones(3), "b": jnp.zeros(2)}, "step": jnp.int32(7)}
    found = digests.of_tree(state)
    assert sorted(found) == ["params/b", "params/w", "step"]
    other = digests.of_tree(state | {"step": jnp.int32(8)})
    assert digests.differing(found, other) == ["step"]
    assert digests.differing(found, {k: v for k, v in other.items() if k != "params/b"}) == [
        "params/b",
        "step",
    ]
