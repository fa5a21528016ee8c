"""Datasets and batches: NumPy only, so that loader threads and processes never touch a device."""

from zsnr_jax.data.brightness import Brightness, make_images
from zsnr_jax.data.digits import Digits, make_digits
from zsnr_jax.data.latents import LatentInfo, LatentSource, open_latents
from zsnr_jax.data.pipeline import (
    batches_by_step,
    fingerprint,
    fit_image,
    latent_batches_by_step,
    load_arrays,
    read_ahead,
    to_float,
)
from zsnr_jax.data.sources import EMBEDDED, DatasetInfo, Source, open_source

__all__ = [
    "EMBEDDED",
    "Brightness",
    "DatasetInfo",
    "Digits",
    "LatentInfo",
    "LatentSource",
    "Source",
    "batches_by_step",
    "fingerprint",
    "fit_image",
    "latent_batches_by_step",
    "load_arrays",
    "make_digits",
    "make_images",
    "open_latents",
    "open_source",
    "read_ahead",
    "to_float",
]
