"""Text-image sets as a latent diffusion model takes them: latents and token ids. No JAX.

    dataset.json                 what all records share: `LatentInfo`
    latents-00000.arrayrecord    the examples of one shard of the source, in its order
    latents-00000.json           that the shard is done, and what was skipped: `ShardInfo`
    ...

A record is three things, one after the other, all little-endian:

    moments  float16 [h, w, 2C]   means, then log variances, as `AutoencoderKL.encode` gives them
    ids      int32 [L]            the caption: start, tokens, end, padding
    key      UTF-8, the rest      what the source calls the example

Moments, not a drawn latent, so that training draws anew in each epoch. They are not scaled: drawing
multiplies by `scaling_factor`. Rounding to float16 moves a mean by at most 2^-11 (0.05 %) of its
size (and 2^-25 near 0), and a log variance, which lies in [-30, 20], by at most 1/128, which is
0.4 % of the standard deviation. ArrayRecord checks hashes when it reads.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from zsnr_jax import files
from zsnr_jax.errors import UsageError

VERSION = 1
DATASET = "dataset.json"
MOMENTS_DTYPE, IDS_DTYPE = np.dtype("<f2"), np.dtype("<i4")
_MAX_KEY = 2**20  # bytes
_MOST = 2**31 - 1  # of whatever is counted in the JSON files, and of token ids
_MOST_SKIPPED = 2**26  # bytes of a shard's JSON, which lists what was skipped
_AGAIN = "run the same command again (python -m zsnr_jax.data.encode)"


@dataclasses.dataclass(frozen=True)
class LatentInfo:
    """What dataset.json says: all that fixes the records, but for the source's own files.

    The two sha256 of the model are by file name, of the VAE's weights and of the tokenizer's files.
    """

    version: int  # of this format
    source: str  # the name of its folder
    source_sha256: str  # of the names in it, which decide what is in which shard
    num_shards: int
    image_size: int  # pixels per side, of the pictures
    fit: str  # how pictures became squares
    moments_shape: tuple[int, int, int]
    moments_dtype: str
    moments_layout: str
    scaling_factor: float
    num_tokens: int  # per caption, L
    empty_ids: tuple[int, ...]  # the caption "", for dropped captions
    compute_dtype: str  # in which the VAE ran
    vae_sha256: dict[str, str]
    tokenizer_sha256: dict[str, str]

    def to_json(self) -> str:
        """The text of dataset.json."""
        return json.dumps({"format": "zsnr_jax latents", **dataclasses.asdict(self)}) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read FOLDER/dataset.json.

        Raises: UsageError where it is missing, broken, or of another version of the format.
        """
        path, remedy = folder / DATASET, "delete the folder and encode anew"
        try:
            found = files.read_json(path, remedy)
        except FileNotFoundError:
            raise UsageError(
                f"there is no {path}: make it with python -m zsnr_jax.data.encode."
            ) from None
        with files.readable(path, remedy):
            version = found.pop("version")
            if version != VERSION:
                raise UsageError(
                    f"{path} is of version {files.shown(version)} of the format, and this is "
                    f"version {VERSION}: encode anew, into another folder."
                )
            if found.pop("format") != "zsnr_jax latents":
                raise ValueError("it is of another format")
            shape, empty = tuple(found.pop("moments_shape")), tuple(found.pop("empty_ids"))
            info = cls(version=version, moments_shape=shape, empty_ids=empty, **found)
            info.check()
        return info

    def check(self) -> None:
        """Raises: ValueError where a field is of another kind or size than it can be."""
        counts = (self.num_shards, self.image_size, self.num_tokens, *self.moments_shape)
        if len(self.moments_shape) != 3 or not all(map(_is_count, counts)):
            raise ValueError("its sizes are no whole numbers above 0")
        if math.prod(self.moments_shape) > _MOST:
            raise ValueError("its moments_shape is too large")
        if len(self.empty_ids) != self.num_tokens or not all(map(_is_count_or_0, self.empty_ids)):
            raise ValueError("its empty_ids are no row of num_tokens ids")
        if self.moments_dtype != "float16":
            raise ValueError(f"its moments_dtype is {files.shown(self.moments_dtype)}, not float16")
        if type(self.scaling_factor) not in (int, float) or not self.scaling_factor > 0:
            raise ValueError("its scaling_factor is no number above 0")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            words = [value] if field.type is str else []
            if field.type == dict[str, str]:
                words = [*value, *value.values()]
            if not all(isinstance(word, str) for word in words):
                raise ValueError(f"its {field.name} is no text")


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What latents-NNNNN.json says of a shard that is done."""

    source: str  # the source's shard
    num_examples: int
    num_bytes: int  # of the ArrayRecord file
    sha256: str  # of the examples' ids and keys; not of moments, which hardware rounds its own way
    captions_cut: int  # captions that were too long
    skipped: tuple[str, ...]  # "key: reason"

    def to_json(self) -> str:
        """The text of the shard's JSON file, one line for each skipped entry."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path, shard: int) -> Self | None:
        """What is known of a shard, or None where it is not done.

        Raises: UsageError where its file is broken.
        """
        path, remedy = folder / f"{shard_name(shard)}.json", f"delete it and {_AGAIN}"
        try:
            text = files.read_text(path, remedy, _MOST_SKIPPED)
        except FileNotFoundError:
            return None
        with files.readable(path, remedy):
            found = files.parse_json(text)
            info = cls(skipped=tuple(found.pop("skipped")), **found)
            if not all(map(_is_count_or_0, (info.num_examples, info.captions_cut))):
                raise ValueError("its counts are no whole numbers")
            if not all(isinstance(word, str) for word in (info.source, info.sha256, *info.skipped)):
                raise ValueError("its names are no text")
        return info


@dataclasses.dataclass(frozen=True, repr=False)
class LatentSource:
    """A set: source[index] is {"moments": float32 [h, w, 2C], "ids": int32 [L]}.

    sha256: of the settings, ids and keys; the same where the set was encoded again elsewhere.
    Raises: IndexError past the end; UsageError where the files are damaged.
    """

    info: LatentInfo
    folder: Path
    records: Any
    ends: tuple[int, ...]  # of each shard, the number of examples up to its end
    sha256: str

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._read(index)[0]

    def key(self, index: int) -> str:
        """What the source calls the example."""
        return self._read(index)[1]

    def __repr__(self) -> str:
        # Without the folder: the same data is the same data wherever it lies.
        size = self.info.image_size
        return (
            f"LatentSource({self.info.source}, {size} x {size}, {len(self)} examples, "
            f"{self.sha256[:12]})"
        )

    def _read(self, index: int) -> tuple[dict[str, np.ndarray], str]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self!r}")
        try:
            return unpack(self.records[index], self.info)
        except Exception as error:  # the reader's own, of any kind
            shard = shard_name(bisect.bisect_right(self.ends, index))
            _damaged(self.folder, shard, files.reason(error), error)


def open_latents(folder: str | Path) -> LatentSource:
    """Open a set that is wholly encoded.

    Raises: UsageError where the folder is missing or of another version, a shard is not encoded
      yet, or files are cut off or altered. (An altered record is found when it is read.)
    """
    folder = Path(folder).expanduser()
    info = LatentInfo.read(folder)
    paths, counts, digest = [], [], hashlib.sha256(info.to_json().encode())
    for number in range(info.num_shards):
        shard, name = ShardInfo.read(folder, number), shard_name(number)
        if shard is None:
            raise UsageError(
                f"shard {number + 1} of {info.num_shards} ({folder / name}) is not encoded yet: "
                f"{_AGAIN}, on every host."
            )
        path = folder / f"{name}.arrayrecord"
        if not path.exists() or path.stat().st_size != shard.num_bytes:
            _damaged(folder, name, "its .arrayrecord is missing or cut off")
        if shard.num_examples:
            paths.append(f"{path}[0:{shard.num_examples}]")
        counts.append(shard.num_examples)
        digest.update(shard.sha256.encode())
    if not paths:
        raise UsageError(f"{folder} holds no example: its .json files say why each was skipped.")
    ends = tuple(itertools.accumulate(counts))
    source = LatentSource(info, folder, ArrayRecordDataSource(paths), ends, digest.hexdigest())
    for end in {0, len(source) - 1}:
        source[end]  # damage should stop the run here, not hours later
    return source


def shard_name(shard: int) -> str:
    """The name of a shard's two files, without their endings."""
    return f"latents-{shard:05d}"


def pack(moments: np.ndarray, ids: np.ndarray, key: str) -> bytes:
    """One record. Args: moments [h, w, 2C], finite in float16; ids [L]."""
    content = moments.astype(MOMENTS_DTYPE).tobytes() + ids.astype(IDS_DTYPE).tobytes()
    return content + key.encode("utf-8", "backslashreplace")


def unpack(record: bytes, info: LatentInfo) -> tuple[dict[str, np.ndarray], str]:
    """The example and the key of a record.

    Raises: ValueError where it is too short or too long, or holds what no record has.
    """
    count = math.prod(info.moments_shape)
    start = count * MOMENTS_DTYPE.itemsize
    end = start + info.num_tokens * IDS_DTYPE.itemsize
    if not end <= len(record) <= end + _MAX_KEY:
        raise ValueError(f"a record has {len(record)} bytes, and {end} and those of its key fit")
    moments = np.frombuffer(record, MOMENTS_DTYPE, count).reshape(info.moments_shape)
    ids = np.frombuffer(record, IDS_DTYPE, info.num_tokens, offset=start)
    if not np.isfinite(moments).all() or ids.min() < 0:
        raise ValueError("a record holds moments that are not finite, or ids below 0")
    example = {"moments": moments.astype(np.float32), "ids": ids.astype(np.int32)}
    return example, record[end:].decode()


def vae_digests(pretrained: Path) -> dict[str, str]:
    """sha256, by name, of the weights that `diffusers_io` reads of PRETRAINED/vae."""
    stem = "diffusion_pytorch_model"
    single = pretrained / "vae" / f"{stem}.safetensors"
    many = sorted(single.parent.glob(f"{stem}-*-of-*.safetensors"))
    return _digests([single] if single.exists() else many)


def tokenizer_digests(pretrained: Path) -> dict[str, str]:
    """sha256, by name, of the files that make PRETRAINED/tokenizer."""
    paths = (pretrained / "tokenizer").glob("*")
    return _digests(sorted(path for path in paths if path.suffix in (".json", ".txt")))


def require_same(found: LatentInfo, wanted: LatentInfo, folder: Path) -> None:
    """Raises: UsageError that names the first setting in which the two differ."""
    for field in dataclasses.fields(LatentInfo):
        old, new = getattr(found, field.name), getattr(wanted, field.name)
        if old != new:
            if isinstance(old, dict):  # of files: those that differ
                both = (old, new)
                old, new = ({k: x[k] for k in x if old.get(k) != new.get(k)} for x in both)
            raise UsageError(
                f"{folder} holds latents with {field.name}={_short(old)} where this command has "
                f"{_short(new)}: set it back, or choose another --out."
            )


def _short(value: Any) -> str:
    """A setting in a sentence: of digests their beginning, by name where they have one."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_short(x)}" for name, x in value.items()) + "}"
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}.."
    return repr(value) if not isinstance(value, Sequence) or len(value) < 60 else "another list"


def _digests(paths: Iterable[Path]) -> dict[str, str]:
    found = {}
    for path in paths:
        with open(path, "rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _damaged(folder: Path, shard: str, reason: str, cause: Exception | None = None) -> NoReturn:
    raise UsageError(
        f"shard {folder / shard} is damaged ({reason}): delete {shard}.json and {_AGAIN}."
    ) from cause


def _is_count_or_0(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_count(value: Any) -> bool:
    return _is_count_or_0(value) and value > 0
