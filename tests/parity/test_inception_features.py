"""Inception-v3 beside pytorch-fid's and torch-fidelity's, live, with the same made-up weights."""
# pyright: reportMissingImports=false

import functools
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("pytorch_fid")
pytest.importorskip("torch_fidelity")

import inception_weights
import pytorch_fid.inception
import torch
import torchvision
from parity.full_width import nchw
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric

from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import frames, inception_score, weights

TOLERANCE = 1e-4  # relative to the largest output; measured: 1e-6 at most


@functools.cache
def state_dict():
    """Made-up weights, of the names and shapes that torchvision's network has."""
    shapes = {}
    network = torchvision.models.inception_v3(
        num_classes=1008, aux_logits=False, init_weights=False
    )
    for name, x in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            shapes[name] = tuple(x.shape)
    return {k: torch.from_numpy(x) for k, x in inception_weights.tensors(shapes).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the file as torch has it, and as the error's own command makes it."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save(state_dict(), folder / weights.INCEPTION_PICKLE)
    with pytest.raises(UsageError) as caught:
        weights.load_inception(folder / "inception.safetensors")
    command = re.search(r"python -c '(.+)'", str(caught.value))
    assert command
    subprocess.run([sys.executable, "-c", command[1]], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return weights.load_inception(folder / weights.INCEPTION_FILE, batch_size=2)


@pytest.fixture(scope="module")
def theirs(folder):
    """pytorch-fid's network, which reads the file from where it has been downloaded to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state_dict()
        )
        return pytorch_fid.inception.InceptionV3().eval()


def error(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("size", [75, 320])
def test_features_are_those_of_pytorch_fid(ours, theirs, size):
    images = inception_weights.images(size)
    with torch.no_grad():
        (pool,) = theirs(nchw(images) / 255)
    assert error(ours.features(images)[0], pool[:, :, 0, 0].numpy()) < TOLERANCE


def test_features_and_logits_are_those_of_torch_fidelity(folder):
    # At 299 x 299 it resizes nothing, and so differs in the scale only: (x - 128) / 128.
    network = FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], str(folder / weights.INCEPTION_PICKLE)
    )
    images = inception_weights.images(299)[:, :, :299]
    pool, logits = (x.numpy() for x in network(nchw(images)))
    clean = weights.load_inception(folder / weights.INCEPTION_FILE, "clean", batch_size=2)
    our_pool, our_logits = clean.features(images)
    assert error(our_pool, pool) < TOLERANCE
    assert error(our_logits, logits) < TOLERANCE


def test_clean_resizes_as_clean_fid_does():
    resize = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    for size in (75, 320):
        images = inception_weights.images(size)
        ours = frames.resize_clean(images, 299)
        np.testing.assert_array_equal(ours, np.stack([resize(image) for image in images]))


def test_the_inception_score_is_torch_fidelitys():
    logits = 3 * np.random.default_rng(0).standard_normal((203, 17), np.float32)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)
    assert inception_score.inception_score(logits, splits=10) == pytest.approx(
        tuple(theirs.values()), rel=1e-12
    )
