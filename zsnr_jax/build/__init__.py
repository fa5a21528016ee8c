"""From settings to objects: the only reader of a config's strings. ConfigDict stops here."""

from zsnr_jax import config as config_lib
from zsnr_jax.build.common import Run, build_guidance, build_process, build_sampling
from zsnr_jax.build.images import ImageRun, build_images, build_model, build_objective
from zsnr_jax.build.latents import LatentRun, build_latents, float32_shapes, plan_latents
from zsnr_jax.config import Config

__all__ = [
    "ImageRun",
    "LatentRun",
    "Run",
    "build",
    "build_images",
    "build_latents",
    "build_guidance",
    "build_model",
    "build_objective",
    "build_process",
    "build_sampling",
    "float32_shapes",
    "plan",
]


def build(config: Config) -> Run:
    """Make the objects of a run, and refuse what cannot be made, before any computation.

    Raises: UsageError, one sentence, for the first setting that is wrong.
    """
    config_lib.validate(config)
    return build_latents(config) if config.pretrained else build_images(config)


def plan(config: Config) -> Run:
    """Make a run whose programs can be compiled; weights and latents need not be there."""
    config_lib.validate(config)
    return plan_latents(config) if config.pretrained else build_images(config)
