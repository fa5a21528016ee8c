"""Pictures with captions, as text-image sets lie on disk. No JAX.

A source is a folder, of one of two kinds:

- Shards of img2dataset, or of WebDataset: 00000.tar, 00001.tar, ... A sample is a run of members
  whose names are the same up to the first dot: {key}.jpg, .jpeg, .png or .webp, and its caption
  {key}.txt. Other members ({key}.json, ...) are passed over.
- Pictures at any depth, with a .txt of the same stem beside each. In the order of their names they
  make shards of 1000, so that hosts can share them.

A picture without a caption is skipped, as is one whose caption is empty: training drops captions at
the rate it is told, and these would add to it unseen. Nothing is lost in silence: what cannot be
used comes as `Skipped`, with the reason.

Names within a tar are keys, and never places: nothing is written, and links, folders and devices
are passed over. What a tar, a picture or a caption claims to be is held against limits before
memory is taken for it.
"""

import functools
import hashlib
import io
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from zsnr_jax import files
from zsnr_jax.data.pipeline import fit_image
from zsnr_jax.errors import UsageError

PICTURES = ("jpg", "jpeg", "png", "webp")  # the endings, and the formats that are read
PICTURES_PER_SHARD = 1000  # where the source has no shards of its own
MAX_PIXELS = 2**26  # of a picture as it is stored; 8192 x 8192, which take 256 MiB as RGBA
MAX_PICTURE_BYTES = 4 * MAX_PIXELS  # of its file: no more than its pixels
MAX_CAPTION_BYTES = 2**16  # a tokenizer keeps some 300 of them
_FORMATS = ("JPEG", "PNG", "WEBP")
_BLOCK = 512  # bytes; members of a tar start at multiples of it, and a block of zeros ends it
_MAX_HEADER = 2**16  # bytes of a long name, or of a member's other settings
_MANY_DIGITS = re.compile(rb"[0-9]{256}")  # in a header, over which tarfile would brood for long


class Item(NamedTuple):
    """A picture, as its file has it, and its caption, which is not empty."""

    key: str
    image: bytes
    caption: str


class Skipped(NamedTuple):
    """What cannot be used: the key of a sample, or the name of a tar, and why, in a few words."""

    key: str
    reason: str


class Shard(NamedTuple):
    """A part of a source; `read()` goes through it once, always in the same order."""

    name: str
    read: Callable[[], Iterator[Item | Skipped]]


class CaptionSource(NamedTuple):
    """A source: its folder's name, its shards in order, and a digest of what is in which shard.

    sha256: of the names of the tars or the pictures; another one means that shards have moved.
    """

    name: str
    sha256: str
    shards: tuple[Shard, ...]


class BadImageError(ValueError):
    """A picture that cannot be used; its text is the reason, in a few words."""


def open_captions(path: str | os.PathLike[str]) -> CaptionSource:
    """List a source's shards; nothing is read yet.

    Raises: UsageError where the folder is missing, or holds neither tars nor pictures.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}: give one with .tar shards of img2dataset, or with "
            "pictures that have a .txt of the same name beside them."
        )
    name = folder.resolve().name
    if tars := sorted(path for path in folder.glob("*.tar") if not path.name.startswith(".")):
        shards = tuple(Shard(path.name, functools.partial(_read_tar, path)) for path in tars)
        return CaptionSource(name, _digest([path.name for path in tars]), shards)
    if not (pictures := _list_pictures(folder)):
        raise UsageError(
            f"{folder} holds no .tar and no picture ({', '.join(PICTURES)}): give the folder that "
            "has them."
        )
    cuts = range(0, len(pictures), PICTURES_PER_SHARD)
    parts = [pictures[start : start + PICTURES_PER_SHARD] for start in cuts]
    shards = tuple(Shard(part[0], functools.partial(_read_files, folder, part)) for part in parts)
    return CaptionSource(name, _digest(pictures), shards)


def decode_image(content: bytes, image_size: int) -> np.ndarray:
    """Read a JPEG, PNG or WebP file, turn it upright (EXIF), and fit it to a square.

    Transparent parts become white. The central square is cut out and resized: `fit_image`.
    Returns: uint8 [size, size, 3].
    Raises: BadImageError, for whatever is wrong with it, and for more than 2^26 pixels, whose
      decoding could take all memory.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width} x {image.height} pixels are too many")
            return fit_image(np.asarray(_to_rgb(ImageOps.exif_transpose(image))), image_size)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:  # its text has an address in memory
        raise BadImageError("not a JPEG, PNG or WebP picture") from error
    except Exception as error:  # PIL's readers raise all kinds, struct.error and SyntaxError too
        raise BadImageError(f"cannot be decoded: {files.reason(error)[:120]}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of 16 bits, which PIL's own conversion would clip
        grey = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


class _Member(NamedTuple):
    """A member of a tar that belongs to a sample. Of one that is too large: no content."""

    key: str
    suffix: str
    content: bytes | None


class _Forwards:
    """A file as tarfile may read it: ever on, and headers of some length only.

    A header may claim a size of terabytes, for which it would take the memory, or a negative one,
    which would lead it round in circles.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        content = self._file.read(size)
        if _MANY_DIGITS.search(content):
            raise tarfile.ReadError("a header with a number of 256 digits")
        return content

    def seek(self, place: int) -> None:
        if place < self._file.tell() - 1:  # tarfile reads the last byte once more
            raise tarfile.ReadError("a member of negative size")
        self._file.seek(place)


def _read_tar(path: Path) -> Iterator[Item | Skipped]:
    """Go through a tar's samples, in its order."""
    for key, group in itertools.groupby(_members(path), key=lambda member: member.key):
        contents: dict[str, bytes | None] = {}
        for member in group:
            if isinstance(member, Skipped):  # the tar's own, whose key is no sample's
                yield member
            else:
                contents[member.suffix] = member.content
        if contents:
            image = next((kind for kind in PICTURES if kind in contents), None)
            if large := [kind for kind in (image, "txt") if contents.get(str(kind), b"") is None]:
                yield Skipped(key, f"its {large[0]} is too large")
            else:
                yield _entry(key, contents.get(str(image)), contents.get("txt"))


def _members(path: Path) -> Iterator[_Member | Skipped]:
    """The pictures and captions of a tar; where it breaks off, that at last."""
    end = 0  # of the last member
    try:
        if not path.is_file():
            raise tarfile.ReadError("no regular file")
        with open(path, "rb") as file, _open_tar(file) as tar:
            while info := tar.next():
                tar.members = []  # which it would collect, for whoever reads in another order
                start = info.offset_data
                end = start + -(-info.size // _BLOCK) * _BLOCK
                folder, slash, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
                if plain and stem and (suffix := suffix.lower()) in (*PICTURES, "txt"):
                    content = _content(file, start, info.size, suffix)
                    yield _Member(f"{folder}{slash}{stem}", suffix, content)
            file.seek(end)  # tarfile takes any end for the end, but for one within a member
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("no end mark")
    except Exception as error:  # tarfile's, and of odd numbers in headers all kinds
        said = f"cut short or broken ({files.reason(error)})"
        yield Skipped(path.name, f"{said}: what follows is lost")


def _open_tar(file: BinaryIO) -> Any:
    forwards: Any = _Forwards(file)
    return tarfile.open(fileobj=forwards, mode="r:")


def _content(file: BinaryIO, start: int, size: int, suffix: str) -> bytes | None:
    """The bytes of a tar's member, or None where there are too many of them."""
    if size > (MAX_CAPTION_BYTES if suffix == "txt" else MAX_PICTURE_BYTES):
        return None
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _list_pictures(folder: Path) -> list[str]:
    """Paths within the folder, sorted; hidden files and folders are left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(
        path.as_posix()
        for path in paths
        if path.suffix.lower().removeprefix(".") in PICTURES
        and not any(part.startswith(".") for part in path.parts)
    )


def _read_files(folder: Path, names: Sequence[str]) -> Iterator[Item | Skipped]:
    for name in names:
        text = (folder / name).with_suffix(".txt")
        try:
            caption = files.read_bytes(text, MAX_CAPTION_BYTES) if text.exists() else None
            image = files.read_bytes(folder / name, MAX_PICTURE_BYTES)
            entry = _entry(name, image, caption)
        except OSError as error:
            entry = Skipped(name, f"cannot be read: {error.strerror}")
        yield entry


def _entry(key: str, image: bytes | None, text: bytes | None) -> Item | Skipped:
    if image is None:
        return Skipped(key, f"no picture ({', '.join(PICTURES)})")
    if text is None:
        return Skipped(key, "no caption")
    try:
        caption = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return Skipped(key, "caption is not UTF-8")
    return Item(key, image, caption) if caption else Skipped(key, "empty caption")


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
