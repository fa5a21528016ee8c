"""A folder that we export, sampled by diffusers' own pipeline, live. Skipped without torch."""
# pyright: reportMissingImports=false

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import sd_folder
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from zsnr_jax import diffusers_io, guidance, predictions, samplers, timesteps
from zsnr_jax.data.tokenizer import ClipTokenizer
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.scheduler_config import SamplerSettings

S, SCALE, RESCALE = 10, 7.5, 0.7
PROMPTS, NEGATIVE = ["a painting of the old garden", "a photo of a dog!"], "the rain"
LATENTS = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)


def ours(folder: diffusers_io.Folder) -> np.ndarray:
    """Images [2, 16, 16, 3] by our networks, guidance and sampler."""
    tokenize = ClipTokenizer(folder.path / "tokenizer")
    encode = lambda captions: folder.text_encoder.model.apply(  # noqa: E731
        {"params": folder.text_encoder.params}, tokenize(captions).ids
    )
    unet: Any = functools.partial(folder.unet.model.apply, {"params": folder.unet.params})
    contexts = encode(PROMPTS), encode([NEGATIVE] * len(PROMPTS))
    network = guidance.guide_network(unet, *contexts, SCALE, RESCALE)
    schedule = folder.process.noise_schedule
    denoise = predictions.make_denoise(network, schedule, folder.process.prediction)
    levels = timesteps.make_timesteps(folder.sampler.spacing, folder.process.num_steps, S)
    latents = samplers.sample(
        samplers.ddim(), denoise, jnp.asarray(LATENTS), schedule, levels,
        final_level=folder.sampler.final_level,
    )  # fmt: skip
    vae = folder.vae.model
    return np.asarray(vae.apply({"params": folder.vae.params}, latents, method="decode"))


def theirs(path: str) -> np.ndarray:
    """The same by diffusers, with nothing set but what its users set."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        path, safety_checker=None, feature_extractor=None, torch_dtype=torch.float32
    )
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        PROMPTS, negative_prompt=[NEGATIVE] * len(PROMPTS), num_inference_steps=S,
        guidance_scale=SCALE, guidance_rescale=RESCALE, output_type="latent",
        latents=torch.from_numpy(LATENTS.transpose(0, 3, 1, 2)),
    ).images  # fmt: skip
    with torch.no_grad():
        decoded = pipeline.vae.decode(images / pipeline.vae.config.scaling_factor).sample
    return decoded.numpy().transpose(0, 2, 3, 1)


def test_an_exported_folder_gives_our_images_in_diffusers(tmp_path):
    source = diffusers_io.read(sd_folder.write(tmp_path / "source"))
    # Large enough that the guidance and its rescale show: without the latter images move by 4e-4.
    trained = jax.tree.map(lambda x: x * np.float32(3), source.unet.params)
    sampler = SamplerSettings("trailing", steps_offset=1, final_level=0)
    diffusers_io.write(source, tmp_path / "out", trained, DiffusionProcess(), sampler)
    expected, found = theirs(str(tmp_path / "out")), ours(diffusers_io.read(tmp_path / "out"))
    assert np.isfinite(expected).all() and np.ptp(expected) > 0.1
    assert np.max(np.abs(found - expected)) < 5e-5 * np.max(np.abs(expected))  # measured: 5e-6
