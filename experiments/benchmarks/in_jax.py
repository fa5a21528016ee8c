"""Our side of the benchmarks: what a worker makes ready, and then runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import sd_shaped
from experiments.benchmarks.sd_shaped import Setting, Sizes
from experiments.benchmarks.turns import Run
from zsnr_jax import (
    diffusers_io,
    guidance,
    host_memory,
    predictions,
    randomness,
    samplers,
    timesteps,
    xla_options,
)
from zsnr_jax.models.sd_unet import project_context
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train.optimizer import make_optimizer
from zsnr_jax.train.state import Params, init_state
from zsnr_jax.train.step import Objective, make_train_step

PLAIN = Setting()


def forward(folder: Path, sizes: Sizes, setting: Setting = PLAIN) -> Run:
    """One call of the network."""
    network, params = _read(folder, setting, setting.dtype)
    latents, _, timestep, contexts = jax.device_put(sd_shaped.inputs(sizes))
    program = jax.jit(network)
    return lambda: jax.block_until_ready(program(params, latents, timestep, contexts))


def sample(folder: Path, sizes: Sizes, setting: Setting = PLAIN) -> Run:
    """Guided trailing DDIM, from noise to latents."""
    network, params = _read(folder, setting, setting.dtype)
    process, sampler = DiffusionProcess(), samplers.make_sampler("ddim")
    schedule = process.noise_schedule
    levels = timesteps.make_timesteps("trailing", process.num_steps, sizes.steps)
    path = samplers.coefficients(sampler, schedule, levels)
    shape, dtype = (sizes.size, sizes.size, 4), jnp.dtype(setting.dtype)

    @jax.jit
    def program(params: Params, contexts: jax.Array, index: jax.Array) -> jax.Array:
        prompt, none = (project_context(params, text, dtype) for text in (contexts, 0 * contexts))
        guided = guidance.guide_network(
            guidance.sharing_input(lambda *inputs: network(params, *inputs)), prompt, none,
            sd_shaped.GUIDANCE, sd_shaped.RESCALE,
        )  # fmt: skip
        denoise = predictions.make_denoise(guided, schedule, process.prediction)
        noise = randomness.row_normal(jax.random.key(0), 0, index, shape)
        return samplers.integrate(sampler, denoise, noise, path, None, index)

    rows = jax.device_put((sd_shaped.contexts(sizes.images, sizes.width), np.arange(sizes.images)))
    return lambda: jax.block_until_ready(program(params, *rows))


def train(folder: Path, sizes: Sizes, setting: Setting = PLAIN) -> Run:
    """One step: loss, gradient, clipping, AdamW and the average."""
    network, params = _read(folder, setting)
    latents, _, _, contexts = sd_shaped.inputs(sizes)
    batch = {"image": latents, "context": contexts, "index": np.arange(sizes.batch, dtype=np.int32)}
    batch = jax.device_put(batch)

    def without_dropout(*arguments: Any) -> jax.Array:
        return network(*arguments[:-1])

    null = np.zeros(contexts.shape[1:], np.float32)
    objective = Objective(without_dropout, DiffusionProcess(), null, condition="context")
    optimizer = make_optimizer(lambda step: 1e-4, 0.9, 0.999, 0.01, 1.0)
    step = jax.jit(make_train_step(objective, optimizer, 0.9999, seed=0), donate_argnums=0)
    state = init_state(params, optimizer)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def _read(
    folder: Path, setting: Setting, weights: str = "float32"
) -> tuple[Callable[..., jax.Array], Params]:
    host_memory.keep_freed_memory()
    xla_options.tune_for_cpus()
    model, read, *_ = diffusers_io.read_network(
        folder, "unet", dtype=jnp.dtype(setting.dtype), remat=setting.remat
    )

    def network(params: Params, *inputs: jax.Array) -> jax.Array:
        return jnp.asarray(model.apply({"params": params}, *inputs))

    params = jax.tree.map(lambda x: x.astype(weights, copy=False), read)
    return network, jax.device_put(params, may_alias=False)  # a step donates its own
