"""Random numbers: a function of purpose, step and row, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax.randomness import Purpose, purpose_key, row_keys, row_levels, row_normal

compiled = jax.jit(row_normal, static_argnums=3)


def draw(seed=0, purpose=Purpose.SAMPLE, step=7, index=(0, 1, 2, 3, 4), shape=(4,)):
    return np.asarray(compiled(purpose_key(seed, purpose), step, jnp.array(index), shape))


def test_a_row_does_not_depend_on_its_batch():
    whole = draw()
    np.testing.assert_array_equal(draw(index=(3, 0)), whole[[3, 0]])
    np.testing.assert_array_equal(draw(index=(4,)), whole[[4]])


def test_rows_are_the_same_when_compiled_with_a_traced_step():
    rows = row_normal(purpose_key(0, Purpose.SAMPLE), 7, jnp.arange(5), (4,))
    np.testing.assert_array_equal(draw(), rows)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_rows_are_float32_of_the_shape_asked_for(shape):
    rows = draw(index=(0, 1), shape=shape)
    assert rows.shape == (2, *shape) and rows.dtype == np.float32


@pytest.mark.parametrize("shape", [(), (1,), (5, 4, 3)])
def test_rows_are_those_of_jax_to_the_bit(shape):
    key = purpose_key(0, Purpose.SAMPLE)
    for i in range(3):
        of_row = jax.random.fold_in(jax.random.fold_in(key, 7), i)
        np.testing.assert_array_equal(
            draw(index=(i,), shape=shape)[0], jax.random.normal(of_row, shape, jnp.float32)
        )


def test_every_purpose_step_seed_and_row_has_its_own_numbers():
    draws = [draw(purpose=purpose) for purpose in Purpose]
    draws += [draw(step=8), draw(seed=1), draw(index=(5, 6, 7, 8, 9))]
    assert np.unique(np.stack(draws)).size == np.stack(draws).size


def test_swapping_step_and_row_gives_other_numbers():
    assert not np.any(draw(step=1, index=(2,)) == draw(step=2, index=(1,)))


def test_numbers_are_standard_normal():
    x = draw(index=range(64), shape=(1024,))
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.01
    assert np.max(np.abs(np.corrcoef(x[:, :1000]) - np.eye(64))) < 0.2


def test_the_purposes_are_never_renumbered():
    known = {"INIT": 0, "TRAIN": 1, "START": 2, "SAMPLE": 3, "PROBE": 4, "LEVEL": 5,
             "LEAK": 6}  # fmt: skip
    numbers = {purpose.name: purpose.value for purpose in Purpose}
    assert numbers | known == numbers
    assert len(set(numbers.values())) == len(Purpose)


def levels(step, index, num_steps):
    return np.asarray(row_levels(purpose_key(0, Purpose.LEVEL), step, jnp.array(index), num_steps))


def test_a_level_does_not_depend_on_its_batch_and_moves_with_the_step():
    whole = levels(7, range(16), 1000)
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(levels(7, (9, 2), 1000), whole[[9, 2]])
    assert np.any(levels(8, range(16), 1000) != whole)


def test_the_levels_of_a_large_batch_are_every_one_equally_often():
    counts = np.bincount(levels(3, range(10_000), 10), minlength=11)
    assert counts[0] == 0 and counts.size == 11
    np.testing.assert_allclose(counts[1:], 1000, atol=5)


def test_the_numbers_of_a_seed_are_fixed():
    keys = row_keys(purpose_key(42, Purpose.TRAIN), 1000, jnp.array([0, 5]))
    assert jax.random.key_data(keys).tolist() == [[849864645, 3442961805], [68556676, 3331672090]]
    golden = [[1.3868737, 0.8392742, 0.6364098], [1.3859674, -2.7324667, 1.3887515]]
    np.testing.assert_allclose(draw(seed=42, index=(0, 5), shape=(3,)), golden, rtol=1e-6)


def test_the_numbers_do_not_follow_the_default_generator():
    expected = draw(seed=3)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(draw(seed=3), expected)
