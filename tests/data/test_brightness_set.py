"""The brightness law against its closed form."""

import numpy as np
import pytest

from zsnr_jax.data import brightness, make_images, to_float

N = 4096


@pytest.fixture(scope="module", params=[16, 32])
def drawn(request) -> tuple[brightness.Scenes, np.ndarray, np.ndarray]:
    scenes = brightness.draw_scenes(N, seed=0)
    return scenes, *brightness.render(scenes, request.param)


def test_means_are_the_stratified_uniform(drawn):
    scenes, images, _ = drawn
    means = images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, scenes.mean, atol=1e-14)
    np.testing.assert_allclose(np.sort(means), 2 * (np.arange(N) + 0.5) / N - 1, atol=1e-14)
    np.testing.assert_allclose(means.std(), np.sqrt((1 - 1 / N**2) / 3), atol=1e-12)
    assert abs(means.mean()) < 1e-14


def test_nothing_leaves_the_range_and_nothing_is_clipped(drawn):
    _, images, background = drawn
    assert np.abs(images).max() <= 1 + 1e-14
    assert np.abs(background).max() == 1.0


def test_solid_backgrounds_at_both_ends(drawn):
    scenes, images, background = drawn
    flat = scenes.content < 2
    for value, share in ((-1.0, 0.069), (1.0, 0.062)):
        solid = flat & (background == value)
        assert solid.mean() == pytest.approx(share, abs=0.001)
        covered = (images[solid] == value).all(axis=-1).mean(axis=(1, 2))
        assert covered.min() >= 0.18  # four wide bars at 16 pixels, their soft edges not counted


def test_contrast_points_towards_mid_grey(drawn):
    scenes, _, background = drawn
    sign = np.sign(scenes.mean)
    assert (sign * background > np.abs(scenes.mean)).all()


def test_labels_lean_without_fixing_brightness():
    scenes = brightness.draw_scenes(N, seed=0)
    _, labels = make_images(16, N, seed=0)
    np.testing.assert_array_equal(labels, 2 * scenes.content + scenes.lean)
    np.testing.assert_array_equal(np.bincount(scenes.content), [1366, 1365, 1365])
    for lean, centre in ((0, -1 / 3), (1, 1 / 3)):
        means = scenes.mean[scenes.lean == lean]
        error = np.sqrt(2) / 3 / np.sqrt(len(means))
        assert means.mean() == pytest.approx(centre, abs=4 * error)
        assert means.std() == pytest.approx(np.sqrt(2) / 3, abs=4 * error)
    for content in range(3):
        means = scenes.mean[scenes.content == content]
        assert abs(means.mean()) < 4 * 0.577 / np.sqrt(N / 3)


def test_masks_cover_what_they_say():
    scenes = brightness.draw_scenes(N, seed=0)
    masks = brightness.draw_masks(scenes, 32)
    assert masks.min() == pytest.approx(0, abs=1e-15)
    assert masks.max() == pytest.approx(1, abs=1e-15)
    disc, bars, gradient = (masks[scenes.content == c].mean(axis=(1, 2)) for c in range(3))
    assert disc.min() > 0.045 and disc.max() < 0.255
    assert np.quantile(bars, 0.05) > 0.2 and np.quantile(bars, 0.95) < 0.46
    np.testing.assert_allclose(gradient, 0.5, atol=1e-14)


@pytest.mark.parametrize("size", brightness.SIZES)
def test_eight_bits_keep_the_mean(size):
    images, _ = make_images(size, 300, seed=3)
    means = to_float(images).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, brightness.draw_scenes(300, 3).mean, atol=1 / 255)
    assert images.shape == (300, size, size, 3) and images.dtype == np.uint8


def test_a_pure_function_of_its_arguments():
    images, labels = make_images(16, 300, seed=5)
    again, same_labels = make_images(16, 300, seed=5)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, same_labels)
    assert (make_images(16, 300, seed=6)[0] != images).any()


def test_chunks_do_not_show():
    scenes = brightness.draw_scenes(300, seed=5)
    whole = np.rint((brightness.render(scenes, 16)[0] + 1) * 127.5)
    np.testing.assert_array_equal(make_images(16, 300, seed=5)[0], whole)


def test_colour_is_there():
    images = to_float(make_images(16, N, seed=0)[0])
    saturation = np.ptp(images, axis=-1).max(axis=(1, 2))
    assert np.median(saturation) > 0.8


@pytest.mark.parametrize("num_images", [1, 7])
def test_odd_counts_have_a_mean_of_zero(num_images):
    scenes = brightness.draw_scenes(num_images, seed=0)
    images, _ = brightness.render(scenes, 16)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), scenes.mean, atol=1e-14)
    assert 0.0 in scenes.mean
