"""Batches are a pure function of the step, and the same ones for any number of hosts."""

import itertools
import json

import numpy as np
import pytest

from zsnr_jax.data import (
    batches_by_step,
    fingerprint,
    fit_image,
    load_arrays,
    read_ahead,
    to_float,
)
from zsnr_jax.errors import UsageError

B = 32


class Numbered:
    """n pictures of one grey level each; the label is the row."""

    def __init__(self, n: int, size: int = 4):
        self.n, self.size = n, size

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict:
        ramp = np.arange(self.size * self.size, dtype=np.uint8).reshape(self.size, self.size, 1)
        return {"image": ramp, "label": index}


def by_step(source, batch_size=B, seed=0, image_size=16, **options):
    return batches_by_step(
        source, batch_size=batch_size, seed=seed, image_size=image_size, **options
    )


def assert_same(a, b):
    assert a.keys() == b.keys() == {"image", "label", "index"}
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


def test_shapes_types_and_range(shapes):
    batch = by_step(shapes)[0]
    assert batch["image"].shape == (B, 16, 16, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (B,) and batch["label"].dtype == np.int32
    assert batch["index"].dtype == np.int32
    np.testing.assert_array_equal(batch["index"], np.arange(B))
    images, _ = load_arrays(shapes, 16)
    assert images.min() == -1.0 and images.max() == 1.0


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("start_step", [0, 5, 40, 10**9])
def test_iterator_started_anywhere_equals_step_addressing(shapes, start_step, num_threads):
    batches = by_step(shapes, seed=7, flip=True)
    iterator = read_ahead(batches, start_step, num_threads=num_threads)
    for step, batch in enumerate(itertools.islice(iterator, 3), start_step):
        assert_same(batch, batches[step])


def test_steps_in_any_order(shapes):
    forwards = [by_step(shapes)[step]["label"] for step in range(4)]
    batches = by_step(shapes)
    backwards = [batches[step]["label"] for step in (3, 2, 1, 0)]
    np.testing.assert_array_equal(forwards, backwards[::-1])


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_share_the_global_batch(shapes, num_hosts):
    whole = by_step(shapes, flip=True)
    hosts = [by_step(shapes, flip=True, host=h, num_hosts=num_hosts) for h in range(num_hosts)]
    for step in (0, 1, 31, 32, 1000):
        parts = [host[step] for host in hosts]
        assert_same({k: np.concatenate([p[k] for p in parts]) for k in parts[0]}, whole[step])


def test_a_host_reads_its_own_rows_only(monkeypatch):
    source, read = Numbered(1000), []
    monkeypatch.setattr(
        Numbered, "__getitem__", lambda self, i: read.append(i) or {"image": IMAGE, "label": i}
    )
    batch = by_step(source, image_size=4, host=1, num_hosts=4)[3]
    assert sorted(read) == sorted(batch["label"]) and len(read) == B // 4


IMAGE = np.zeros((4, 4, 1), np.uint8)


@pytest.mark.parametrize("length", [1, 2, 100, 128])  # 100: batches of 32 cross its epochs
def test_every_epoch_visits_each_example_once(length):
    batches = by_step(Numbered(length), image_size=4)
    labels = np.concatenate([batches[step]["label"] for step in range(-(-3 * length // B))])
    epochs = labels[: 3 * length].reshape(3, length)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(length), (3, 1)))
    if length > 2:
        assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
        assert (epochs[0] != np.arange(length)).any()


def test_seeds_give_other_orders_not_shifted_epochs():
    def epochs(seed):
        batches = by_step(Numbered(64), batch_size=64, seed=seed, image_size=4)
        return [tuple(batches[step]["label"]) for step in range(4)]

    assert not set(epochs(0)) & set(epochs(1))


def test_flip_mirrors_half_of_the_rows():
    plain = by_step(Numbered(256), batch_size=256, image_size=4)
    flipped = by_step(Numbered(256), batch_size=256, image_size=4, flip=True)
    counts = []
    for step in range(2):
        before, after = plain[step]["image"], flipped[step]["image"]
        np.testing.assert_array_equal(plain[step]["label"], flipped[step]["label"])
        same = (after == before).all(axis=(1, 2, 3))
        mirrored = (after == before[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (same ^ mirrored).all()
        counts.append(tuple(mirrored))
        assert 96 < mirrored.sum() < 160
    assert counts[0] != counts[1]


def test_rows_and_flips_of_a_seed_stay_those_of_former_versions():
    """As 0.5.0 gave them: runs that go on by a later one must meet the same data."""
    batches = by_step(Numbered(40), batch_size=8, seed=3, image_size=4, flip=True)
    known = {
        0: ([29, 30, 31, 7, 26, 3, 18, 19], [1, 0, 0, 1, 0, 0, 1, 0]),
        11: ([11, 29, 37, 3, 19, 12, 9, 8], [0, 1, 0, 1, 1, 1, 1, 1]),
    }
    for step, (labels, mirrored) in known.items():
        images = batches[step]["image"]
        assert batches[step]["label"].tolist() == labels
        assert (images[:, 0, 0, 0] > images[:, 0, -1, 0]).tolist() == [*map(bool, mirrored)]


def test_fit_image_crops_the_centre():
    image = np.zeros((218, 178, 3), np.uint8)
    image[20:198] = 200
    np.testing.assert_array_equal(fit_image(image, 64), np.full((64, 64, 3), 200))
    np.testing.assert_array_equal(fit_image(image, 178), np.full((178, 178, 3), 200))
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))[..., None]
    np.testing.assert_allclose(fit_image(ramp, 32)[:, 2:-2, 0], ramp[:32, 4:-4:2, 0] + 2, atol=1)
    assert fit_image(ramp, 64).base is not None  # it fits: not copied


def test_to_float_meets_both_ends():
    np.testing.assert_array_equal(to_float(np.array([0, 255], np.uint8)), [-1, 1])
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(np.rint((to_float(levels) + 1) * 127.5), levels)


def test_fingerprint_is_json_and_tells_runs_apart(shapes):
    same: dict = {"batch_size": B, "seed": 0, "image_size": 16}
    first = fingerprint(shapes, **same)
    assert json.loads(json.dumps(first)) == first
    assert first["name"] == "brightness/16" and first["length"] == 1024
    for key, value in {"batch_size": 64, "seed": 1, "image_size": 32, "flip": True}.items():
        assert fingerprint(shapes, **{**same, key: value}) != first


@pytest.mark.parametrize(
    "options, part",
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -4}, "batch_size is -4"),
        ({"batch_size": 10, "num_hosts": 4}, "batch_size is 10.*number of hosts, 4"),
        ({"host": 2, "num_hosts": 2}, "host 2 of 2"),
        ({"seed": -1}, "seed is -1"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_wrong_arguments(options, part):
    with pytest.raises(UsageError, match=part):
        by_step(Numbered(100), **options)


def test_wrong_start_and_empty_source():
    with pytest.raises(UsageError, match="start_step is -1"):
        read_ahead(by_step(Numbered(9), batch_size=3), -1)
    with pytest.raises(UsageError, match="is empty"):
        by_step(Numbered(0))


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_reader_error_reaches_the_loop(num_threads, monkeypatch):
    def fail(self, index):
        raise UsageError("dataset 'x' is damaged")

    monkeypatch.setattr(Numbered, "__getitem__", fail)
    batches = read_ahead(by_step(Numbered(9), batch_size=3), num_threads=num_threads)
    with pytest.raises(UsageError, match="is damaged"):
        next(batches)
