"""torch's side of the benchmarks: diffusers, as its users write it, in the variants they choose."""
# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

from experiments.benchmarks import sd_shaped
from experiments.benchmarks.sd_shaped import Setting, Sizes
from experiments.benchmarks.turns import Run

VARIANTS = ("compiled", "compiled_channels_last", "channels_last", "eager")
PLAIN = Setting()


def forward(variant: str, folder: Path, sizes: Sizes, setting: Setting = PLAIN) -> Run:
    """One call of the network."""
    import torch

    network = _read(variant, folder, setting, setting.dtype).eval()
    latents, _, timestep, contexts = _inputs(variant, sizes, setting)
    dtype = network.dtype
    return torch.no_grad()(lambda: network(latents.to(dtype), timestep, contexts.to(dtype)).sample)


def sample(variant: str, folder: Path, sizes: Sizes, setting: Setting = PLAIN) -> Run:
    """Guided trailing DDIM, from noise to latents, as StableDiffusionPipeline does it."""
    import torch
    from diffusers import DDIMScheduler
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    network = _read(variant, folder, setting, setting.dtype).eval()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(sizes.steps)
    # The scheduler's tables lie on the host: asked by a device's number, it would wait for it.
    told = scheduler.timesteps.to(setting.device)
    like = {"device": setting.device, "dtype": network.dtype}
    prompts = torch.from_numpy(sd_shaped.contexts(sizes.images, sizes.width)).to(**like)
    contexts = torch.cat([0 * prompts, prompts])

    @torch.no_grad()
    def run() -> None:
        x = torch.randn(sizes.images, 4, sizes.size, sizes.size, **like)
        for t, t_told in zip(scheduler.timesteps, told, strict=True):
            both = _laid_out(variant, torch.cat([x, x]))
            uncond, cond = network(both, t_told, contexts).sample.chunk(2)
            guided = uncond + sd_shaped.GUIDANCE * (cond - uncond)
            guided = rescale_noise_cfg(guided, cond, sd_shaped.RESCALE)
            x = scheduler.step(guided, t, x).prev_sample

    return run


def train(variant: str, folder: Path, sizes: Sizes, setting: Setting = PLAIN) -> Run:
    """One step: loss, gradient, clipping, AdamW and the average."""
    import torch
    from diffusers import DDIMScheduler

    network = _read(variant, folder, setting).train()
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    weights = list(network.parameters())
    average = [x.detach().clone() for x in weights]
    optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.01, fused=True)  # the fastest
    latents, _, _, contexts = _inputs(variant, sizes, setting)
    dtype = getattr(torch, setting.dtype)

    def run() -> None:
        noise = torch.randn_like(latents)
        timestep = torch.randint(sd_shaped.NUM_STEPS, (sizes.batch,), device=setting.device)
        x_t = _laid_out(variant, scheduler.add_noise(latents, noise, timestep))
        target = scheduler.get_velocity(latents, noise, timestep)
        with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32):
            output = network(x_t, timestep, contexts).sample
        torch.nn.functional.mse_loss(output.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - 0.9999)

    return run


def _read(variant: str, folder: Path, setting: Setting, weights: str = "float32") -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    network: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
    network = network.to(setting.device, getattr(torch, weights))
    network = network.to(memory_format=_layout(variant))
    if setting.remat:
        network.enable_gradient_checkpointing()
    return torch.compile(network) if variant.startswith("compiled") else network


def _inputs(variant: str, sizes: Sizes, setting: Setting) -> tuple[Any, ...]:
    import torch

    drawn = (torch.from_numpy(x).to(setting.device) for x in sd_shaped.inputs(sizes))
    latents, noise, timestep, contexts = drawn
    pictures = [_laid_out(variant, x.movedim(3, 1)) for x in (latents, noise)]
    return *pictures, timestep, contexts


def _laid_out(variant: str, x: Any) -> Any:
    return x.contiguous(memory_format=_layout(variant))


def _layout(variant: str) -> Any:
    import torch

    last = variant.endswith("channels_last")
    return torch.channels_last if last else torch.contiguous_format
