"""Encode a text-image set once, so that training reads latents and token ids.

  python -m zsnr_jax.data.encode --pretrained=FOLDER --source=PATH --out=DIR [--image_size=512]
  ... --host=0 --num_hosts=4   a quarter of the shards: start one such command on each host

FOLDER is a Stable Diffusion folder in diffusers' format, of which the VAE and the tokenizer are
used. PATH holds tar shards of img2dataset, or pictures with .txt files: see `data/captions.py`. DIR
is read by `data.open_latents`: see `data/latents.py`.

The same command repeated goes on: a shard that is done is skipped, and a half-written one done
over. To have one done anew, delete its .json. What is written depends on neither the batch size nor
the number of devices or hosts, but for the rounding of moments.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from zsnr_jax import diffusers_io, files, parallel
from zsnr_jax.data import captions, latents
from zsnr_jax.data.captions import BadImageError, CaptionSource, Item, Shard, Skipped
from zsnr_jax.data.latents import LatentInfo, ShardInfo
from zsnr_jax.data.pipeline import to_float
from zsnr_jax.data.tokenizer import ClipTokenizer
from zsnr_jax.errors import UsageError

DTYPES = ("float32", "bfloat16")  # of computation
_NAMED = 3  # files in the summary

T = TypeVar("T")
R = TypeVar("R")


class Picture(NamedTuple):
    """A picture that was read: uint8 [size, size, 3]."""

    key: str
    image: np.ndarray
    caption: str


class Example(NamedTuple):
    """A picture encoded: moments float16 [h, w, 2C], ids int32 [L], and how many were cut."""

    key: str
    moments: np.ndarray
    ids: np.ndarray
    cut: int


class Encoder:
    """The VAE of a folder, on all devices of this host, and its tokenizer.

    Pictures are encoded in batches of one shape, so that the program compiles once.
    """

    def __init__(
        self,
        pretrained: Path,
        image_size: int = 512,
        batch_size: int = 8,
        dtype: str = "float32",
    ) -> None:
        """Args: batch_size: over all devices of this host, which may round it up.

        Raises: UsageError where the folder is unfit, or the VAE cannot take pictures of this size.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}: it must be 1 or more.")
        if dtype not in DTYPES:
            raise UsageError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}.")
        self._tokenizer = ClipTokenizer(pretrained / "tokenizer")
        vae: Any = diffusers_io.read_network(pretrained, "vae", dtype=dtype)
        _check_size(vae.model, image_size)
        self._pretrained, self._vae = pretrained, vae.model
        self._image_size, self._dtype = image_size, dtype
        self._batch_size = parallel.round_up(batch_size)
        self.num_tokens = self._tokenizer.length  # per caption
        self._params = parallel.make_placement("pmap").put(vae.params)  # once, not with each batch
        self._encode = parallel.parallel_rows(
            lambda params, images: vae.model.apply({"params": params}, images, method="encode")
        )

    def describe(self, source: CaptionSource) -> LatentInfo:
        """What dataset.json says of a source that is encoded so."""
        side = self._image_size // _reduction(self._vae)
        empty = self._tokenizer([""]).ids[0]
        return LatentInfo(
            version=latents.VERSION,
            source=source.name,
            source_sha256=source.sha256,
            num_shards=len(source.shards),
            image_size=self._image_size,
            fit="central square, resized by PIL: bicubic, antialiased",
            moments_shape=(side, side, 2 * self._vae.latent_channels),
            moments_dtype="float16",
            moments_layout="[h, w, channels]: means, then log variances; not scaled",
            scaling_factor=self._vae.scaling_factor,
            num_tokens=self.num_tokens,
            empty_ids=tuple(empty.tolist()),
            compute_dtype=self._dtype,
            vae_sha256=latents.vae_digests(self._pretrained),
            tokenizer_sha256=latents.tokenizer_digests(self._pretrained),
        )

    def __call__(self, entries: Iterable[Item | Skipped]) -> Iterator[Example | Skipped]:
        """Encode entries, in their order but for those skipped, which go ahead of their batch."""
        read = _ahead(self._read, entries, 2 * self._batch_size)
        while batch := list(itertools.islice(read, self._batch_size)):
            yield from (entry for entry in batch if isinstance(entry, Skipped))
            if pictures := [entry for entry in batch if isinstance(entry, Picture)]:
                yield from self._encode_batch(pictures)

    def _read(self, entry: Item | Skipped) -> Picture | Skipped:
        if isinstance(entry, Skipped):
            return entry
        try:
            image = captions.decode_image(entry.image, self._image_size)
        except BadImageError as error:
            return Skipped(entry.key, str(error))
        return Picture(entry.key, image, entry.caption)

    def _encode_batch(self, pictures: Sequence[Picture]) -> Iterator[Example | Skipped]:
        images = np.zeros((self._batch_size, self._image_size, self._image_size, 3), np.float32)
        images[: len(pictures)] = to_float(np.stack([picture.image for picture in pictures]))
        tokens = self._tokenizer([picture.caption for picture in pictures])
        with np.errstate(over="ignore"):  # it is looked for below
            moments = self._encode(self._params, images).astype(np.float16)
        for row, picture in enumerate(pictures):
            if not np.isfinite(moments[row]).all():
                yield Skipped(picture.key, "its moments are not finite in float16")
                continue
            yield Example(picture.key, moments[row], tokens.ids[row], int(tokens.cut[row]))


def encode(
    encoder: Encoder, source: CaptionSource, out: Path, host: int = 0, num_hosts: int = 1
) -> dict[int, ShardInfo]:
    """Encode a host's shards, those number host, host + num_hosts, ..., but for those done.

    Args: out: made if missing; what it holds must have been encoded in the same way.
    Returns: by number, what is known of all these shards, those done before included.
    Raises: UsageError where `out` cannot be written to, or holds other latents.
    """
    if not 0 <= host < num_hosts:
        raise UsageError(f"host {host} of {num_hosts}: host must be in 0..num_hosts-1.")
    info = encoder.describe(source)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if not (out / latents.DATASET).exists():
            files.write_text(out / latents.DATASET, info.to_json())
    latents.require_same(LatentInfo.read(out), info, out)
    done = {}
    for number in (progress := tqdm(range(host, info.num_shards, num_hosts), unit="shard")):
        progress.set_description(latents.shard_name(number))
        shard = ShardInfo.read(out, number)
        done[number] = shard or encode_shard(encoder, source.shards[number], number, out)
    return done


def encode_shard(encoder: Encoder, shard: Shard, number: int, out: Path) -> ShardInfo:
    """Encode one shard into two files, of which the .json is written last and says it is done."""
    path = out / f"{latents.shard_name(number)}.arrayrecord"
    partial = path.with_suffix(".partial")
    skipped, digest, count, cut = [], hashlib.sha256(), 0, 0
    entries = tqdm(shard.read(), unit="picture", desc=shard.name, leave=False)
    # A group of one record: Grain reads them one at a time, in any order.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    for example in encoder(entries):
        if isinstance(example, Skipped):
            skipped.append(f"{example.key}: {example.reason}")
            continue
        with _writing(out):
            writer.write(latents.pack(example.moments, example.ids, example.key))
        digest.update(example.ids.tobytes() + example.key.encode("utf-8", "backslashreplace"))
        count, cut = count + 1, cut + (example.cut > 0)
    with _writing(out):
        writer.close()
    size = partial.stat().st_size
    info = ShardInfo(shard.name, count, size, digest.hexdigest(), cut, tuple(skipped))
    with _writing(out):
        partial.replace(path)
        files.write_text(path.with_suffix(".json"), info.to_json())
    return info


def summarize(shards: Mapping[int, ShardInfo], num_tokens: int, out: Path) -> str:
    """One line: what was encoded, what was skipped and where that is listed, what was cut."""
    encoded = sum(shard.num_examples for shard in shards.values())
    skipped = sum(len(shard.skipped) for shard in shards.values())
    cut = sum(shard.captions_cut for shard in shards.values())
    lists = [latents.shard_name(i) + ".json" for i, shard in shards.items() if shard.skipped]
    named = ", ".join(lists[:_NAMED]) + (", .." if len(lists) > _NAMED else "")
    return (
        f"{out}: encoded {encoded} pictures in {len(shards)} shards, skipped {skipped}"
        + (f" (listed in {named})" if lists else "")
        + f", captions cut at {num_tokens} tokens: {cut}."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Encode what is not encoded yet, then say what there is."""
    parser = argparse.ArgumentParser(
        "zsnr_jax.data.encode", description="Encode a text-image set into latents and token ids."
    )
    add = parser.add_argument
    add("--pretrained", required=True, type=Path, help="a Stable Diffusion folder (diffusers)")
    add("--source", required=True, help="a folder of tar shards, or of pictures with .txt files")
    add("--out", required=True, type=Path, help="the folder of the latents")
    add("--image_size", type=int, default=512, help="pixels per side (512)")
    add("--batch_size", type=int, default=8, help="pictures at once, over all devices (8)")
    add("--dtype", choices=DTYPES, default="float32", help="of computation (float32)")
    add("--host", type=int, default=0, help="the number of this host, 0..num_hosts-1 (0)")
    add("--num_hosts", type=int, default=1, help="hosts that share the shards (1)")
    options = parser.parse_args(argv)
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # these pictures are skipped
    source = captions.open_captions(options.source)
    encoder = Encoder(options.pretrained, options.image_size, options.batch_size, options.dtype)
    done = encode(encoder, source, options.out, options.host, options.num_hosts)
    print(summarize(done, encoder.num_tokens, options.out))


def _check_size(vae: Any, image_size: int) -> None:
    multiple = _reduction(vae)
    if image_size < 1 or image_size % multiple:
        raise UsageError(
            f"image_size is {image_size}: this VAE needs a multiple of {multiple}, as "
            f"{max(1, round(image_size / multiple)) * multiple}."
        )


def _reduction(vae: Any) -> int:
    """Pixels of a picture, per side, for one of its latents."""
    return 2 ** (len(vae.block_out_channels) - 1)


def _ahead(function: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Map in threads, in order, at most `window` items ahead of what is asked for."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn what the writers raise into one sentence; ArrayRecord's raises RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0].split(";")[0]
        raise UsageError(
            f"{out} cannot be written to ({reason}): make room there, or choose another --out."
        ) from error


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
