"""Samples depend on seed, label and number, and on nothing else."""

import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax import parallel, preemption, samplers, signal_leak, timesteps
from zsnr_jax.errors import Preempted
from zsnr_jax.generate import Generator, Sampling, spread_labels, to_uint8
from zsnr_jax.guidance import guide_network
from zsnr_jax.predictions import StatefulDenoise, make_denoise
from zsnr_jax.process import DiffusionProcess

PROCESS = DiffusionProcess()
LEVELS = timesteps.make_timesteps("trailing", 1000, 4)


def _network(params, x_t, timestep, label):
    """Predicts v as if the data of label l were all l / 10; the null label is 9."""
    del timestep
    return 0.2 * x_t - params * label[:, None, None, None].astype(jnp.float32) / 10


def _guided(scale: float) -> Any:
    def guide(network: Any, condition: Any, negative: Any) -> Any:
        pair = guide_network(network, condition, negative, scale)
        return StatefulDenoise.of(make_denoise(pair, PROCESS.noise_schedule, "v"))

    return guide


def _generator(
    batch_size: int,
    eta: float = 0.0,
    scale: float = 3.0,
    seed: int = 0,
    process: DiffusionProcess = PROCESS,
    leak: Any = None,
) -> Generator:
    sampler = samplers.ddim(eta)
    path = samplers.coefficients(sampler, process.noise_schedule, LEVELS)
    return Generator(
        _network,
        process,
        Sampling(sampler, path, _guided(scale)),
        negative=9,
        shape=(4, 4, 1),
        batch_size=batch_size,
        seed=seed,
        placement=parallel.make_placement("pmap"),
        leak=leak,
    )


LABELS = np.array([0, 1, 2, 0, 1, 2, 0])


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("guided", [False, True])
def test_the_batch_a_sample_is_drawn_in_does_not_matter(eta: float, guided: bool) -> None:
    whole = _generator(8, eta)(np.float32(1), LABELS, guided)
    parts = _generator(2, eta)(np.float32(1), LABELS, guided)
    assert whole.shape == (7, 4, 4, 1)
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)
    assert len(np.unique(whole[:, 0, 0, 0])) == 7


def test_a_signal_ends_it_between_batches_but_never_before_the_first(monkeypatch) -> None:
    monkeypatch.setattr(preemption._Notice, "received", signal.SIGTERM)
    assert len(_generator(8)(np.float32(1), LABELS)) == 7  # one batch, which training draws too
    batches = _generator(4).batches(np.float32(1), LABELS)
    assert len(next(batches)) == 4
    with pytest.raises(Preempted, match="SIGTERM while sampling"):
        next(batches)


def test_guidance_moves_the_samples_and_scale_1_does_not() -> None:
    plain = _generator(8)(np.float32(1), LABELS)
    at_1 = _generator(8, scale=1.0)(np.float32(1), LABELS, guided=True)
    at_3 = _generator(8, scale=3.0)(np.float32(1), LABELS, guided=True)
    np.testing.assert_allclose(plain, at_1, rtol=1e-5, atol=1e-6)
    assert np.all(at_3 < plain)  # away from label 9, the brightest


def test_another_seed_draws_other_samples() -> None:
    first, second = (_generator(8, seed=seed)(np.float32(1), LABELS) for seed in (0, 1))
    assert np.all(first != second)


def test_a_leak_moves_the_start_of_a_flawed_process_alone_by_label() -> None:
    brightness = np.array([0.8, -0.4], np.float32)
    images = np.broadcast_to(brightness[:, None, None, None, None], (2, 3, 4, 4, 1))
    leaks = [signal_leak.fit(of_label, 2) for of_label in images]
    leak = jax.tree.map(lambda *of_labels: np.stack(of_labels), *leaks)
    labels, index = jnp.array([1, 0, 1]), jnp.arange(3)
    noise = _generator(2).start(labels, index)
    np.testing.assert_array_equal(_generator(2, leak=leak).start(labels, index), noise)
    flawed = DiffusionProcess(zero_terminal_snr=False)
    alpha, sigma = (side[1000] for side in flawed.noise_schedule)
    moved = _generator(2, process=flawed, leak=leak).start(labels, index)
    of_label = brightness[labels][:, None, None, None]
    np.testing.assert_allclose(moved, alpha * of_label + sigma * noise, rtol=1e-5, atol=1e-6)


def test_labels_are_spread_in_the_datas_proportions() -> None:
    data_labels = np.array([2, 0, 0, 1] * 25)
    spread = spread_labels(data_labels, 12)
    np.testing.assert_array_equal(spread, [0] * 6 + [1] * 3 + [2] * 3)
    np.testing.assert_array_equal(spread_labels(np.arange(3), 5), [0, 0, 1, 1, 2])


def test_pictures_are_clipped_to_8_bits() -> None:
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 128, 255, 255])
