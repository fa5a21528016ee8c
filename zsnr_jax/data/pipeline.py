"""Batches as a pure function of the step.

The pipeline is a seeded Grain MapDataset, an infinite sequence that is addressed by step and has
no state to save: position p = step * batch_size + index holds row p mod n of epoch p div n, and
each epoch has its own order. A batch may therefore span two epochs, and no example is dropped.

Hosts. With b = batch_size / num_hosts, the sequence is cut into pieces of b rows and host h takes
pieces h, h + num_hosts, h + 2 num_hosts, ... . Its piece k holds the positions
(h + k num_hosts) b + j = k batch_size + h b + j, that is rows [h b, (h + 1) b) of global batch k.
So a host reads its own rows only, and any number of hosts sees the same global batches.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from zsnr_jax.data.sources import Source
from zsnr_jax.errors import UsageError

Batch = dict[str, Any]  # arrays; scalars in it while it is still one row


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

    def prepare(example: Mapping[str, Any]) -> Batch:
        image = to_float(fit_image(np.asarray(example["image"]), image_size))
        return {"image": image, "label": np.int32(example["label"])}

    return _by_step(source, prepare, _flip if flip else None, batch_size, seed, host, num_hosts)


def latent_batches_by_step(
    source: Examples, *, batch_size: int, seed: int, host: int = 0, num_hosts: int = 1
) -> Batches:
    """All batches of a run on latents; arguments and errors as of `batches_by_step`.

    Args: source: of {"moments": [h, w, 2C], "ids": [L]}, as `latents.open_latents` gives it.
    Returns: dicts of moments float32 [b, h, w, 2C], ids int32 [b, L] and index int32 [b].
    """

    def prepare(example: Mapping[str, Any]) -> Batch:
        return {
            "moments": np.asarray(example["moments"], np.float32),
            "ids": np.asarray(example["ids"], np.int32),
        }

    return _by_step(source, prepare, None, batch_size, seed, host, num_hosts)


def _by_step(
    source: Examples,
    prepare: Callable[[Mapping[str, Any]], Batch],
    augment: Callable[[Batch, np.random.Generator], Batch] | None,
    batch_size: int,
    seed: int,
    host: int,
    num_hosts: int,
) -> Batches:
    _check(source, batch_size, seed, host, num_hosts)
    # Imported here since Grain imports jax.tree_util, which reading a dataset does not need.
    import grain

    def numbered(position: int, example: Mapping[str, Any]) -> Batch:
        return prepare(example) | {"index": np.int32(position % batch_size)}

    # seed() hashes the seed with the place of each random step in the pipeline, so shuffle stays
    # first and random_map fourth: moving them changes every run's data.
    rows: Any = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    rows = rows.map_with_index(numbered)
    if augment is not None:
        rows = rows.random_map(augment)
    return rows.batch(batch_size // num_hosts)[host::num_hosts]


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


def _flip(row: Batch, rng: np.random.Generator) -> Batch:
    """Grain keys rng by the row's position, so the flip too is a function of the step."""
    if rng.random() < 0.5:
        return row
    return row | {"image": np.ascontiguousarray(row["image"][:, ::-1])}


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
