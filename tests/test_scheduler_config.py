"""What scheduler settings mean, and those that are refused. Beside diffusers: tests/parity."""

import pytest

from zsnr_jax import scheduler_config
from zsnr_jax.errors import UsageError
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.scheduler_config import SamplerSettings

# As in the folder of Stable Diffusion 2.1-base, and in that of the paper's authors' model.
BASE = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
AUTHORS = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.23.1", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": True,
    "steps_offset": 1, "trained_betas": None, "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}  # fmt: skip


def test_the_base_models_settings():
    process, sampler = scheduler_config.read(BASE, "there")
    assert process == DiffusionProcess("scaled_linear", 1000, False, "eps", 0.00085, 0.012)
    assert sampler == SamplerSettings("leading", steps_offset=1, final_level=1)


def test_the_authors_settings_are_read_and_written_word_for_word():
    process, sampler = scheduler_config.read(AUTHORS, "there")
    assert process == DiffusionProcess("scaled_linear", 1000, True, "v", 0.00085, 0.012)
    assert sampler == SamplerSettings("trailing", steps_offset=1, final_level=0)
    written = scheduler_config.write(process, sampler, "0.23.1")
    assert written == AUTHORS and list(written) == list(AUTHORS)
    defaults = scheduler_config.write(DiffusionProcess(), sampler, "0.23.1")
    assert defaults == AUTHORS  # the process's own default range of betas is written out


def test_the_other_name_of_the_rescale_is_read():
    other = {k: v for k, v in AUTHORS.items() if k != "rescale_betas_zero_snr"}
    process, _ = scheduler_config.read(other | {"rescale_zero_terminal_snr": True}, "there")
    assert process.zero_terminal_snr
    assert not scheduler_config.read(other, "there")[0].zero_terminal_snr


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "UniPCMultistepScheduler"}, "is of a UniPCMultistepScheduler"),
        ({"_class_name": None}, "is of a None"),
        ({"trained_betas": [0.1]}, "trained_betas, which are not supported"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"prediction_type": "flow"}, "prediction_type='flow'"),
        ({"timestep_spacing": "karras"}, "timestep_spacing='karras'"),
        ({"rescale_zero_terminal_snr": False}, "two names of one setting"),
        ({"prediction_type": "epsilon"}, "eps-prediction cannot"),
    ],
)
def test_what_has_no_counterpart_is_refused_in_a_sentence(change, message):
    with pytest.raises(UsageError, match=message) as caught:
        scheduler_config.read(AUTHORS | change, "there")
    assert "\n" not in str(caught.value)


def test_levels_that_diffusers_has_no_name_for_are_refused():
    with pytest.raises(UsageError, match="spacing=uniform_logsnr has no name in diffusers"):
        scheduler_config.write(DiffusionProcess(), SamplerSettings("uniform_logsnr", 0, 0), "0")
