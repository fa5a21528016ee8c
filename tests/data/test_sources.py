"""Opening datasets: embedded ones, others, and everything that can be wrong with them."""

import io
import logging
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from zsnr_jax.data import Brightness, DatasetInfo, load_arrays, make_images, open_source
from zsnr_jax.data.brightness import CONTENTS, LEANS
from zsnr_jax.data.sources import Source
from zsnr_jax.errors import UsageError

ROOT = pathlib.Path(__file__).parents[2]

# A machine without TensorFlow, then without JAX too: finding them says there are none.
WITHOUT_TENSORFLOW = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    missing = ["tensorflow"]

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in cls.missing else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder

from zsnr_jax import data
for name in ("digits", "brightness/16"):
    data.load_arrays(data.open_source(name, "test", sys.argv[1]), 16)
assert not {"tensorflow", "jax", "flax"} & set(sys.modules)

# Grain imports jax.tree_util where there is a JAX, and does without where there is none.
Finder.missing.append("jax")
source = data.open_source("digits", "train", sys.argv[1])
batch = next(data.read_ahead(data.batches_by_step(source, batch_size=8, seed=0, image_size=16)))
assert batch["image"].shape == (8, 16, 16, 1)
assert not {"tensorflow", "jax", "flax"} & set(sys.modules)
print("done")
"""


class TinyFaces(tfds.core.GeneratorBasedBuilder):
    """Stands for any set of TFDS: PNG files of varying size, extra features, no label."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "attributes": tfds.features.FeaturesDict({"Smiling": np.bool_}),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            file = io.BytesIO()
            grey = np.full((22, 18 + i), 40 * i, np.uint8)
            rgb = np.stack([grey, grey, grey // 2], axis=-1)
            rgba = np.concatenate([rgb, rgb[:, :, :1]], axis=-1)
            Image.fromarray({3: rgba, 4: grey}.get(i, rgb)).save(file, "PNG")
            yield i, {"image": file.getvalue(), "attributes": {"Smiling": True}}


def copy_of_shapes(data_dir: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Copy the prepared brightness/16 to target; returns its folder there."""
    folder = target / "brightness" / "16" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (data_dir / "brightness" / "16" / "1.0.0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_needs_neither_tensorflow_nor_jax(tmp_path):
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.stdout.endswith("done\n"), run.stderr


def test_row_i_is_picture_i(shapes):
    images, labels = make_images(16, 1024, seed=1)
    np.testing.assert_array_equal([shapes[i]["image"] for i in range(1024)], images)
    np.testing.assert_array_equal([shapes[i]["label"] for i in range(1024)], labels)
    with pytest.raises(IndexError):
        shapes[1024]


def test_info_and_repr(shapes):
    names = tuple(f"{what} {lean}" for what in CONTENTS for lean in LEANS)
    assert shapes.info == DatasetInfo("brightness/16", "1.0.0", "test", 1024, (16, 16, 3), names)
    assert repr(shapes) == "Source(brightness/16:1.0.0, test, 1024 examples)"


def test_prepares_once_with_one_line(tmp_path, caplog, capfd):
    with caplog.at_level(logging.INFO, logger="zsnr_jax.data"):
        open_source("digits", "train", tmp_path)
        open_source("digits", "test", tmp_path)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("zsnr_jax")]
    assert len(ours) == 1 and ours[0].startswith("Preparing digits in ")
    assert "examples" not in "".join(capfd.readouterr())


def test_slices_of_splits(data_dir, shapes):
    part = open_source("brightness/16", "test[10:30]", data_dir)
    assert len(part) == 20
    np.testing.assert_array_equal(part[0]["image"], shapes[10]["image"])


def test_other_sets_of_tfds(tmp_path):
    tfds.builder("tiny_faces", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_source("tiny_faces", "train", tmp_path)
    shape = (None, None, 3)
    assert source.info == DatasetInfo("tiny_faces", "2.1.0", "train", 5, shape, ("image",))
    images, labels = load_arrays(source, 16)
    assert images.shape == (5, 16, 16, 3)
    np.testing.assert_allclose(images[:, 8, 8, 0], np.arange(5) * 40 / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(labels, 0)
    assert source[3]["image"].shape == (22, 21, 3)  # a file with alpha
    assert source[4]["image"].shape == (22, 22, 3)  # a grey file


@pytest.mark.parametrize("name", ["cifar10", "imagenet_resized/64x64", "tiny_faces"])
def test_unprepared_set_names_the_command(name, tmp_path):
    with pytest.raises(UsageError, match="is not prepared") as error:
        open_source(name, "train", tmp_path)
    assert 'pip install "zsnr_jax[tfds]"' in str(error.value)
    found = re.search(r'python -c "(.*)"', str(error.value))
    assert found
    if name == "tiny_faces":  # its builder needs no TensorFlow, so the command can be tried
        exec(found[1], {})
        assert len(open_source(name, "train", tmp_path)) == 5


@pytest.mark.parametrize(
    "name, part",
    [
        ("brightness/48", "choose one of brightness/8, brightness/16"),
        ("brightness", "choose one of brightness/8, brightness/16"),
        ("no_such_set", "catalog"),
        ("mnist/foo", "BuilderConfig foo"),
        ("a b", "catalog"),
    ],
)
def test_unknown_name(name, part, tmp_path):
    with pytest.raises(UsageError, match=part) as error:
        open_source(name, "train", tmp_path)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_unknown_split(data_dir, shapes):
    with pytest.raises(UsageError, match="no split 'validation': choose one of test, train"):
        open_source("brightness/16", "validation", data_dir)


def test_set_in_another_format(tmp_path):
    builder = tfds.builder("tiny_faces", data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    info = pathlib.Path(builder.data_dir) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UsageError, match="not in ArrayRecord format.*download_and_prepare"):
        open_source("tiny_faces", "train", tmp_path)


@pytest.mark.parametrize("damage", ["half", "empty", "missing", "info", "no info"])
def test_damaged_files_are_named(damage, data_dir, shapes, tmp_path):
    folder = copy_of_shapes(data_dir, tmp_path)
    open_source("brightness/16", "train", tmp_path)
    record = next(folder.glob("*train*"))
    info = folder / "dataset_info.json"
    if damage in ("half", "empty"):
        whole = record.read_bytes()
        record.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")
    elif damage == "missing":
        record.unlink()
    elif damage == "info":
        info.write_text(info.read_text()[:50])
    else:
        info.unlink()
    with pytest.raises(UsageError, match="is damaged.*delete that folder and run again") as error:
        open_source("brightness/16", "train", tmp_path)
    assert str(tmp_path / "brightness" / "16") in str(error.value)


def test_altered_byte_is_found_when_it_is_read(data_dir, shapes, tmp_path):
    folder = copy_of_shapes(data_dir, tmp_path)
    record = next(folder.glob("*train*"))
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 0xFF
    record.write_bytes(content)
    source = open_source("brightness/16", "train", tmp_path)
    with pytest.raises(UsageError, match="is damaged"):
        load_arrays(source, 16)


def test_another_process_was_faster(tmp_path, monkeypatch):
    prepare: Any = Brightness.download_and_prepare

    def lose_the_race(self):
        prepare(self)
        raise OSError("Directory not empty")

    monkeypatch.setattr(Brightness, "download_and_prepare", lose_the_race)
    assert len(open_source("brightness/16", "test", tmp_path)) == 1024


def test_no_room_to_prepare(tmp_path, monkeypatch):
    def full(self):
        raise OSError("No space left on device")

    monkeypatch.setattr(Brightness, "download_and_prepare", full)
    with pytest.raises(UsageError, match="No space left.*pass another data_dir"):
        open_source("brightness/16", "test", tmp_path)


class Counting:
    """Records that remember which of them were read."""

    def __init__(self, side: int):
        self.side, self.read = side, []

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"image": np.full((self.side, self.side, 3), index, np.uint8), "label": index % 2}


@pytest.mark.parametrize(
    ("num_examples", "side", "kept"), [(8, 64, True), (8, None, False), (100_000, 64, False)]
)
def test_a_set_is_kept_in_memory_where_it_fits(num_examples, side, kept) -> None:
    info = DatasetInfo("some", "1.0.0", "train", num_examples, (side, side, 3), ("a", "b"))
    records = Counting(side=64)
    source = Source(info, "/folder", records)
    for index in (3, 0, 3):
        row = source[index]
        np.testing.assert_array_equal(row["image"], np.full((64, 64, 3), index, np.uint8))
        assert row["label"] == index % 2
    assert records.read == ([3, 0] if kept else [3, 0, 3])
    if kept:
        with pytest.raises(ValueError, match="read-only"):
            row["image"][:] = 0  # the next epoch would see it
