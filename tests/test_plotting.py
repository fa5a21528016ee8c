import subprocess
import sys

import numpy as np
import pytest
from matplotlib.patches import StepPatch
from PIL import Image

from zsnr_jax import plotting

ROWS = [
    {"step": 10, "loss": 1.0, "loss_at_T": None, "loss_by_level": None},
    {"step": 20, "loss": 0.5, "loss_at_T": 0.9, "loss_by_level": [4.0, 8.0]},
    {"step": 90, "loss": float("nan"), "loss_at_T": 0.6, "loss_by_level": [0.1, None]},
    {"step": 100, "loss": 0.2, "loss_at_T": 0.4, "loss_by_level": [0.3, None]},
]


def _images(n, channels=3, size=4):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def _histogram(**series):
    edges = np.linspace(-1, 1, 21).tolist()
    return {"histogram": {"edges": edges, **{k: [v] * 20 for k, v in series.items()}}}


@pytest.mark.parametrize("channels", [1, 3])
def test_every_picture_stands_in_its_place_magnified(channels):
    images = _images(5, channels)
    grid = plotting.image_grid(images, columns=3, scale=2, pad=1)
    assert grid.shape == (2 * 9 + 1, 3 * 9 + 1, 3) and grid.dtype == np.uint8
    left = np.ones(grid.shape[:2], bool)
    for i, image in enumerate(images):
        for y in range(8):
            for x in range(8):
                place = (i // 3 * 9 + 1 + y, i % 3 * 9 + 1 + x)
                np.testing.assert_array_equal(grid[place], np.resize(image[y // 2, x // 2], 3))
                left[place] = False
    assert len(np.unique(grid[left], axis=0)) == 1  # the gaps and the place left over


def test_one_row_is_as_wide_as_its_pictures():
    assert plotting.image_grid(_images(2), columns=16, scale=1, pad=0).shape == (4, 8, 3)


def test_pictures_are_chosen_at_even_quantiles():
    images = np.arange(100, dtype=np.uint8)[np.random.default_rng(1).permutation(100)]
    chosen = plotting.by_brightness(images[:, None, None, None], 4)
    assert chosen.ravel().tolist() == [12, 37, 62, 87]
    everything = plotting.by_brightness(images[:, None, None, None], 100)
    assert everything.ravel().tolist() == list(range(100))


def test_a_saved_grid_reads_back(tmp_path):
    path = tmp_path / "samples" / "data.png"
    plotting.save_image_grid(path, _images(40, size=32), columns=8, rows=2)
    with Image.open(path) as image:
        assert image.size == (8 * 66 + 2, 2 * 66 + 2)
        expected = plotting.image_grid(plotting.by_brightness(_images(40, size=32), 16), 8, 2)
        np.testing.assert_array_equal(np.asarray(image), expected)
    plotting.save_image_grid(path, _images(1, channels=1, size=8))
    with Image.open(path) as image:
        assert image.size == (68, 68)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_contact_sheet_has_each_picture_above_its_caption(channels, tmp_path):
    images, long = _images(5, channels), "fog " * 60
    captions = ["a red disc", r"one $\frac for $2", "c_1", long, "the last"]
    figure = plotting.contact_sheet(images, captions, columns=3)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 5 and len(figure.axes) == 6
    for axes, image in zip(shown, images, strict=True):
        (drawn,) = axes.images
        np.testing.assert_array_equal(drawn.get_array(), image[..., 0] if channels == 1 else image)
        assert drawn.get_clim() == (0, 255)  # grey stays grey
    said = [axes.get_xlabel() for axes in shown]
    assert said[:3] + said[4:] == captions[:3] + captions[4:]
    assert said[3].endswith("...") and len(said[3]) <= 120
    assert 1 < said[3].count("\n") < 5
    # In reading order: two rows of three.
    places = [spec.get_geometry() for axes in shown if (spec := axes.get_subplotspec())]
    assert places == [(2, 3, i, i) for i in range(5)]
    plotting.save_figure(tmp_path / "sheet.png", figure)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (9 * 144, 7 * 144)


def test_a_contact_sheet_of_one_picture():
    figure = plotting.contact_sheet(_images(1), ["alone"])
    assert len(figure.axes) == 1


def test_the_histogram_draws_the_densities_and_counts_the_ends():
    results = _histogram(data=0.5, samples=0.25, ideal_this=0.5, ideal_flawed=0.0)
    axes = plotting.brightness_histogram(results).axes[0]
    drawn = [patch.get_data()[0] for patch in axes.patches if isinstance(patch, StepPatch)]
    assert sorted(values[0] for values in drawn) == [0.0, 0.25, 0.25, 0.5, 0.5]
    texts = [text.get_text() for text in axes.texts]
    # Four of twenty bins, of width 0.1, lie beyond 0.8.
    assert "Beyond ±0.8: data 20 %, this run 10 %, flawed 0 %" in texts
    assert {"data", "this run", "this recipe, ideal", "flawed recipe, ideal"} <= set(texts)
    assert axes.get_title(loc="left").endswith("?")


def test_the_histogram_does_without_the_ideal():
    texts = plotting.brightness_histogram(_histogram(data=0.5, samples=0.5)).axes[0].texts
    assert not any("ideal" in text.get_text() for text in texts)


def test_the_loss_curve_leaves_out_what_is_not_a_loss():
    axes = plotting.loss_curve(ROWS).axes[0]
    lines = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert lines == [[[10, 1], [20, 0.5], [100, 0.2]], [[20, 0.9], [90, 0.6], [100, 0.4]]]
    assert axes.get_yscale() == "log"


def test_loss_by_level_is_the_mean_of_the_last_window():
    np.testing.assert_allclose(plotting.mean_by_level(ROWS, window=0.2), [0.2, np.nan])
    np.testing.assert_allclose(plotting.mean_by_level(ROWS, window=1.0), [4.4 / 3, 8.0])
    axes = plotting.loss_by_level(ROWS, num_steps=1000).axes[0]
    boxes = [bar.get_path().get_extents(bar.get_patch_transform()) for bar in axes.patches]
    bars = [((box.x0 + box.x1) / 2, box.height) for box in boxes]
    np.testing.assert_allclose(bars, [(250, 0.2), (750, 0)])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [[], ROWS[:1], [{"step": 1, "loss": float("nan")}]])
def test_short_runs_are_drawn_too(rows):
    assert plotting.mean_by_level(rows) == []
    for figure in (plotting.loss_curve(rows), plotting.loss_by_level(rows)):
        assert plotting.to_svg(figure).startswith(b"<?xml")


def test_a_figure_is_the_same_bytes_each_time_and_differs_in_the_dark(tmp_path):
    light, again, dark = (
        plotting.to_svg(plotting.loss_curve(ROWS, dark)) for dark in (False, False, True)
    )
    assert light == again != dark
    plotting.save_figure(tmp_path / "loss.png", plotting.loss_curve(ROWS))
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size[0] == round(5.6 * 144)


def test_pyplot_and_its_global_state_stay_out():
    code = "import sys, zsnr_jax.plotting; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
