"""The CLIP score of known angles, and of a folder with a small CLIP."""

import hashlib
import json
import shutil

import clip_model
import numpy as np
import pytest

from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import clip_score, frames, weights

CAPTIONS = ["a photo of a cat", "the dog", "the old garden in the rain!!"]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 30, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_model.write(tmp_path_factory.mktemp("models") / "clip-small")


@pytest.fixture(scope="module")
def clip(folder):
    return weights.load_clip(folder, batch_size=2)


def test_a_score_is_the_cosine_in_percent_and_none_below_zero():
    angles = np.radians([0, 30, 60, 90, 150])
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[1, 2, 3, 4, 5]]).T
    texts = np.tile([[0.1, 0]], (5, 1)).astype(np.float32)
    scores = clip_score.clip_scores(images, texts)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [100, 50 * 3**0.5, 50, 0, 0], atol=1e-6)


def test_the_model_is_named_with_the_mean():
    scores = np.array([10.0, 30.0, 26.0])
    ((name, result),) = clip_score.evaluate(scores, "clip-vit-large-patch14")
    assert name == "clip_score/clip-vit-large-patch14"
    assert (result["value"], result["n"]) == (22.0, 3)
    assert 10 <= result["low"] < 22 < result["high"] <= 30


def test_each_image_is_scored_with_its_own_caption(clip, folder):
    scores = clip.scores(IMAGES, CAPTIONS)  # batches of two: the last one is filled up
    assert scores.shape == (3,) and scores.dtype == np.float64 and scores.max() > 1
    order = [2, 0, 1]
    again = clip.scores(IMAGES[order], [CAPTIONS[i] for i in order])
    np.testing.assert_allclose(again, scores[order], atol=1e-4)
    crossed = clip.scores(IMAGES, [CAPTIONS[i] for i in order])
    assert np.abs(crossed - scores).max() > 0.1
    assert clip.name == "clip-small"
    weights_file = (folder / "model.safetensors").read_bytes()
    assert clip.sha256 == hashlib.sha256(weights_file).hexdigest()


def test_a_caption_that_is_too_long_is_cut(clip):
    long = " ".join(["cat dog garden"] * 60)
    scores = clip.scores(IMAGES[:2], [long, f"{long} rain"])
    assert np.all(np.isfinite(scores))


def test_the_name_of_a_model_in_a_cache(folder, tmp_path):
    place = tmp_path / "models--openai--clip-vit-base-patch16" / "snapshots" / "0a1b2c"
    shutil.copytree(folder, place)
    assert weights.load_clip(place).name == "clip-vit-base-patch16"


def test_mistakes_are_one_sentence(clip):
    for images, captions, told in (
        (IMAGES, CAPTIONS[:2], "3 images with 2 captions"),
        (IMAGES / 255, CAPTIONS, r"images are float64 \[3, 30, 24, 3\]"),
        (IMAGES[..., :1], CAPTIONS, r"images are uint8 \[3, 30, 24, 1\]"),
        (IMAGES[:0], [], r"images are uint8 \[0, 30, 24, 3\]"),
    ):
        with pytest.raises(UsageError, match=told):
            clip.scores(images, captions)


def _without(file):
    return lambda place: (place / file).unlink()


def _with(file, **changes):
    def change(place):
        path = place / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | changes))

    return change


@pytest.mark.parametrize(
    "spoil, told",
    [
        (_without("config.json"), "there is no .*config.json: give the folder of a CLIP"),
        (_without("model.safetensors"), "there is no .*model.safetensors: give the folder of a"),
        (_without("merges.txt"), "merges.txt is missing"),
        (lambda place: (place / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda place: (place / "config.json").write_text("[]"), "does not hold settings"),
        (_with("config.json", model_type="siglip"), "config.json: model_type='siglip' is not"),
        (_with("config.json", projection_dim=13), "misshapen .*projection"),
        (_with("preprocessor_config.json", image_mean=[0.5] * 3), r"has image_mean=\[0.5, 0.5"),
        (
            _with(
                "config.json", text_config={**clip_model.CONFIG["text_config"], "vocab_size": 99}
            ),
            "knows .* tokens and ends with .*, and its config.json says 99 and 98",
        ),
    ],
)
def test_a_folder_that_is_unfit_is_refused(folder, tmp_path, spoil, told):
    place = tmp_path / "clip"
    shutil.copytree(folder, place)
    spoil(place)
    with pytest.raises(UsageError, match=told) as caught:
        weights.load_clip(place)
    assert "\n" not in str(caught.value)


def test_openai_preprocessing_is_accepted(folder, tmp_path):
    place = tmp_path / "clip"
    shutil.copytree(folder, place)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    _with("preprocessor_config.json", image_mean=mean, image_std=std)(place)
    weights.load_clip(place)


def test_the_centre_is_cut_out():
    # A wide image of three colours, as wide as its height each: the middle one is left.
    colours = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 90]], np.uint8)
    wide = np.repeat(colours[None], 40, axis=0).repeat(40, axis=1)
    assert wide.shape == (40, 120, 3)
    for image in (wide, wide.transpose(1, 0, 2)):
        cut = frames.crop_clip(image[None], 20)[0]
        assert cut.shape == (20, 20, 3) and cut.dtype == np.uint8
        np.testing.assert_array_equal(cut[3:-3, 3:-3], np.broadcast_to(colours[1], (14, 14, 3)))


def test_clean_resizing_neither_rounds_nor_overshoots():
    ramp = np.linspace(0, 255, 8).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (8, 8, 3))
    resized = frames.resize_clean(image[None], 21)
    assert resized.shape == (1, 21, 21, 3) and resized.dtype == np.float32
    assert np.any(resized != np.rint(resized)) and resized.min() >= 0 and resized.max() <= 255
    edges = np.zeros((1, 8, 8, 3), np.uint8)
    edges[:, :, 4:] = 255  # bicubic overshoots at an edge
    sharp = frames.resize_clean(edges, 21)
    assert sharp.min() == 0 and sharp.max() == 255
