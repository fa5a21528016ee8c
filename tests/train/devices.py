"""Not a test: train and sample a tiny network on D devices and write what came out.

python tests/train/devices.py D OUT.npz PRECISION MODE MESH ACCUMULATE, with D forced CPU devices in
XLA_FLAGS; MESH as 2x4, or as - for none.
"""

import functools
import sys

import jax
import numpy as np

if "float64" in sys.argv:
    jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp

from zsnr_jax import guidance, parallel, samplers, timesteps
from zsnr_jax.apg import make_apg_denoise
from zsnr_jax.generate import Generator, Sampling
from zsnr_jax.models.unet import UNet
from zsnr_jax.predictions import make_denoise
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train.muon import make_muon
from zsnr_jax.train.optimizer import make_optimizer
from zsnr_jax.train.state import init_state
from zsnr_jax.train.step import Objective, make_probe, make_train_step, repeat_step

BATCH, STEPS, SIZE = 16, 10, 8


def run(
    num_devices: int, dtype: type, mode: str, mesh: tuple[int, ...], accumulate: int
) -> dict[str, np.ndarray]:
    """Ten steps and a batch of samples: parameters, losses, gradient norms and samples."""
    assert jax.device_count() == num_devices
    placement = parallel.make_placement(mode, mesh)
    model = UNet(3, (16,), 1, (True,), head_dim=8, dropout=0.1, dtype=dtype)
    process = DiffusionProcess()
    image = jnp.zeros((1, SIZE, SIZE, 1), dtype)
    zeros = jnp.zeros(1, jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), image, zeros, zeros)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    # Sampled instead of what is trained, which differs by rounding; moved off its zeros.
    noisy = jax.tree.map(
        lambda p: p + np.sin(np.arange(p.size)).astype(dtype).reshape(p.shape) / 9, params
    )
    noisy = jax.device_get(noisy)
    make = make_optimizer if dtype == np.float64 else make_muon  # each in one precision
    optimizer = make(lambda step: 1e-3, 0.9, 0.99, 0.01, 1.0)
    objective = Objective(model.apply, process, model.null_label)
    step = make_train_step(
        objective, optimizer, 0.9, 0, placement.axis_name, accumulate, placement.gather_inside,
        placement.scatter_inside,
    )  # fmt: skip
    place = placement.step(repeat_step(step, 1))
    probe = make_probe(objective, 0, placement.axis_name, accumulate, placement.gather_inside)
    probe = placement.probe(probe)
    rng = np.random.default_rng(0)
    batches = {
        "image": rng.uniform(-1, 1, (STEPS, BATCH, SIZE, SIZE, 1)).astype(dtype),
        "label": rng.integers(0, 3, (STEPS, BATCH)).astype(np.int32),
        "index": np.tile(np.arange(BATCH, dtype=np.int32), (STEPS, 1)),
    }
    # Steps one by one: state goes back and forth between calls, as in a run.
    state, history = placement.put(init_state(params, optimizer)), []
    for i in range(STEPS):
        state, metrics = place(state, {k: v[i : i + 1] for k, v in batches.items()})
        history.append(jax.device_get(metrics))
    sliced = [x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated]
    schedule, sampler = process.noise_schedule, samplers.ddim(1.0)
    levels = timesteps.make_timesteps("trailing", 1000, 4)
    path = samplers.coefficients(sampler, schedule, levels)

    def guide(network, condition, negative):
        """Both kinds, each at some levels: a memory, and a choice made on the device."""
        projected = make_apg_denoise(network, schedule, "v", condition, negative, 3.0)
        rescaled = guidance.guide_network(network, condition, negative, 3.0, 0.7)
        return guidance.guide_within(projected, make_denoise(rescaled, schedule, "v"), 600, 1000)

    generate = functools.partial(
        Generator(
            model.apply, process, Sampling(sampler, path, guide), negative=model.null_label,
            shape=(SIZE, SIZE, 1), batch_size=5, seed=0, placement=placement,
        ),
        noisy,
        np.arange(11) % 3,
    )  # fmt: skip
    leaves = jax.tree.leaves(jax.device_get((state.params, state.ema_params)))
    return {
        "params": np.concatenate([np.ravel(leaf) for leaf in leaves]),
        "loss": np.concatenate([m["loss"] for m in history]),
        "grad_norm": np.concatenate([m["grad_norm"] for m in history]),
        "level_count": np.concatenate([m["level_count"] for m in history]),
        "at_T": np.array(probe(state, {k: v[0] for k, v in batches.items()})),
        "values_sliced": np.array(sum(x.size for x in sliced)),
        "samples": generate(),
        "guided": generate(guided=True),
    }


if __name__ == "__main__":
    devices, out, precision, mode, mesh, accumulate = sys.argv[1:]
    sizes = () if mesh == "-" else tuple(map(int, mesh.split("x")))
    found = run(int(devices), np.dtype(precision).type, mode, sizes, int(accumulate))
    with open(out, "wb") as file:
        np.savez(file, **found)  # pyright: ignore[reportArgumentType]
