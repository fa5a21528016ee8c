"""torch's side of the benchmarks: diffusers, as its users write it, in the variants they choose."""
# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

from experiments.benchmarks import sd_shaped
from experiments.benchmarks.sd_shaped import Sizes
from experiments.benchmarks.turns import Run

VARIANTS = ("eager", "channels_last", "compiled")


def forward(variant: str, folder: Path, sizes: Sizes) -> Run:
    """One call of the network."""
    import torch

    network = _read(variant, folder).eval()
    latents, _, timestep, contexts = _inputs(variant, sizes)
    return torch.no_grad()(lambda: network(latents, timestep, contexts).sample)


def sample(variant: str, folder: Path, sizes: Sizes) -> Run:
    """Guided trailing DDIM, from noise to latents, as StableDiffusionPipeline does it."""
    import torch
    from diffusers import DDIMScheduler
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    network = _read(variant, folder).eval()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(sizes.steps)
    prompts = torch.from_numpy(sd_shaped.contexts(sizes.images))
    contexts = torch.cat([0 * prompts, prompts])

    @torch.no_grad()
    def run() -> None:
        x = torch.randn(sizes.images, 4, sizes.size, sizes.size)
        for t in scheduler.timesteps:
            both = _laid_out(variant, torch.cat([x, x]))
            uncond, cond = network(both, t, contexts).sample.chunk(2)
            guided = uncond + sd_shaped.GUIDANCE * (cond - uncond)
            guided = rescale_noise_cfg(guided, cond, sd_shaped.RESCALE)
            x = scheduler.step(guided, t, x).prev_sample

    return run


def train(variant: str, folder: Path, sizes: Sizes) -> Run:
    """One step: loss, gradient, clipping, AdamW and the average."""
    import torch
    from diffusers import DDIMScheduler

    network = _read(variant, folder).train()
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    weights = list(network.parameters())
    average = [x.detach().clone() for x in weights]
    optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.01, foreach=True)
    latents, _, _, contexts = _inputs(variant, sizes)

    def run() -> None:
        noise = torch.randn_like(latents)
        timestep = torch.randint(sd_shaped.NUM_STEPS, (sizes.batch,))
        x_t = _laid_out(variant, scheduler.add_noise(latents, noise, timestep))
        target = scheduler.get_velocity(latents, noise, timestep)
        output = network(x_t, timestep, contexts).sample
        torch.nn.functional.mse_loss(output, target).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - 0.9999)

    return run


def _read(variant: str, folder: Path) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    network: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
    if variant != "eager":
        network = network.to(memory_format=torch.channels_last)
    return torch.compile(network) if variant == "compiled" else network


def _inputs(variant: str, sizes: Sizes) -> tuple[Any, ...]:
    import torch

    latents, noise, timestep, contexts = map(torch.from_numpy, sd_shaped.inputs(sizes))
    pictures = [_laid_out(variant, x.movedim(3, 1)) for x in (latents, noise)]
    return *pictures, timestep, contexts


def _laid_out(variant: str, x: Any) -> Any:
    import torch

    eager = variant == "eager"
    return x.contiguous(memory_format=torch.contiguous_format if eager else torch.channels_last)
