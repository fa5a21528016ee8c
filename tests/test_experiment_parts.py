"""What experiments reckon with, held to closed forms."""

import numpy as np
import pytest

from experiments import ablation_fixes, pictures, recovery, trained
from zsnr_jax import schedules, timesteps
from zsnr_jax.evaluation import ideal


def shares(value):
    return ablation_fixes.shares({made: value(made) for made in ablation_fixes.subsets()})


def test_shares_of_fixes_that_do_not_meet_are_their_own_worth():
    worth = {"v": 0.1, "zero terminal SNR": 0.5, "trailing": -0.2, "rescale": 0.0}
    found = shares(lambda made: sum(worth[fix] for fix in made))
    assert found == pytest.approx(worth)


def test_shares_of_two_fixes_that_need_each_other():
    # Worth 1 with zero SNR and trailing together: each comes second in half of the orders, but that
    # zero SNR waits for v, so that of 12 orders it is the later one in 8.
    found = shares(lambda made: float({"zero terminal SNR", "trailing"} <= made))
    assert found == pytest.approx(
        {"v": 0, "zero terminal SNR": 2 / 3, "trailing": 1 / 3, "rescale": 0}
    )


def test_every_set_of_fixes_is_a_run_of_the_sweep():
    sets = ablation_fixes.subsets()
    assert len(sets) == 12 and len(ablation_fixes.get_sweep()) == len(ablation_fixes.cells()) == 18
    assert {ablation_fixes.cell_of(made) for made in sets} <= set(ablation_fixes.cells())
    whole = ablation_fixes.cell_of(frozenset(ablation_fixes.FIXES))
    assert whole == ("zero, v", "trailing", 0.7)
    assert ablation_fixes.cell_of(frozenset()) == ("original, eps", "leading", 0.0)


@pytest.mark.parametrize("std", [2.0, 30.0])
def test_many_steps_on_one_mode_keep_what_the_law_says(std):
    schedule = schedules.make_schedule("scaled_linear")
    levels = timesteps.make_timesteps("trailing", 1000, 1000)
    law = ideal.one_mode_law(schedule, 1, std)
    found = recovery.ddim_on_one_mode(schedule, levels, std)
    np.testing.assert_allclose(found, [law.mean_recovery, law.std_ratio], rtol=0.02)
    # A start that has the mode already loses nothing but to the steps.
    alpha, sigma = (float(side[-1]) for side in schedule)
    start = (alpha, float(np.hypot(alpha * std, sigma)))
    kept = recovery.ddim_on_one_mode(schedule, levels, std, start=start)
    np.testing.assert_allclose(kept, [1, 1], rtol=0.02)


def test_even_starts_have_the_law_of_the_mean_of_noise():
    x_T = recovery.even_starts(3, 40, (4, 4, 3))
    means = x_T.mean(axis=(1, 2, 3)).reshape(3, 40)
    np.testing.assert_allclose(means.std(axis=1), 1 / np.sqrt(48), rtol=1e-5)
    np.testing.assert_allclose(means.mean(axis=1), 0, atol=1e-6)
    assert np.all(np.diff(means, axis=1) > 0)


def test_batches_give_each_row_its_own():
    x_t = np.arange(65 * 4, dtype=np.float32).reshape(65, 2, 2, 1)
    labels = np.arange(65)

    def draw(labels, x_t):
        assert len(labels) == len(x_t) == 64
        return x_t + labels[:, None, None, None], labels * 2

    moved, doubled = trained.in_batches(draw, labels, x_t)
    np.testing.assert_array_equal(moved, x_t + labels[:, None, None, None])
    np.testing.assert_array_equal(doubled, 2 * labels)


def test_pictures_come_back_to_half_a_step_of_eight_bits():
    images = np.random.default_rng(0).uniform(-1, 1, (5, 4, 4, 3)).astype(np.float32)
    back = pictures.unpack(pictures.pack(images))
    np.testing.assert_allclose(back / 127.5 - 1, images, atol=0.5 / 127.5 + 1e-6)
