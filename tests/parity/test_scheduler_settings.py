"""Scheduler settings as diffusers understands them, live. Skipped where it is not installed."""
# pyright: reportMissingImports=false

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers

from zsnr_jax import scheduler_config, timesteps

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CASES = [
    ("PNDMScheduler", STABLE | {"steps_offset": 1, "skip_prk_steps": True}),
    ("DDIMScheduler", {}),
    ("DDIMScheduler", STABLE | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
                                "prediction_type": "v_prediction"}),
    ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}),
    ("EulerDiscreteScheduler", STABLE),
    ("EulerAncestralDiscreteScheduler", STABLE | {"timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", STABLE),
]  # fmt: skip
NAMES = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]


@pytest.mark.parametrize("name, settings", CASES, ids=NAMES)
def test_a_schedulers_settings_mean_what_it_does(name, settings):
    scheduler = getattr(diffusers, name)(**settings)
    config = {"_class_name": name, **settings}  # what is absent has the class's default
    process, sampler = scheduler_config.read(config, "there")
    theirs = scheduler.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(process.noise_schedule.alpha[1:] ** 2, theirs, atol=1e-5)
    scheduler.set_timesteps(10)
    visited = np.unique(scheduler.timesteps.round().int().numpy())[::-1]  # PNDM visits one twice
    levels = timesteps.make_timesteps(sampler.spacing, 1000, 10, steps_offset=sampler.steps_offset)
    if name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        np.testing.assert_allclose(visited, levels - 1, atol=1)  # of floats
    elif name == "DPMSolverMultistepScheduler":
        assert visited[0] == levels[0] - 1
    else:
        np.testing.assert_array_equal(visited, levels - 1)
    if hasattr(scheduler, "final_alpha_cumprod"):
        expected = theirs[0] if sampler.final_level else 1.0
        assert float(scheduler.final_alpha_cumprod) == pytest.approx(expected)


def test_what_is_written_is_read_by_diffusers_without_a_word_lost():
    process, sampler = scheduler_config.read(
        {"_class_name": "DDIMScheduler"} | CASES[2][1], "there"
    )
    written = scheduler_config.write(process, sampler, diffusers.__version__)
    scheduler = diffusers.DDIMScheduler.from_config(written)
    for key in written.keys() - {"_class_name", "_diffusers_version"}:
        assert scheduler.config[key] == written[key], key
    assert float(scheduler.alphas_cumprod[-1]) == 0
