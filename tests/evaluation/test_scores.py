"""Which scores are taken with which weights at hand, and what is said of the others."""

import clip_model
import numpy as np
import pytest
import scipy.linalg
from scipy.special import softmax

from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import fid, scores, weights
from zsnr_jax.evaluation.frechet import statistics

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 12, 12, 3), np.uint8)
CAPTIONS = ["a photo of a cat", "the dog", "the old garden in the rain!!", "rain"] * 5
NONE = {"inception": "", "fid_statistics": "", "clip": ""}


class Colours:
    """Stands for Inception, which is slow: corner and mean colours, and the shape it was given."""

    variant, sha256 = "pytorch-fid", "ab12"

    def __init__(self) -> None:
        self.given = ()

    def features(self, images):
        """Six features, and three logits."""
        self.given = (images.shape, images.dtype)
        mean, corner = images.mean((1, 2)) / 64, images[:, 0, 0] / 64
        return np.concatenate([mean, corner], axis=1), corner


def reference(image_size: int, **changed) -> fid.Reference:
    found = statistics(RNG.standard_normal((50, 6)) @ RNG.standard_normal((6, 6)))
    return fid.Reference(found, "pytorch-fid", "ab12", image_size)._replace(**changed)


@pytest.fixture(scope="module")
def clip_folder_small(tmp_path_factory):
    return clip_model.write(tmp_path_factory.mktemp("models") / "clip-small")


@pytest.fixture(scope="module")
def clip(clip_folder_small):
    return weights.load_clip(clip_folder_small, batch_size=20)


def test_without_weights_nothing_is_measured():
    judges = scores.load(NONE)
    assert judges.measure(IMAGES, CAPTIONS) == {} and judges.provenance == {}
    assert len(judges.missing(CAPTIONS)) == 2


def test_scores_of_inception_are_those_of_its_features():
    real = reference(12)
    judges = scores.Judges(Colours(), real, None)  # pyright: ignore[reportArgumentType]
    found = judges.measure(IMAGES, [])
    # Both from their definitions, of features worked out here.
    corner = IMAGES[:, 0, 0] / 64
    p = softmax(corner, axis=1).reshape(10, 2, 3)
    divergence = (p * np.log(p / p.mean(1, keepdims=True))).sum(-1)
    score = np.exp(divergence.mean(1))
    pool = np.concatenate([IMAGES.mean((1, 2)) / 64, corner], axis=1)
    cov, theirs = np.cov(pool, rowvar=False), real.statistics
    root = np.real(np.asarray(scipy.linalg.sqrtm(cov @ theirs.cov)))
    distance = np.sum((pool.mean(0) - theirs.mean) ** 2)
    distance += np.trace(cov + theirs.cov - 2 * root)
    values = {name: estimate["value"] for name, estimate in found.items()}
    assert values == {
        "inception_score/mean": pytest.approx(score.mean(), rel=1e-6),
        "inception_score/std": pytest.approx(score.std(), rel=1e-6),
        "fid/pytorch-fid": pytest.approx(distance, rel=1e-6),
    }
    assert found["fid/pytorch-fid"]["n"] == 20 and found["fid/pytorch-fid"]["reference_n"] == 50
    assert judges.provenance == {"inception (pytorch-fid)": "ab12"}


@pytest.mark.parametrize("size", [8, 12, 16])
def test_pictures_are_brought_to_the_size_of_the_real_ones(size: int):
    inception = Colours()
    judges = scores.Judges(inception, reference(size), None)  # pyright: ignore[reportArgumentType]
    judges.measure(IMAGES, CAPTIONS)
    assert inception.given == ((20, size, size, 3), np.uint8)


def test_without_real_images_there_is_no_fid():
    inception = Colours()
    judges = scores.Judges(inception, None, None)  # pyright: ignore[reportArgumentType]
    found = judges.measure(IMAGES, CAPTIONS)
    assert set(found) == {"inception_score/mean", "inception_score/std"}
    assert inception.given == (IMAGES.shape, np.uint8)


def test_real_images_of_another_network_are_refused():
    real = reference(12, sha256="cd34")
    judges = scores.Judges(Colours(), real, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="cd34, and the samples' of ab12"):
        judges.measure(IMAGES, CAPTIONS)


def test_the_clip_score_is_of_each_picture_with_its_caption(clip):
    judges = scores.Judges(None, None, clip)
    ((name, estimate),) = judges.measure(IMAGES, CAPTIONS).items()
    each = clip.scores(IMAGES, CAPTIONS)
    assert name == "clip_score/clip-small" and estimate["n"] == 20
    assert estimate["value"] == pytest.approx(np.mean(each)) and np.std(each) > 0
    crossed = judges.measure(IMAGES, CAPTIONS[::-1])[name]["value"]
    assert crossed != pytest.approx(estimate["value"], rel=1e-3)
    assert judges.provenance == {"clip-small": clip.sha256}
    assert judges.measure(IMAGES, []) == {}


def test_everything_at_once(clip):
    judges = scores.Judges(Colours(), reference(12), clip)  # pyright: ignore[reportArgumentType]
    found = judges.measure(IMAGES, CAPTIONS)
    assert set(found) == {
        *("inception_score/mean", "inception_score/std", "fid/pytorch-fid"),
        "clip_score/clip-small",
    }
    assert judges.missing(CAPTIONS) == []
    assert set(judges.provenance) == {"inception (pytorch-fid)", "clip-small"}


INCEPTION = "FID and Inception score are not measured: set evaluation.inception "
FID = "FID is not measured: set evaluation.fid_statistics "
CLIP = "The CLIP score is not measured: set evaluation.prompts, and evaluation.clip "
MISSING = {  # inception, real images, CLIP, captions -> what to set, in this order
    (0, 0, 0, 0): [INCEPTION, CLIP],
    (0, 1, 1, 1): [INCEPTION],
    (0, 1, 0, 1): [INCEPTION, CLIP],
    (1, 0, 1, 1): [FID],
    (1, 0, 0, 1): [FID, CLIP],
    (1, 1, 0, 1): [CLIP],
    (1, 1, 1, 0): [CLIP],
    (1, 1, 1, 1): [],
}


@pytest.mark.parametrize("there", MISSING)
def test_what_is_missing_is_said_with_what_to_set(there, clip):
    inception, real, judge, captions = there
    judges = scores.Judges(
        Colours() if inception else None,  # pyright: ignore[reportArgumentType]
        reference(12) if real else None,
        clip if judge else None,
    )
    said = judges.missing(CAPTIONS if captions else [])
    assert len(said) == len(MISSING[there])
    for sentence, start in zip(said, MISSING[there], strict=True):
        assert sentence.startswith(start) and sentence.endswith(".") and "\n" not in sentence


def test_what_is_set_is_loaded(clip_folder_small, tmp_path):
    fid.save(tmp_path / "real.npz", reference(16))
    judges = scores.load(
        NONE | {"fid_statistics": str(tmp_path / "real.npz"), "clip": str(clip_folder_small)}
    )
    assert judges.inception is None
    assert judges.reference is not None and judges.reference.image_size == 16
    assert judges.clip is not None and judges.clip.name == "clip-small"


ABSENT = {
    "inception": "/nowhere.safetensors is no safetensors file of Inception weights: download",
    "fid_statistics": "there is no /nowhere.safetensors: make it of real images",
    "clip": "there is no /nowhere.safetensors/config.json: give the folder of a CLIP",
}


@pytest.mark.parametrize("setting", ABSENT)
def test_a_file_that_is_not_there_is_refused(setting: str):
    with pytest.raises(UsageError, match=ABSENT[setting]) as told:
        scores.load(NONE | {setting: "/nowhere.safetensors"})
    assert "\n" not in str(told.value)


def test_the_networks_variant_is_that_of_the_real_images(tmp_path):
    fid.save(tmp_path / "real.npz", reference(16, variant="cleaner"))
    wanted = NONE | {"inception": "~/none", "fid_statistics": str(tmp_path / "real.npz")}
    with pytest.raises(UsageError, match="FID variant 'cleaner' is unknown"):
        scores.load(wanted)
    with pytest.raises(UsageError, match="^/.*none is no safetensors file"):
        scores.load(NONE | {"inception": "~/none"})
