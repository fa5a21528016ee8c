"""The drawn text-image set: the same for the same seed, and its captions are true."""

import colorsys
import hashlib
import json
import re
import tarfile
from collections import Counter

import numpy as np
import pytest

from zsnr_jax.data import scenes
from zsnr_jax.data.captions import Item, decode_image, open_captions
from zsnr_jax.errors import UsageError

HUES = {"red": 0, "yellow": 50, "green": 135, "blue": 225, "purple": 280, "pink": 330}  # degrees


def drawn(num: int, size: int = 32, seed: int = 0) -> list[tuple[np.ndarray, str]]:
    pairs = (scenes.make_scene(i, size, seed) for i in range(num))
    return [(np.asarray(image), caption) for image, caption in pairs]


def brightness(image: np.ndarray) -> float:
    return image.mean() / 127.5 - 1


def test_the_files_depend_on_the_arguments_only(tmp_path):
    def contents(name: str, **options) -> list[bytes]:
        scenes.write_scenes(tmp_path / name, num=25, size=16, per_shard=10, **options)
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    first = contents("first", seed=3)
    assert len(first) == 3
    assert contents("again", seed=3) == first
    assert all(a != b for a, b in zip(contents("other", seed=4), first))


def test_a_picture_does_not_depend_on_how_many_there_are(tmp_path):
    scenes.write_scenes(tmp_path / "set", num=7, size=16, per_shard=3, seed=1)
    shards = [list(shard.read()) for shard in open_captions(tmp_path / "set").shards]
    assert [len(shard) for shard in shards] == [3, 3, 1]
    for i, entry in enumerate(entry for shard in shards for entry in shard):
        image, caption = scenes.make_scene(i, 16, 1)
        assert isinstance(entry, Item) and entry.caption == caption
        assert entry.key == f"{i // 3:05d}{i % 3:04d}"
        np.testing.assert_array_equal(decode_image(entry.image, 16), np.asarray(image))


def test_the_json_beside_a_picture_is_true(tmp_path):
    scenes.write_scenes(tmp_path / "set", num=2, size=16)
    with tarfile.open(tmp_path / "set" / "00000.tar") as tar:
        contents = {name: tar.extractfile(name) for name in tar.getnames()}
        read = {name: file.read() for name, file in contents.items() if file}
    assert list(read) == [f"00000000{i}.{kind}" for i in (0, 1) for kind in ("png", "txt", "json")]
    assert json.loads(read["000000001.json"]) == {
        "key": "000000001",
        "caption": read["000000001.txt"].decode(),
        "width": 16,
        "height": 16,
        "sha256": hashlib.sha256(read["000000001.png"]).hexdigest(),
    }


def test_every_kind_comes_equally_often_and_every_caption_is_listed():
    pairs = drawn(len(scenes.KINDS) * 30, size=8)
    found = Counter(caption for _, caption in pairs)
    assert len(scenes.CAPTIONS) == len(set(scenes.CAPTIONS)) > 60
    assert set(found) <= set(scenes.CAPTIONS) and len(found) > 0.8 * len(scenes.CAPTIONS)
    assert not any("{" in caption for caption in scenes.CAPTIONS)
    for kind in scenes.KINDS:
        patterns = [re.escape(caption).replace(r"\{color\}", r"\w+") for caption in kind.captions]
        of_kind = [c for c in found.elements() if any(re.fullmatch(p, c) for p in patterns)]
        assert len(of_kind) >= 30  # more, where one caption fits another kind too: a white dot


def test_brightness_reaches_both_ends_and_solid_is_solid():
    pairs = drawn(len(scenes.KINDS) * 4)
    values = np.array([brightness(image) for image, _ in pairs])
    assert values.min() == -1 and values.max() == 1
    assert (values < -0.8).mean() > 0.3 and (values > 0.7).mean() > 0.25
    for image, caption in pairs:
        words = re.findall(r"\w+", caption)
        if caption.startswith(("solid", "a plain", "nothing")):
            color = {"black": 0, "grey": 128, "white": 255}
            (expected,) = {color[word] for word in words if word in color}
            assert (image == expected).all(), caption
        elif {"night", "dark"} & set(words) or caption.endswith("on black"):
            assert brightness(image) < -0.7, caption
        elif {"fog", "foggy", "snowy", "winter", "page"} & set(words):
            assert brightness(image) > 0.6, caption
        elif {"checkerboard", "chessboard", "stripes", "gradient"} & set(words):
            assert abs(brightness(image)) < 0.01, caption


def test_what_is_named_by_a_color_has_it():
    checked = Counter()
    for image, caption in drawn(len(scenes.KINDS) * 12):
        name = next((word for word in caption.split() if word in HUES), None)
        if name is None or "sun" in caption:
            continue
        pixels = image.reshape(-1, 3) / 255
        hls = np.array([colorsys.rgb_to_hls(*pixel) for pixel in pixels])
        vivid = np.ptp(pixels, axis=1) > 0.4
        turns = np.exp(2j * np.pi * hls[vivid, 0]).mean()
        away = np.angle(turns * np.exp(-2j * np.pi * HUES[name] / 360), deg=True)
        assert vivid.mean() < 0.35 and abs(away) < 15, (caption, away)
        checked[name] += 1
    assert set(checked) == set(HUES) == set(scenes.COLORS)


def test_edges_are_smooth():
    image = next(image for image, caption in drawn(66) if "white dot" in caption)
    assert len(np.unique(image)) > 5 and {0, 255} <= set(np.unique(image))


@pytest.mark.parametrize(
    "option, value", [("num", 0), ("size", 0), ("per_shard", 10_001), ("seed", -1)]
)
def test_numbers_out_of_range_are_refused(option, value, tmp_path):
    with pytest.raises(UsageError, match=f"^{option} is {value}: it must be in"):
        scenes.write_scenes(tmp_path / "set", **{option: value})
    assert not (tmp_path / "set").exists()


def test_the_command_writes_a_set_once(tmp_path, capsys):
    arguments = [f"--out={tmp_path / 'set'}", "--num=3", "--size=8", "--per_shard=2"]
    scenes.main(arguments)
    assert capsys.readouterr().out == f"3 pictures with captions in {tmp_path / 'set'}\n"
    assert len(list((tmp_path / "set").iterdir())) == 2
    with pytest.raises(UsageError, match="set exists: choose another --out, or delete it"):
        scenes.main(arguments)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made .Not a directory.: choose another --out"):
        scenes.main([f"--out={tmp_path / 'file' / 'set'}"])
