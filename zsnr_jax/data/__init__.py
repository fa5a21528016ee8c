"""Datasets and batches: NumPy only, so that loader threads and processes never touch a device."""

from zsnr_jax.data.brightness import Brightness, make_images
from zsnr_jax.data.digits import Digits, make_digits
from zsnr_jax.data.pipeline import (
    batches_by_step,
    fingerprint,
    fit_image,
    load_arrays,
    make_batches,
    to_float,
)
from zsnr_jax.data.sources import EMBEDDED, DatasetInfo, Source, open_source

__all__ = [
    "EMBEDDED",
    "Brightness",
    "DatasetInfo",
    "Digits",
    "Source",
    "batches_by_step",
    "fingerprint",
    "fit_image",
    "load_arrays",
    "make_batches",
    "make_digits",
    "make_images",
    "open_source",
    "to_float",
]
