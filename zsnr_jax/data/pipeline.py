"""Batches as a pure function of the step.

The pipeline is a seeded Grain MapDataset, an infinite sequence that is addressed by step and has
no state to save: position p = step * batch_size + index holds row p mod n of epoch p div n, and
each epoch has its own order. A batch may therefore span two epochs, and no example is dropped.

Hosts. With b = batch_size / num_hosts, the sequence is cut into pieces of b rows and host h takes
pieces h, h + num_hosts, h + 2 num_hosts, ... . Its piece k holds the positions
(h + k num_hosts) b + j = k batch_size + h b + j, that is rows [h b, (h + 1) b) of global batch k.
So a host reads its own rows only, and any number of hosts sees the same global batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from zsnr_jax.data.sources import Source
from zsnr_jax.errors import UsageError

Batch = dict[str, Any]  # arrays


class _Place(NamedTuple):
    """Where a row of a batch comes from, and where it goes."""

    row: int  # of the source
    index: int  # in the global batch
    mirrored: bool


class _Row(NamedTuple):
    """A row of a batch as it was read."""

    example: Mapping[str, Any]
    mirrored: bool


class Examples(Protocol):
    """Random access to rows: of images, {"image": uint8 [h, w, c], "label": integer}, as Source
    is; of latents, {"moments", "ids"}, as LatentSource is."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Batches(Protocol):
    """Random access to batches by step, 0 <= step without end."""

    def __getitem__(self, step: int, /) -> Batch: ...


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 of any shape to float32 in [-1, 1]: 0 is exactly -1 and 255 exactly 1."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def fit_image(image: np.ndarray, image_size: int) -> np.ndarray:
    """Crop the central square and resize it. uint8 [h, w, c] -> uint8 [size, size, c].

    Bicubic with antialiasing (PIL). An image that already fits is returned as it is.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == image_size:
        return square
    planes = [
        Image.fromarray(np.ascontiguousarray(square[:, :, channel])).resize(
            (image_size, image_size), Image.Resampling.BICUBIC
        )
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def batches_by_step(
    source: Examples,
    *,
    batch_size: int,
    seed: int,
    image_size: int,
    host: int = 0,
    num_hosts: int = 1,
    flip: bool = False,
) -> Batches:
    """All batches of a run: batches[step] is this host's rows of the global batch of that step.

    Args:
      source: at least one example.
      batch_size: rows of the global batch B, over all hosts.
      seed: 0..2^32-1, of the order and the flips.
      image_size: pictures are cropped and resized to this many pixels per side.
      host, num_hosts: this host's place; num_hosts must divide batch_size.
      flip: mirror each picture left to right with probability 1/2, for natural images.
    Returns: a lazy sequence (a grain.MapDataset) of dicts: image float32 [b, size, size, c] in
      [-1, 1], label int32 [b], and index int32 [b], the row's place 0..B-1 in the global batch.
    Raises: UsageError where an argument is out of range.
    """
    if image_size < 1:
        raise UsageError(f"image_size is {image_size}: it must be 1 or more")

    def image(row: _Row) -> np.ndarray:
        fitted = fit_image(np.asarray(row.example["image"]), image_size)
        return fitted[:, ::-1] if row.mirrored else fitted

    def collate(rows: Sequence[_Row]) -> Batch:
        return {
            "image": to_float(np.stack([image(row) for row in rows])),
            "label": np.array([row.example["label"] for row in rows], np.int32),
        }

    return _by_step(source, collate, batch_size, seed, host, num_hosts, flip)


def latent_batches_by_step(
    source: Examples, *, batch_size: int, seed: int, host: int = 0, num_hosts: int = 1
) -> Batches:
    """All batches of a run on latents; arguments and errors as of `batches_by_step`.

    Args: source: of {"moments": [h, w, 2C], "ids": [L]}, as `latents.open_latents` gives it.
    Returns: dicts of moments float32 [b, h, w, 2C], ids int32 [b, L] and index int32 [b].
    """

    def collate(rows: Sequence[_Row]) -> Batch:
        return {
            "moments": np.stack([row.example["moments"] for row in rows]).astype(np.float32),
            "ids": np.stack([row.example["ids"] for row in rows]).astype(np.int32),
        }

    return _by_step(source, collate, batch_size, seed, host, num_hosts)


def _by_step(
    source: Examples,
    collate: Callable[[Sequence[_Row]], Batch],
    batch_size: int,
    seed: int,
    host: int,
    num_hosts: int,
    flip: bool = False,
) -> Batches:
    _check(source, batch_size, seed, host, num_hosts)
    # Imported here since Grain imports jax.tree_util, which reading a dataset does not need.
    import grain

    def read(places: Sequence[_Place]) -> Batch:
        rows = [_Row(source[place.row], place.mirrored) for place in places]
        return collate(rows) | {"index": np.array([place.index for place in places], np.int32)}

    # Rows are numbers until their batch is read, since each stage costs each row some microseconds.
    # seed() hashes the seed with the place of each random step in the pipeline, so shuffle stays
    # first and random_map fourth: moving them changes every run's data.
    rows: Any = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    rows = rows.map_with_index(lambda position, row: _Place(row, position % batch_size, False))
    if flip:
        rows = rows.random_map(_flip)
    return rows.batch(batch_size // num_hosts, batch_fn=read)[host::num_hosts]


def read_ahead(
    batches: Batches, start_step: int = 0, *, num_threads: int = 2, prefetch: int = 4
) -> Iterator[Batch]:
    """Iterate for ever over batches from a step on, reading ahead in threads.

    Args:
      batches: as `batches_by_step` gives them.
      start_step: the step of the first batch, >= 0; free of charge.
      num_threads: threads that build batches; 0 builds each when it is asked for.
      prefetch: batches kept ready.
    """
    if start_step < 0:
        raise UsageError(f"start_step is {start_step}: it must be 0 or more")
    import grain

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    ahead: Any = batches[start_step:]  # pyright: ignore[reportArgumentType]
    return iter(ahead.to_iter_dataset(options))


def load_arrays(
    source: Examples, image_size: int, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read a source in order, for evaluation: all of it, or `most` examples at even distances.

    Returns: images float32 [n, size, size, c] in [-1, 1]; labels int32 [n].
    """
    n = len(source) if most is None else min(most, len(source))
    examples = [source[row * len(source) // n] for row in range(n)]
    images = np.stack([fit_image(np.asarray(e["image"]), image_size) for e in examples])
    return to_float(images), np.array([e["label"] for e in examples], np.int32)


def fingerprint(
    source: Source, *, batch_size: int, seed: int, image_size: int, flip: bool = False
) -> dict[str, str | int | bool]:
    """What fixes the data of every step, for the checkpoint; JSON-able.

    The number of hosts is not part of it: any number sees the same global batches.
    """
    return {
        "name": source.info.name,
        "version": source.info.version,
        "split": source.info.split,
        "length": len(source),
        "seed": seed,
        "batch_size": batch_size,
        "image_size": image_size,
        "flip": flip,
    }


def _flip(place: _Place, rng: np.random.Generator) -> _Place:
    """Grain keys rng by the row's position, so the flip too is a function of the step."""
    return place._replace(mirrored=bool(rng.random() >= 0.5))


def _check(source: Examples, batch_size: int, seed: int, host: int, num_hosts: int) -> None:
    if len(source) < 1:
        raise UsageError(f"{source!r} is empty: choose a split with at least one example")
    if num_hosts < 1 or not 0 <= host < num_hosts:
        raise UsageError(f"host {host} of {num_hosts}: host must be in 0..num_hosts-1")
    if batch_size < 1 or batch_size % num_hosts:
        raise UsageError(
            f"batch_size is {batch_size}: it must be a positive multiple of the number of "
            f"hosts, {num_hosts}"
        )
    if not 0 <= seed < 2**32:
        raise UsageError(f"data seed is {seed}: it must be in 0..{2**32 - 1}")
