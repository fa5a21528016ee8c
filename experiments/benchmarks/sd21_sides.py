"""What the processes of `sd21` make ready: either library, on the device that it finds."""
# pyright: reportMissingImports=false

import functools
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.sd_shaped import Setting, Sizes
from experiments.benchmarks.turns import Make, OnDevice, peak_resident


class Variant(NamedTuple):
    """A library, and what it is told."""

    torch: bool
    remat: bool


VARIANTS = {
    "ours": Variant(torch=False, remat=False),
    "ours_remat": Variant(torch=False, remat=True),
    "torch": Variant(torch=True, remat=False),
    "torch_remat": Variant(torch=True, remat=True),
}


def installed() -> bool:
    """Whether torch and diffusers are there."""
    return all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))


def prepare(folder: Path, config: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Write the weights, and tell what times are divided by.

    In a process of its own: whoever asks JAX about a GPU holds some of its memory until it ends.
    """
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks import flops, sd_shaped
    from zsnr_jax import chips, diffusers_io

    _share_the_device()  # whose memory is not wanted here
    weights = sd_shaped.write_weights(folder / "unet", dict(config))
    # In float32, whose attention is all products, and never a kernel of cuDNN's, which has none.
    model = diffusers_io.make_model("unet", config)
    params = diffusers_io.parameter_shapes("unet", model)
    latents, _, timestep, contexts = sd_shaped.inputs(sizes._replace(batch=1))
    network = lambda params, *inputs: jnp.asarray(model.apply({"params": params}, *inputs))  # noqa: E731
    device = jax.local_devices()[0]
    chip = chips.of_kind(device.device_kind)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return {
        "weights": weights,
        "forward_flops": flops.count(network, params, latents, timestep, contexts).flops,
        "device": {"ours": device.device_kind, "torch": _torch_device()},
        "peak_flops": chip and chip.peak_flops,
        "memory_gigabytes": limit and limit / 1e9,
    }


def make(
    folder: Path, sizes: Sizes, dtype: str, task: str, variant: str, batch: int, alone: bool
) -> Make:
    """What a process of a variant is to make ready."""
    sizes = sizes._replace(batch=batch, images=batch)
    setting = Setting(dtype, remat=VARIANTS[variant].remat)
    if VARIANTS[variant].torch:
        return functools.partial(theirs, task, folder, sizes, setting)
    return functools.partial(ours, task, folder, sizes, setting, alone)


def ours(task: str, folder: Path, sizes: Sizes, setting: Setting, alone: bool = False) -> OnDevice:
    """Our side. It takes the device's memory at once if alone, or else as it needs it."""
    os.environ["XLA_CLIENT_MEM_FRACTION"] = "0.95"  # 0.75, unless told; torch takes all there is
    if not alone:
        _share_the_device()
    import jax

    from experiments.benchmarks import in_jax

    run = getattr(in_jax, task)(folder, sizes, setting)

    def peak() -> int:
        stats = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else peak_resident()

    return OnDevice(run, peak)


def theirs(
    task: str, folder: Path, sizes: Sizes, setting: Setting, variant: str = "compiled_channels_last"
) -> OnDevice:
    """torch's side. What it compiles, it keeps where only this run of the benchmark finds it."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    import torch

    from experiments.benchmarks import in_torch

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True  # try cuDNN's convolutions, and take the fastest
    gpu = torch.cuda.is_available()
    setting = setting._replace(device="cuda" if gpu else "cpu")
    program = getattr(in_torch, task)(variant, folder, sizes, setting)

    def run() -> None:
        program()
        if gpu:
            torch.cuda.synchronize()

    return OnDevice(run, torch.cuda.max_memory_allocated if gpu else peak_resident)


def _share_the_device() -> None:
    """Before JAX looks for devices, which is when it reads this."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def _torch_device() -> str | None:
    if not installed():
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
