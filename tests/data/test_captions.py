"""Text-image sources: what is read, in which order, and what is passed over with a reason."""

import io
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsnr_jax.data import captions
from zsnr_jax.data.captions import BadImageError, Item, Skipped, decode_image, open_captions
from zsnr_jax.errors import UsageError


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar with an end mark of two blocks, padded to 10240 bytes, as all writers leave it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(folder: Path) -> list[list[Item | Skipped]]:
    return [list(shard.read()) for shard in open_captions(folder).shards]


def sample(key: str, image: bytes = b"picture", text: bytes = b"a cat") -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image), (f"{key}.txt", text), (f"{key}.json", b"{}")]


def test_tars_are_read_in_the_order_of_their_names_and_members(tmp_path):
    write_tar(tmp_path / "00001.tar", sample("000010000", text=b"  a dog\n"))
    members = [
        *(("b.json", b"{}"), ("b.txt", b"second, first"), ("b.PNG", b"1")),
        *(("a.cls", b"7"), ("a.jpeg", b"2"), ("a.txt", "für\n elise".encode())),
        *(("README", b"x"), ("notes.md", b"x"), ("._a.jpg", b"x"), ("c.v2.jpg", b"x")),
        *(("x.d/a.webp", b"3"), ("x.d/a.txt", b"\xef\xbb\xbfin a folder")),
    ]
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "._00000.tar").write_bytes(b"x")
    first = [
        Item("b", b"1", "second, first"),
        Item("a", b"2", "für\n elise"),
        Item("x.d/a", b"3", "in a folder"),
    ]
    assert read(tmp_path) == [first, [Item("000010000", b"picture", "a dog")]]
    assert [shard.name for shard in open_captions(tmp_path).shards] == ["00000.tar", "00001.tar"]


@pytest.mark.parametrize(
    "members, reason",
    [
        ([("k.jpg", b"x")], "no caption"),
        ([("k.jpg", b"x"), ("k.txt", b"")], "empty caption"),
        ([("k.jpg", b"x"), ("k.txt", b" \n")], "empty caption"),
        ([("k.jpg", b"x"), ("k.txt", b"caf\xe9")], "caption is not UTF-8"),
        ([("k.gif", b"x"), ("k.txt", b"a cat")], "no picture (jpg, jpeg, png, webp)"),
    ],
)
def test_a_sample_that_cannot_be_used_is_skipped_with_its_reason(members, reason, tmp_path):
    write_tar(tmp_path / "0.tar", [*sample("before"), *members, *sample("z")])
    before, skipped, after = read(tmp_path)[0]
    assert skipped == Skipped("k", reason)
    assert [before.key, after.key] == ["before", "z"]


CUTS = {  # bytes that are left of a tar of two samples, each of three members of 1024 bytes
    "within a picture": 3 * 1024 + 512 + 100,
    "within a name": 3 * 1024 + 100,
    "between members": 4 * 1024,
    "before the end mark": 6 * 1024,
}


@pytest.mark.parametrize("where", CUTS)
def test_of_a_tar_cut_short_the_beginning_is_kept_and_the_loss_told(where, tmp_path):
    picture = b"x" * 512
    path = write_tar(tmp_path / "00000.tar", [*sample("a", picture), *sample("b", picture)])
    path.write_bytes(path.read_bytes()[: CUTS[where]])
    write_tar(tmp_path / "00001.tar", sample("c"))
    (first, *rest), second = read(tmp_path)
    assert first == Item("a", picture, "a cat") and second[0].key == "c"
    assert rest[-1].key == "00000.tar"
    assert isinstance(rest[-1], Skipped) and "cut short or broken" in rest[-1].reason
    if where == "between members":  # the picture is there, and its caption lost
        assert rest[:-1] == [Skipped("b", "no caption")]
    elif where == "before the end mark":
        assert rest[:-1] == [Item("b", picture, "a cat")]
    else:
        assert len(rest) == 1


@pytest.mark.parametrize("damage", ["header", "no tar", "empty"])
def test_a_broken_tar_is_told(damage, tmp_path):
    path = write_tar(tmp_path / "00000.tar", [*sample("a"), *sample("b")])
    content = bytearray(path.read_bytes())
    content[3 * 1024 : 3 * 1024 + 512] = b"?" * 512
    kept = {"header": bytes(content), "no tar": b"<html>" * 1000, "empty": b""}[damage]
    path.write_bytes(kept)
    *items, skipped = read(tmp_path)[0]
    assert [item.key for item in items] == (["a"] if damage == "header" else [])
    assert isinstance(skipped, Skipped) and skipped.key == "00000.tar"


def test_pictures_with_text_files_are_cut_into_shards(tmp_path, monkeypatch):
    names = ["b.png", "a/z.jpg", "a/B.WEBP", "c.jpeg", "no_text.jpg"]
    for name in [*names, ".hidden.png", ".git/x.png", "other.gif"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
        if name != "no_text.jpg":
            (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}")
    monkeypatch.setattr(captions, "PICTURES_PER_SHARD", 2)
    expected = [
        Item(name, name.encode(), f"caption of {name}")
        for name in ("a/B.WEBP", "a/z.jpg", "b.png", "c.jpeg")
    ]
    no_text = Skipped("no_text.jpg", "no caption")
    assert read(tmp_path) == [expected[:2], expected[2:], [no_text]]


def test_a_picture_that_went_missing_is_skipped(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    shards = open_captions(tmp_path).shards
    (tmp_path / "a.png").unlink()
    (entry,) = shards[0].read()
    assert entry == Skipped("a.png", "cannot be read: No such file or directory")


def test_the_digest_follows_what_is_in_which_shard_and_not_the_place(tmp_path):
    def digest(folder: str, *names: str) -> str:
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"x")
        source = open_captions(tmp_path / folder)
        assert source.name == folder
        return source.sha256

    assert digest("one", "a.png", "b.png") == digest("two", "b.png", "a.png")
    assert digest("two", "aa.png") != digest("one")
    assert digest("tars", "0.tar", "1.tar") != digest("fewer", "0.tar")


@pytest.mark.parametrize(
    "name, message",
    [("missing", "there is no folder .*missing: give one"), ("", "holds no .tar and no picture")],
)
def test_a_source_that_is_none_is_refused(name, message, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=message) as error:
        open_captions(tmp_path / name)
    assert "\n" not in str(error.value)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_a_picture_that_fits_keeps_its_bytes():
    image = noise(8, 8)
    for options in ({"kind": "PNG"}, {"kind": "WEBP", "lossless": True}):
        found = decode_image(encoded(Image.fromarray(image), **options), 8)
        np.testing.assert_array_equal(found, image)
        assert found.dtype == np.uint8


def test_the_central_square_is_cut_out():
    np.testing.assert_array_equal(
        decode_image(encoded(Image.fromarray(noise(8, 20))), 8), noise(8, 20)[:, 6:14]
    )
    np.testing.assert_array_equal(
        decode_image(encoded(Image.fromarray(noise(21, 8))), 8), noise(21, 8)[6:14]
    )


def test_a_picture_is_resized():
    image = np.full((40, 60, 3), (10, 100, 200), np.uint8)
    found = decode_image(encoded(Image.fromarray(image)), 16)
    np.testing.assert_array_equal(found, np.broadcast_to((10, 100, 200), (16, 16, 3)))


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_turns_a_picture_upright(orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode_image(encoded(Image.fromarray(noise(8, 8)), exif=exif), 8)
    np.testing.assert_array_equal(found, np.rot90(noise(8, 8), turns))


def test_transparent_parts_are_white():
    image = noise(8, 8, 4)
    alpha = image[..., 3:] / 255
    expected = alpha * image[..., :3] + (1 - alpha) * 255
    found = decode_image(encoded(Image.fromarray(image)), 8)
    np.testing.assert_allclose(found.astype(float), expected, atol=1)
    grey = Image.fromarray(image[..., 2:])  # of mode LA
    expected = alpha * image[..., 2:3] + (1 - alpha) * 255
    np.testing.assert_allclose(
        decode_image(encoded(grey), 8).astype(float), np.repeat(expected, 3, -1), atol=1
    )
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode_image(encoded(palette, transparency=1), 8) == 255).all()
    assert (decode_image(encoded(palette, transparency=0), 8) == (10, 20, 30)).all()


def test_other_modes_become_rgb():
    grey = noise(8, 8, 1)
    expected = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey)), 8), expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)  # 16 bits: 255 is 65535
    np.testing.assert_array_equal(decode_image(encoded(deep), 8), expected)
    one_bit = Image.fromarray(grey > 127)
    np.testing.assert_array_equal(decode_image(encoded(one_bit), 8), (expected > 127) * 255)
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = decode_image(encoded(ink, "JPEG", quality=100), 8).astype(int)
    np.testing.assert_allclose(found, np.broadcast_to((255, 0, 0), (8, 8, 3)), atol=3)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it has many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends


JPEG = encoded(Image.fromarray(noise(64, 64)), "JPEG")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not a JPEG, PNG or WebP picture"),
        (b"<html>gone</html>", "not a JPEG, PNG or WebP picture"),
        (encoded(Image.fromarray(noise(8, 8)), "GIF"), "not a JPEG, PNG or WebP picture"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded: image file is truncated.*"),
        (JPEG[:15], "(not a|cannot be decoded).*"),
        (png_of_size(8193, 8192), "8193 x 8192 pixels are too many"),
        (png_of_size(100_000, 100_000), "cannot be decoded: Image size .*"),
        (png_of_size(0, 8), "(not a|cannot be decoded).*"),
    ],
)
def test_a_bad_picture_is_refused_with_a_short_reason(content, reason):
    with pytest.raises(BadImageError) as error:
        decode_image(content, 16)
    assert re.fullmatch(reason, str(error.value)) and len(str(error.value)) < 150
