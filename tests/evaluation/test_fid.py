"""The Frechet distance beside its closed forms and scipy; statistics of folders, and their file."""

import functools
import hashlib

import inception_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from PIL import Image
from safetensors.numpy import save_file

from zsnr_jax import torch_weights
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import fid, networks, weights
from zsnr_jax.evaluation.frechet import Statistics, frechet_distance, statistics
from zsnr_jax.models.inception import InceptionV3

RNG = np.random.default_rng(0)


def rotation(size):
    return np.linalg.qr(RNG.standard_normal((size, size)))[0]


def test_statistics_are_numpys():
    features = (5 + RNG.standard_normal((40, 7)) @ RNG.standard_normal((7, 7))).astype(np.float32)
    mean, cov, n = statistics(features)
    np.testing.assert_allclose(mean, np.mean(features.astype(np.float64), axis=0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)
    assert n == 40 and mean.dtype == cov.dtype == np.float64


def test_statistics_keep_digits_far_from_zero():
    features = np.array([[1e4, 0], [1e4 + 2**-9, 1]], np.float32)
    np.testing.assert_allclose(statistics(features).cov[0], [2.0**-19, 2.0**-10], rtol=1e-12)


def test_distance_of_gaussians_whose_covariances_commute():
    # d^2 = |m1 - m2|^2 + sum (s1 - s2)^2 over the standard deviations along common axes.
    axes, (m1, m2) = rotation(6), RNG.standard_normal((2, 6))
    s1, s2 = np.array([3, 2, 1, 0.5, 0, 0.0]), np.array([1, 2, 0, 4, 0.7, 0.0])
    a, b = (Statistics(m, axes * s**2 @ axes.T, 9) for m, s in ((m1, s1), (m2, s2)))
    expected = np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_distance_where_covariances_do_not_commute_beside_scipy():
    a, b = (statistics(RNG.standard_normal((90, 12)) @ RNG.normal(size=(12, 12))) for _ in "ab")
    root = np.real(np.asarray(scipy.linalg.sqrtm(a.cov @ b.cov)))
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_distance_of_covariances_of_rank_one():
    # C = u u^T: the root's trace is |u . v|.
    u, v = RNG.standard_normal((2, 200))
    a, b = (Statistics(np.zeros(200), np.outer(x, x), 2) for x in (u, v))
    assert frechet_distance(a, b) == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-12)


@pytest.mark.parametrize("n", [5, 100, 400])
def test_a_set_is_at_no_distance_from_itself_however_few(n):
    # By the eigenvalues of the product, the roots' rounding would make 1e-6 of the trace or more.
    found = statistics(RNG.standard_normal((n, 300)))
    assert 0 <= frechet_distance(found, found) < 1e-11 * np.trace(found.cov)


def test_a_shift_is_its_square_and_few_images_are_farther():
    features = RNG.standard_normal((4000, 20))
    a = statistics(features)
    assert frechet_distance(a, statistics(features + 0.5)) == pytest.approx(20 * 0.25, rel=1e-9)
    far = [frechet_distance(a, statistics(RNG.standard_normal((n, 20)))) for n in (30, 300, 3000)]
    assert far[0] > 3 * far[1] > 9 * far[2]


def test_what_has_no_covariance_is_refused():
    with pytest.raises(UsageError, match="1 images have no covariance"):
        statistics(np.zeros((1, 4)))
    with pytest.raises(UsageError, match="2 of 3 images are not finite"):
        statistics(np.array([[0, np.nan], [1, 2], [np.inf, 0]]))


REFERENCE = fid.Reference(statistics(RNG.standard_normal((50, 6))), "pytorch-fid", "ab12", 256)


def test_the_variant_travels_with_the_number():
    pool = RNG.standard_normal((30, 6))
    ((name, result),) = fid.evaluate(pool, "pytorch-fid", "ab12", REFERENCE)
    assert name == "fid/pytorch-fid"
    value = frechet_distance(statistics(pool), REFERENCE.statistics)
    assert result == {"value": value, "n": 30, "reference_n": 50}


def test_a_number_of_too_few_images_says_so():
    few = REFERENCE._replace(statistics=REFERENCE.statistics._replace(n=5))
    for pool, reference in ((np.eye(5, 6), REFERENCE), (np.eye(6), few)):
        ((_, result),) = fid.evaluate(pool, "pytorch-fid", "ab12", reference)
        assert result["warning"].startswith("FID of 5 images, fewer than its 6 features")


@pytest.mark.parametrize(
    "variant, sha256, told",
    [("clean", "ab12", "variant pytorch-fid"), ("pytorch-fid", "c", "ab12")],
)
def test_statistics_of_another_network_are_refused(variant, sha256, told):
    with pytest.raises(UsageError, match=told):
        dict(fid.evaluate(np.eye(6), variant, sha256, REFERENCE))


def test_a_reference_comes_back_as_it_was(tmp_path):
    fid.save(tmp_path / "real.npz", REFERENCE)
    assert [path.name for path in tmp_path.iterdir()] == ["real.npz"]
    found = fid.load(tmp_path / "real.npz")
    assert found[1:] == REFERENCE[1:] and found.statistics.n == 50
    np.testing.assert_array_equal(found.statistics.mean, REFERENCE.statistics.mean)
    np.testing.assert_array_equal(found.statistics.cov, REFERENCE.statistics.cov)


def test_a_reference_that_is_none(tmp_path):
    path = tmp_path / "real.npz"
    with pytest.raises(UsageError, match="there is no .*real.npz: make it of real images"):
        fid.load(path)
    fid.save(path, REFERENCE)
    whole = path.read_bytes()
    for broken in (whole[:300], b"", b"x" * 99):
        path.write_bytes(broken)
        with pytest.raises(UsageError, match="holds no statistics of ours"):
            fid.load(path)
    with path.open("wb") as file:
        np.savez(file, mu=np.zeros(3), sigma=np.eye(3))  # as pytorch-fid has it
    with pytest.raises(UsageError, match="holds no statistics of ours"):
        fid.load(path)


# The command. It runs the whole network, so once.


@functools.cache
def tensors():
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.uint8)
    shapes = jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]
    flat = torch_weights.to_torch(
        jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    )
    return inception_weights.tensors({name: x.shape for name, x in flat.items()})


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    counters = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros(1, np.int64)}  # as torch has them
    file = tmp_path_factory.mktemp("inception") / "inception-2015-12-05.safetensors"
    save_file(tensors() | counters, file)
    return file


def write_images(folder):
    """Three pictures, of which one is in a folder of its own, and two files that are none."""
    (folder / "more").mkdir(parents=True)
    pictures = [RNG.integers(0, 256, (20, 33, 3), np.uint8) for _ in range(3)]
    for picture, name in zip(pictures, ("a.png", "b.PNG", "more/c.png")):
        Image.fromarray(picture).save(folder / name)
    (folder / "aa.jpg").write_bytes(b"no picture")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("x")
    return np.stack(pictures)


def test_the_command_measures_a_folder_and_lists_what_it_left_out(tmp_path, inception_file, capsys):
    pictures = write_images(tmp_path / "images")
    out = tmp_path / "real.npz"
    options = {"images": tmp_path / "images", "inception": inception_file, "out": out}
    options |= {"image_size": 20, "batch_size": 2}
    fid.main([f"--{name}={value}" for name, value in options.items()])
    printed = capsys.readouterr()
    assert printed.out.startswith("3 images, 2 left out, by pytorch-fid at 20 pixels")
    assert [line.split(":")[0] for line in printed.err.splitlines() if "left out" in line] == [
        f"left out {tmp_path / 'images' / 'aa.jpg'}",
        f"left out {tmp_path / 'images' / 'cut.png'}",
    ]
    found = fid.load(out)
    assert (found.variant, found.image_size, found.statistics.n) == ("pytorch-fid", 20, 3)
    assert found.sha256 == hashlib.sha256(inception_file.read_bytes()).hexdigest()
    # The same by the network itself: three images in batches of two, so one is filled up.
    pool, _ = weights.load_inception(inception_file, batch_size=2).features(pictures[:, :, 6:26])
    np.testing.assert_allclose(found.statistics.mean, pool.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        np.trace(found.statistics.cov), pool.var(axis=0, ddof=1).sum(), rtol=1e-4
    )


def test_what_is_no_picture_is_refused():
    network = networks.Inception({}, "pytorch-fid", "ab12", batch_size=2)
    for images in (np.zeros((0, 9, 9, 3), np.uint8), np.zeros((2, 9, 9, 3), np.float32)):
        with pytest.raises(UsageError, match="give some in colour as uint8"):
            network.features(images)


def test_mistakes_at_the_command_are_one_sentence(tmp_path, inception_file):
    one = tmp_path / "one" / "a.png"
    one.parent.mkdir()
    given = {
        "images": tmp_path / "empty",
        "inception": inception_file,
        "out": tmp_path / "real.npz",
    }
    given["images"].mkdir()
    Image.new("RGB", (30, 30)).save(one)
    one.with_name("b.png").write_bytes(b"no picture")
    for change, told in (
        ({"images": tmp_path / "no"}, "there is no folder .*no"),
        ({}, "holds no image"),
        (
            {"images": one.parent, "batch_size": 2, "image_size": 20},
            r"1 of 2 images can be read \(.*b.png: not a .*give two",
        ),
        (
            {"images": one.parent, "inception": tmp_path / "no.safetensors"},
            "download https.* weights_only=True",
        ),
        (
            {"images": one.parent, "inception": tmp_path / "w.pth"},
            "is no safetensors file of Inception weights",
        ),
        ({"out": tmp_path / "real.txt"}, "is no .npz file"),
        ({"out": tmp_path / "no" / "real.npz"}, "is no .npz file in a folder that exists"),
        ({"batch_size": 0}, "--batch_size=0 is too small"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            fid.main([f"--{name}={value}" for name, value in (given | change).items()])
        assert "\n" not in str(caught.value)
