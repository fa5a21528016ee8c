"""The format of encoded sets: what is written is read, and whatever is amiss is told."""

import dataclasses
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from zsnr_jax.data import latents
from zsnr_jax.data.latents import LatentInfo, ShardInfo, open_latents
from zsnr_jax.errors import UsageError

SHAPE, LENGTH = (2, 3, 4), 5
INFO = LatentInfo(
    version=1,
    source="cats",
    source_sha256="0" * 64,
    num_shards=3,
    image_size=16,
    fit="as they come",
    moments_shape=SHAPE,
    moments_dtype="float16",
    moments_layout="any",
    scaling_factor=0.5,
    num_tokens=LENGTH,
    empty_ids=(8, 9, 0, 0, 0),
    compute_dtype="float32",
    vae_sha256={"vae.safetensors": "1" * 64},
    tokenizer_sha256={"vocab.json": "2" * 64},
)
COUNTS = (3, 0, 1)  # examples in each shard
KEYS = ("a/0.png", "1", "für", "3")


def moments(row: int) -> np.ndarray:
    return np.random.default_rng(row).normal(0, 4, SHAPE)


def ids(row: int) -> np.ndarray:
    return np.arange(LENGTH) * 10_000 + row


def record(row: int) -> bytes:
    """By the docstring's words: little-endian halves, then 32-bit integers, then the key."""
    content = struct.pack(f"<{np.prod(SHAPE)}e", *moments(row).ravel())
    return content + struct.pack(f"<{LENGTH}i", *ids(row)) + KEYS[row].encode()


def write(folder: Path) -> Path:
    folder.mkdir()
    (folder / "dataset.json").write_text(INFO.to_json())
    rows = iter(range(sum(COUNTS)))
    for number, count in enumerate(COUNTS):
        path = folder / f"latents-0000{number}.arrayrecord"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(count):
            writer.write(record(next(rows)))
        writer.close()
        shard = ShardInfo(f"{number}.tar", count, path.stat().st_size, str(number), 0, ("k: bad",))
        path.with_suffix(".json").write_text(shard.to_json())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "set")


def test_a_record_is_as_the_docstring_says():
    found = latents.pack(moments(2).astype(np.float32), ids(2), "für")
    assert found == record(2)
    example, key = latents.unpack(found, INFO)
    assert key == "für" and example.keys() == {"moments", "ids"}
    assert example["moments"].dtype == np.float32 and example["ids"].dtype == np.int32


def test_every_example_is_found_by_its_number(folder):
    source = open_latents(folder)
    assert len(source) == 4 and source.info == INFO
    for row, key in enumerate(KEYS):
        expected = moments(row).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(source[row]["moments"], expected)
        np.testing.assert_array_equal(source[row]["ids"], ids(row))
        assert source.key(row) == key
    for row in (-1, 4):
        with pytest.raises(IndexError, match="row .* of LatentSource"):
            source[row]


def test_rounding_moves_moments_as_little_as_the_docstring_says():
    means = np.random.default_rng(0).normal(0, 1, 10_000)
    logvar = np.random.default_rng(1).uniform(-30, 20, 10_000)
    info = dataclasses.replace(INFO, moments_shape=(100, 100, 2))
    both = np.stack([means.reshape(100, 100), logvar.reshape(100, 100)], -1)
    example, _ = latents.unpack(latents.pack(both, ids(0), ""), info)
    error = np.abs(example["moments"] - both)
    assert (error[..., 0] <= np.maximum(np.abs(both[..., 0]) * 2.0**-11, 2.0**-25)).all()
    assert 1 / 256 < error[..., 1].max() <= 1 / 128
    assert np.expm1(1 / 128 / 2) < 0.004


def test_the_same_set_elsewhere_is_the_same(folder, tmp_path):
    there, here = open_latents(write(tmp_path / "there")), open_latents(folder)
    assert there.sha256 == here.sha256
    assert repr(there) == repr(here)
    assert repr(here) == f"LatentSource(cats, 16 x 16, 4 examples, {here.sha256[:12]})"


@pytest.mark.parametrize("changed", ["settings", "ids"])
def test_another_set_has_another_digest(changed, folder):
    before = open_latents(folder).sha256
    if changed == "settings":
        other = dataclasses.replace(INFO, scaling_factor=0.25)
        (folder / "dataset.json").write_text(other.to_json())
    else:
        path = folder / "latents-00002.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "other"}))
    assert open_latents(folder).sha256 != before


def test_it_is_a_source_for_grain_and_for_its_processes(folder):
    source = open_latents(folder)
    dataset: Any = grain.MapDataset.source(source)  # pyright: ignore[reportArgumentType]
    found = dataset[3]
    np.testing.assert_array_equal(found["ids"], ids(3))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["ids"], ids(2))


def test_what_was_skipped_is_listed_one_a_line(folder):
    shard = ShardInfo("a.tar", 1, 2, "x", 3, ("a: empty caption", "b: no caption"))
    text = shard.to_json()
    assert '\n  "a: empty caption",\n  "b: no caption"\n' in text
    (folder / "latents-00001.json").write_text(text)
    assert ShardInfo.read(folder, 1) == shard
    assert ShardInfo.read(folder, 7) is None


def delete(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    def change(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-100])

    return change


def change_json(name, **fields):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def empty(folder):
    for number in range(3):
        change_json(f"latents-0000{number}.json", num_examples=0)(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (delete("dataset.json"), "there is no .*dataset.json: make it with python -m"),
        (delete("latents-00001.json"), "shard 2 of 3 .*latents-00001.* is not encoded yet: run th"),
        (delete("latents-00002.arrayrecord"), "latents-00002 is damaged .* missing or cut off"),
        (cut("latents-00000.arrayrecord"), "latents-00000 is damaged .* missing or cut off"),
        (cut("latents-00001.arrayrecord"), "latents-00001 is damaged .* missing or cut off"),
        (cut("latents-00000.json"), "latents-00000.json cannot be read .*: delete it and run"),
        (cut("dataset.json"), "dataset.json cannot be read .*: delete the folder and encode anew"),
        (change_json("dataset.json", version=2), "is of version 2 .* and this is version 1: encod"),
        (change_json("dataset.json", extra=2), "dataset.json cannot be read"),
        (change_json("dataset.json", format="other"), "cannot be read .it is of another format"),
        (change_json("latents-00000.json", extra=1), "latents-00000.json cannot be read"),
        (change_json("dataset.json", moments_shape=[200, 1, 1]), "latents-0000. is damaged"),
        (empty, "holds no example: its .json files say why"),
    ],
)
def test_an_unfit_folder_is_refused_in_one_sentence(change, message, folder):
    change(folder)
    with pytest.raises(UsageError, match=message) as error:
        open_latents(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number, row", [(0, 0), (2, 3)])
def test_an_altered_record_is_told_with_its_shard(number, row, folder):
    path = folder / f"latents-0000{number}.arrayrecord"
    content = bytearray(path.read_bytes())
    place = content.find(record(row)[-20:])  # in the file as it is, unless it is compressed
    content[place if place >= 0 else 100] ^= 0xFF
    path.write_bytes(content)
    message = f"latents-0000{number} is damaged .*delete latents-0000{number}.json"
    with pytest.raises(UsageError, match=message):
        open_latents(folder)


def test_settings_that_differ_are_named():
    latents.require_same(INFO, dataclasses.replace(INFO), Path("out"))
    for change, message in (
        ({"image_size": 32}, "image_size=16 where this command has 32: set it back, or choose"),
        (
            {"vae_sha256": {"vae.safetensors": "3" * 64}},
            "vae_sha256={vae.safetensors: 111111111111",
        ),
        ({"empty_ids": (1,) * 77}, "empty_ids=.* where this command has another list"),
    ):
        with pytest.raises(UsageError, match=f"out holds latents with {message}"):
            latents.require_same(INFO, dataclasses.replace(INFO, **change), Path("out"))


def test_digests_are_those_of_sha256sum(tmp_path):
    sums = {  # printf ... | sha256sum
        b"one": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        b"two": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
    }
    names = [
        "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    names += ["vae/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/x.md"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"one" if "merges" not in name else b"two")
    one, two = sums.values()
    assert latents.vae_digests(tmp_path) == {"diffusion_pytorch_model.safetensors": one}
    assert latents.tokenizer_digests(tmp_path) == {"merges.txt": two, "vocab.json": one}
    (tmp_path / names[0]).unlink()
    for part in ("00001", "00002"):
        (tmp_path / f"vae/diffusion_pytorch_model-{part}-of-00002.safetensors").write_bytes(b"two")
    assert list(latents.vae_digests(tmp_path).values()) == [two, two]
