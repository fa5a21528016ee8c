"""The Frechet inception distance, and the statistics of real images that it is taken against:

  python -m zsnr_jax.evaluation.fid --images=FOLDER --inception=FILE --out=STATISTICS.npz

FOLDER holds JPEG, PNG or WebP files at any depth; of each the central square is cut out and resized
to 256 x 256 (--image_size), as is usual with COCO. FILE holds the weights of Inception-v3 in
safetensors; without it, the error tells how to make it. What cannot be read is left out and listed.

A distance means something beside others of the same variant, number of images and size only.
Source: arXiv 1706.08500, section 4.
"""

import argparse
import io
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from zsnr_jax import files
from zsnr_jax.data import captions
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import weights
from zsnr_jax.evaluation.frechet import Statistics, frechet_distance, statistics
from zsnr_jax.evaluation.networks import VARIANTS, Inception

# What a file of statistics holds: kinds of dtypes (float, integer, text), and how many axes.
_MEMBERS = {
    "mean": ("f", 1), "cov": ("f", 2), "n": ("i", 0),
    "variant": ("U", 0), "sha256": ("U", 0), "image_size": ("i", 0),
}  # fmt: skip
_MAX_FEATURES, _MAX_ITEM = 2048, 4 * 256  # Inception's pool; bytes of a number or a text
_MAX_BYTES = 8 * _MAX_FEATURES * (_MAX_FEATURES + 1) + 2**16  # of the file; it is not compressed


class Reference(NamedTuple):
    """Statistics of real images, and what they were made with."""

    statistics: Statistics
    variant: str
    sha256: str  # of the network's weights
    image_size: int  # of the images as the network was given them: give it samples likewise


def evaluate(
    pool: np.ndarray, variant: str, sha256: str, reference: Reference
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure samples by their pooled features [n, D].

    Args: variant, sha256: of the network that made them.
    Yields: (name, {"value", "n", "reference_n"}) for fid/<variant>; with a "warning", a sentence,
      where there are fewer images than features on either side.
    Raises: UsageError where the reference comes of another network or variant.
    """
    for what, ours, theirs in (
        ("variant", variant, reference.variant),
        ("sha256 of weights", sha256, reference.sha256),
    ):
        if ours != theirs:
            raise UsageError(
                f"the statistics of real images are of {what} {theirs}, and the samples' of "
                f"{ours}: compute them anew by python -m zsnr_jax.evaluation.fid."
            )
    samples = statistics(pool)
    if samples.mean.shape != reference.statistics.mean.shape:
        raise UsageError(
            f"the statistics of real images are of {len(reference.statistics.mean)} features, and "
            f"the samples' of {len(samples.mean)}: compute them anew by python -m "
            "zsnr_jax.evaluation.fid."
        )
    value = frechet_distance(samples, reference.statistics)
    result = {"value": value, "n": samples.n, "reference_n": reference.statistics.n}
    fewest, features = min(samples.n, reference.statistics.n), len(samples.mean)
    if fewest < features:
        result["warning"] = (
            f"FID of {fewest} images, fewer than its {features} features, is far too large: "
            "compare it with others of as many images only."
        )
    yield f"fid/{variant}", result


def save(path: Path, reference: Reference) -> None:
    """Write a reference as .npz, at once: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **reference.statistics._asdict(), **_labels(reference))
    temporary.replace(path)


def load(path: Path) -> Reference:
    """Read a reference. Raises: UsageError where there is none, or it is broken."""
    try:
        content = files.read_bytes(path, _MAX_BYTES)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = {name: _read_array(archive, name) for name in _MEMBERS}
        return _reference(found)
    except FileNotFoundError:
        raise UsageError(
            f"there is no {path}: make it of real images by python -m zsnr_jax.evaluation.fid "
            "(see --help)."
        ) from None
    except Exception as error:  # the readers of zip and npy raise all kinds
        raise UsageError(
            f"{path} holds no statistics of ours ({files.reason(error)}): make it anew by python "
            "-m zsnr_jax.evaluation.fid."
        ) from error


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A member of an .npz, once its header has been found to be of the kind and size that fit."""
    kind, axes = _MEMBERS[name]
    with archive.open(f"{name}.npy") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of another version of .npy")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    small = dtype.itemsize <= _MAX_ITEM and all(size <= _MAX_FEATURES for size in shape)
    if dtype.kind != kind or len(shape) != axes or not small:
        raise ValueError(f"{name} is {shape} of {dtype}")
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _reference(found: dict[str, np.ndarray]) -> Reference:
    mean, cov, n = found["mean"].astype(np.float64), found["cov"].astype(np.float64), found["n"]
    if cov.shape != mean.shape * 2 or not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError("mean and cov do not fit, or are not finite")
    if n < 2 or found["image_size"] < 1:
        raise ValueError("n or image_size is too small")
    labels = found["variant"].item(), found["sha256"].item(), int(found["image_size"])
    if not all(label.isprintable() for label in labels[:2]):
        raise ValueError("variant or sha256 is not printable")
    return Reference(Statistics(mean, cov, int(n)), *labels)


def measure(
    paths: Sequence[Path], inception: Inception, image_size: int
) -> tuple[Reference, list[captions.Skipped]]:
    """Statistics of image files, with progress shown, and what could not be read.

    Features take 8 kB for each image.
    Raises: UsageError where fewer than two images can be read.
    """
    parts, images, skipped = [], [], []
    for i, path in enumerate(tqdm(paths, desc="Inception", unit="image", leave=False)):
        try:
            content = files.read_bytes(path, captions.MAX_PICTURE_BYTES)
            images.append(captions.decode_image(content, image_size))
        except (captions.BadImageError, OSError) as error:
            skipped.append(captions.Skipped(str(path), files.reason(error)))
        if images and (len(images) == inception.batch_size or i + 1 == len(paths)):
            parts.append(inception.run(np.stack(images))[0])
            images = []
    if (read := len(paths) - len(skipped)) < 2:
        first = f" ({skipped[0].key}: {skipped[0].reason})" if skipped else ""
        raise UsageError(
            f"{read} of {len(paths)} images can be read{first}: give two readable ones at least."
        )
    found = statistics(np.concatenate(parts))
    return Reference(found, inception.variant, inception.sha256, image_size), skipped


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, at any depth, sorted. Raises: UsageError where there is none."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: --images names one of real images.")
    endings = [f".{ending}" for ending in captions.PICTURES]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not paths:
        raise UsageError(
            f"{folder} holds no image ({', '.join(captions.PICTURES)}): --images names a folder "
            "that does."
        )
    return paths


def _labels(reference: Reference) -> dict[str, Any]:
    return {key: x for key, x in reference._asdict().items() if key != "statistics"}


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the statistics of a folder and store them."""
    parser = argparse.ArgumentParser(
        "zsnr_jax.evaluation.fid", description="Statistics of real images, for FID."
    )
    parser.add_argument("--images", required=True, type=Path, help="a folder of image files")
    parser.add_argument("--inception", required=True, help="weights of Inception-v3, safetensors")
    parser.add_argument("--out", required=True, type=Path, help="the .npz file to write")
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0], help="how to resize")
    parser.add_argument("--image_size", type=int, default=256, help="of the squares; 256")
    parser.add_argument("--batch_size", type=int, default=64, help="images at once; 64")
    options = parser.parse_args(argv)
    for name in ("image_size", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise UsageError(f"--{name}={value} is too small: give 1 or more.")
    if options.out.suffix != ".npz" or not options.out.parent.is_dir():
        raise UsageError(f"--out={options.out} is no .npz file in a folder that exists: name one.")
    paths = list_images(options.images)
    inception = weights.load_inception(options.inception, options.variant, options.batch_size)
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # so that these are left out
    reference, skipped = measure(paths, inception, options.image_size)
    save(options.out, reference)
    for key, reason in skipped:
        print(f"left out {key}: {reason}", file=sys.stderr)
    print(
        f"{reference.statistics.n} images, {len(skipped)} left out, by {reference.variant} at "
        f"{reference.image_size} pixels: {options.out}"
    )


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
