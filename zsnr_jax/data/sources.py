"""Datasets by their TFDS name, as random-access sources that need no TensorFlow to read.

The embedded sets prepare themselves on first use. Every other set of TensorFlow Datasets is read
once it has been prepared as ArrayRecord, which takes TensorFlow; the error names the command.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from zsnr_jax import files
from zsnr_jax.data import brightness, digits
from zsnr_jax.errors import UsageError

_FORMAT = "array_record"
_MOST_KEPT = 2**28  # bytes of pictures
_log = logging.getLogger(__name__)

EMBEDDED: Mapping[str, Callable[..., tfds.core.DatasetBuilder]] = {
    f"brightness/{size}": functools.partial(brightness.Brightness, config=str(size))
    for size in brightness.SIZES
} | {"digits": digits.Digits}


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What configs, models and checkpoints need to know of a split.

    image_shape is (height, width, channels) as stored, None where it varies. Label i is called
    label_names[i]; a set without labels has the one label "image".
    """

    name: str
    version: str
    split: str
    num_examples: int
    image_shape: tuple[int | None, int | None, int]
    label_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.label_names)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.image_shape[2]


@dataclasses.dataclass(frozen=True, repr=False)
class Source:
    """One split: source[index] is {"image": uint8 [height, width, channels], "label": int32}.

    Where all pictures fit into 256 MiB, what was read once is kept, and not read again: decoding
    one takes a hundred microseconds. Arrays are read-only then.
    Raises: IndexError past the end; UsageError when the files are damaged.
    """

    info: DatasetInfo
    folder: str
    records: Any
    _kept: dict[int, dict[str, Any]] = dataclasses.field(
        default_factory=dict, init=False, compare=False
    )

    def __len__(self) -> int:
        return self.info.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self!r}")
        if index in self._kept:
            return self._kept[index]
        row = self._read(index)
        if self._fits:
            row["image"].flags.writeable = False
            self._kept[index] = row
        return row

    @functools.cached_property
    def _fits(self) -> bool:
        sizes = [size or _MOST_KEPT for size in self.info.image_shape]
        return len(self) * math.prod(sizes) <= _MOST_KEPT

    def _read(self, index: int) -> dict[str, Any]:
        with _readable(self.info.name, self.folder):
            record = self.records[index]
            label = np.int32(record.get("label", 0) if self.info.num_classes > 1 else 0)
            image = np.asarray(record["image"])[:, :, : self.info.channels]  # some files have alpha
            if not image.size or image.dtype != np.uint8:
                raise ValueError(f"row {index} has an image {image.shape} of {image.dtype}")
        return {"image": image, "label": label}

    def __repr__(self) -> str:
        # Without the folder: the same data is the same data wherever it lies.
        info = self.info
        return f"Source({info.name}:{info.version}, {info.split}, {len(self)} examples)"


def open_source(
    name: str, split: str = "train", data_dir: str | os.PathLike[str] | None = None
) -> Source:
    """Open a split of a dataset, preparing it first if it is an embedded one.

    Args:
      name: brightness/16, brightness/32, brightness/64, digits, or any TFDS name (cifar10,
        imagenet_resized/64x64, ...) with a feature "image".
      split: a TFDS split, slices included: "train", "test", "train[:10%]".
      data_dir: where TFDS keeps its sets; its own default (~/tensorflow_datasets) if None.
    Raises: UsageError where the name or split is unknown, the set is not prepared as ArrayRecord,
      or its files are damaged. The sentence says what to do.
    """
    directory = None if data_dir is None else os.path.expanduser(os.fspath(data_dir))
    if name.split("/")[0].split(":")[0] in {known.split("/")[0] for known in EMBEDDED}:
        builder = _embedded_builder(name, directory)
    else:
        builder = _tfds_builder(name, directory)
    info = _describe(builder, name, split)
    folder = str(builder.data_dir)
    read: Any = builder.as_data_source
    with _readable(info.name, folder):
        source = Source(info, folder, read(split))
    for end in {0, len(source) - 1} if len(source) else ():
        source[end]  # a truncated file should stop the run here, not hours later
    return source


def _embedded_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder of an embedded set, prepared."""
    if name not in EMBEDDED:
        raise UsageError(f"no dataset {name!r}: choose one of {', '.join(EMBEDDED)}")
    make = functools.partial(EMBEDDED[name], data_dir=data_dir, file_format=_FORMAT)
    with _readable(name, os.path.join(_root(data_dir), *name.split("/"))):
        builder = make()
    if builder.data_path.exists():
        if not builder.is_prepared():
            _damaged(name, str(builder.data_dir), "its dataset_info.json is missing")
        return builder
    _log.info("Preparing %s in %s", name, builder.data_dir)
    try:
        with _silence():
            builder.download_and_prepare()
    except OSError as error:
        # TFDS fills a folder of its own and renames it at the end, so when two processes prepare
        # at once the slower rename fails, with a good dataset in place.
        if not make().is_prepared():
            raise UsageError(
                f"cannot write dataset {name!r} to {builder.data_dir} ({error}): make room "
                "there, or pass another data_dir"
            ) from error
    return make()


def _tfds_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder of any other set; raises UsageError unless it is prepared as ArrayRecord."""
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format=_FORMAT)
    except ImportError as error:
        raise UsageError(_how_to_prepare(name, data_dir, f"needs {error.name}")) from error
    except tfds.core.DatasetNotFoundError as error:
        raise UsageError(
            f"no dataset {name!r}: choose one of {', '.join(EMBEDDED)}, or a name from "
            "https://www.tensorflow.org/datasets/catalog"
        ) from error
    except Exception as error:
        if "File format is already set" in str(error):
            folder = os.path.join(_root(data_dir), name.split(":")[0])
            state = f"under {folder} is not in ArrayRecord format; once that folder is deleted, it"
            raise UsageError(_how_to_prepare(name, data_dir, state)) from error
        raise UsageError(
            f"dataset {name!r} cannot be opened ({_first_line(error)}): see "
            "https://www.tensorflow.org/datasets/catalog for its configs and versions, or delete "
            f"its folder under {_root(data_dir)} if the files there are damaged"
        ) from error
    if not (builder.data_path.exists() and builder.is_prepared()):
        raise UsageError(_how_to_prepare(name, data_dir, "is not prepared"))
    return builder


def _describe(builder: tfds.core.DatasetBuilder, name: str, split: str) -> DatasetInfo:
    features: Any = builder.info.features
    if features is None or "image" not in features:
        raise UsageError(f"dataset {name!r} has no feature 'image': choose a set of images")
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        known = ", ".join(sorted(builder.info.splits))
        raise UsageError(
            f"dataset {name!r} has no split {split!r}: choose one of {known}, or a slice of one"
        ) from error
    label = features["label"] if "label" in features else None  # noqa: SIM401
    is_class = isinstance(label, tfds.features.ClassLabel)
    return DatasetInfo(
        name=builder.info.full_name.rsplit("/", 1)[0],
        version=str(builder.info.version),
        split=split,
        num_examples=num_examples,
        image_shape=features["image"].shape,
        label_names=tuple(label.names) if is_class else ("image",),
    )


@contextlib.contextmanager
def _readable(name: str, folder: str) -> Iterator[None]:
    """Turn whatever the readers raise on truncated or altered files into one sentence."""
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f'dataset {name!r} needs {error.name} to be read: pip install "zsnr_jax[tfds]"'
        ) from error
    except Exception as error:
        _damaged(name, folder, _first_line(error), error)


def _damaged(name: str, folder: str, reason: str, cause: Exception | None = None) -> NoReturn:
    raise UsageError(
        f"dataset {name!r} in {folder} is damaged ({reason}): delete that folder and run again"
    ) from cause


def _how_to_prepare(name: str, data_dir: str | None, state: str) -> str:
    where = "" if data_dir is None else f", data_dir={os.path.abspath(data_dir)!r}"
    build = f"tfds.builder({name!r}, file_format={_FORMAT!r}{where}).download_and_prepare()"
    return (
        f"dataset {name!r} {state}: prepare it with TensorFlow, once, by "
        f'pip install "zsnr_jax[tfds]" and then '
        f'python -c "import tensorflow_datasets as tfds; {build}"'
    )


def _root(data_dir: str | None) -> str:
    return os.path.expanduser(data_dir or str(constants.DATA_DIR))


def _first_line(error: Exception) -> str:
    """The gist of a reader's message, which may list every argument and every dataset it knows."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return files.reason(ValueError(line.rsplit('}": ', 1)[-1]))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Swallow TFDS's progress bars: a set that takes a second to make deserves one line of log."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
