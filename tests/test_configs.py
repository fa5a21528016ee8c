"""Every recipe and variant makes a run; every wrong value is told in one sentence."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from zsnr_jax import build
from zsnr_jax import config as config_lib
from zsnr_jax.errors import UsageError
from zsnr_jax.files import flatten

CONFIGS = Path(__file__).parents[1] / "configs"
# What TFDS says of the sets that are not here: classes and pixels per side.
ELSEWHERE = {"cifar10": (10, 32), "imagenet_resized/64x64": (1000, 64)}


def recipe(name: str, variants: str = "") -> config_lib.Config:
    """configs/NAME.py:VARIANTS."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variants)


NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
OF_LATENTS = [name for name in NAMES if recipe(name).pretrained]
OF_IMAGES = [
    (name, variants)
    for name in NAMES
    if name not in OF_LATENTS
    for variants in ("", "flawed", "smoke", "flawed,smoke")
] + [("brightness", "16"), ("brightness", "64"), ("brightness", "flawed,64")]


@pytest.mark.parametrize("name, variants", OF_IMAGES)
def test_every_recipe_makes_a_process_a_sampler_and_a_network(name: str, variants: str) -> None:
    config = recipe(name, variants)
    config_lib.validate(config)
    process = build.build_process(config)
    build.build_sampling(config, process)
    num_classes, size = ELSEWHERE.get(config.dataset.name) or (
        6, int(config.dataset.name.removeprefix("brightness/"))
    )  # fmt: skip
    model = build.build_model(config, num_classes, size)
    rows = jnp.zeros(2, jnp.int32)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    output, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images, rows, rows)
    assert output.shape == images.shape
    assert process.zero_terminal_snr is ("flawed" not in variants)


LATENT_VARIANTS = {
    "sd21_zsnr": ("", "smoke"),
    "sd21_reference": ("", "smoke"),
    "sd_tiny": ("", "smoke", "fsdp", "reference", "reference,smoke,fsdp"),
}


@pytest.mark.parametrize("name", OF_LATENTS)
def test_every_recipe_of_latents_is_made_without_weights(name: str, tmp_path: Path) -> None:
    for variants in LATENT_VARIANTS[name]:
        config = recipe(name, variants)
        config.pretrained = str(tmp_path / "nowhere")  # its networks are then 2.1's
        config.dataset.image_size = config.dataset.image_size or 64
        run = build.plan(config)
        assert isinstance(run, build.LatentRun)
        side = config.dataset.image_size // 8
        assert run.latent_shape == (side, side, 4)
        assert run.process.zero_terminal_snr is ("reference" not in f"{name} {variants}")
        path, fixed = run.sampling.coefficients, run.process.zero_terminal_snr
        # Trailing steps from T to clean data; or leading ones, as Stable Diffusion has them.
        steps = len(path.level)
        first = 1000 if fixed else 1000 - 1000 // steps + 2
        assert (path.level[0], path.level_next[-1]) == (first, 0 if fixed else 1)
        dtype = "float32" if name == "sd_tiny" or "smoke" in variants else "bfloat16"
        assert run.model.dtype == run.text_encoder.dtype == jnp.dtype(dtype)
        assert run.vae.dtype == jnp.float32  # always: its pictures are measured
        mode = "fsdp" if name != "sd_tiny" or "fsdp" in variants else "pmap"
        assert run.settings["parallel"] == {"mode": mode, "mesh": [], "heartbeat": 100}
        prompts = run.settings["evaluation"]["prompts"]
        assert not prompts or (CONFIGS.parent / prompts).is_file()


def test_the_full_recipe_is_the_papers() -> None:
    """arXiv 2305.08891, section 5."""
    settings = flatten(config_lib.to_json(recipe("sd21_zsnr")))
    paper = {
        "dataset.image_size": 512,
        "dataset.batch_size": 2048,
        "optimizer.learning_rate": 1e-4,
        "ema.decay": 0.9999,
        "train.num_steps": 50_000,
        "schedule.name": "scaled_linear",
        "schedule.num_steps": 1000,
        "schedule.zero_terminal_snr": True,
        "prediction": "v",
        "sampler.name": "ddim",
        "sampler.spacing": "trailing",
        "sampler.steps_offset": 0,
        "sampler.final_level": 0,
        "sampler.num_steps": 50,
        "sampler.guidance": "rescaled",
        "sampler.guidance_scale": 7.5,
        "sampler.guidance_rescale": 0.7,
        "evaluation.num_samples": 10_000,
    }
    assert {name: settings[name] for name in paper} == paper


def test_the_control_differs_by_the_four_fixes_alone() -> None:
    fixed, control = (
        flatten(config_lib.to_json(recipe(name))) for name in ("sd21_zsnr", "sd21_reference")
    )
    assert {name: control[name] for name in fixed if fixed[name] != control[name]} == UNDONE


def test_a_smoke_run_is_small_and_keeps_the_recipe() -> None:
    """What a smoke run of latents changes is how much, and how long; never what is learnt."""
    for name in OF_LATENTS:
        full, smoke = (
            flatten(config_lib.to_json(recipe(name, variants))) for variants in ("", "smoke")
        )
        changed = {setting for setting in full if full[setting] != smoke[setting]}
        assert not any(
            setting.startswith(("schedule", "prediction", "loss", "sampler.s", "sampler.guidance"))
            for setting in changed
        )
        assert (smoke["train.num_steps"], smoke["dataset.batch_size"]) == (20, 16)
        assert smoke["evaluation.num_samples"] == smoke["evaluation.batch_size"] == 16
        assert smoke["sampler.num_steps"] == 5


UNDONE = {
    "schedule.zero_terminal_snr": False,
    "prediction": "eps",
    "loss.weight": "snr",
    "sampler.spacing": "leading",
    "sampler.steps_offset": 1,
    "sampler.final_level": 1,
    "sampler.guidance_rescale": 0.0,
}


def test_flawed_undoes_the_four_fixes_and_nothing_else() -> None:
    fixed, flawed = (
        flatten(config_lib.to_json(recipe("brightness", variants))) for variants in ("", "flawed")
    )
    changed = {name: flawed[name] for name in fixed if fixed[name] != flawed[name]}
    assert changed == UNDONE


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(
        UsageError, match="'flaw' is unknown: this config has adamw, flawed, smoke, 16"
    ):
        recipe("brightness", "flaw")


@pytest.mark.parametrize("name", ["model.patch_size", "model.head_dim", "model.num_res_blocks"])
def test_a_size_of_zero_is_refused(name: str) -> None:
    config = recipe("brightness")
    config.update_from_flattened_dict({name: 0})
    with pytest.raises(UsageError, match=f"{name} must be at least 1"):
        config_lib.validate(config)


def test_a_network_without_channels_is_refused() -> None:
    config = recipe("brightness")
    config.model.channels = config.model.attention = ()
    with pytest.raises(UsageError, match="model.channels"):
        config_lib.validate(config)


def test_settings_are_locked() -> None:
    with pytest.raises(AttributeError):
        recipe("brightness").dataset.nmae = "digits"


WRONG = {
    "prediction": ("eps", "pure noise"),
    "schedule.name": ("linaer", "linear, cosine, scaled_linear"),
    "sampler.num_steps": (0, "from 1 to T = 1000, and it is 0"),
    "sampler.spacing": ("trailling", "leading, linspace, trailing"),
    "sampler.name": ("dimm", "choose one of ddim"),
    "sampler.eta": (1.5, r"eta must be in \[0, 1\]"),
    "sampler.steps_offset": (
        1,
        "steps_offset=1 belongs to leading spacing: set it to 0 for trailing",
    ),
    "sampler.start": ("leak", "'leak' is unknown: choose noise or signal_leak"),
    "sampler.guidance": ("apg", "'apg' is unknown: choose rescaled or projected"),
    "sampler.guidance_interval": ((800, 200), r"\(lowest, highest\) within 1..1000"),
    "sampler.negative_label": (9, "sampler.negative_label must be from 0 to .*and it is 9"),
    "sampler.guidance_scale": (float("nan"), "sampler.guidance_scale must be a finite number"),
    "sampler.projected.momentum": (0.5, "above -1 and at most 0, and it is 0.5"),
    "sampler.projected.norm_threshold": (-1.0, "must not be below 0"),
    "sampler.projected.eta": (1.5, r"sampler.projected.eta must be in \[0, 1\]"),
    "sampler.leak_frequencies": (33, "from 0 to 32, the images' size, and it is 33"),
    "sampler.final_level": (20, "above final_level = 20"),
    "sampler.guidance_rescale": (1.1, r"sampler.guidance_rescale must be in \[0, 1\]"),
    "loss.weight": ("min_snr", "snr_plus_one, snr"),
    "loss.gamma": (5.0, "snr_plus_one has no option gamma"),
    "loss.offset_noise": (-0.1, "loss.offset_noise must not be below 0"),
    "loss.label_dropout": (-0.1, r"loss.label_dropout must be in \[0, 1\]"),
    "model.dtype": ("float16", "float32 or bfloat16"),
    "model.attention": ((True,), "one entry for each"),
    "model.channels": ((12, 96), "8 must divide"),
    "model.patch_size": (3, "must divide the size"),
    "model.label_scale": (-1.0, "must not be below 0"),
    "optimizer.name": ("adam", "'adam' is unknown: choose adamw or muon"),
    "optimizer.decay": ("linear", "cosine or constant"),
    "optimizer.warmup_steps": (10**6, "optimizer.warmup_steps"),
    "train.num_steps": (0, "at least 1"),
    "model.dropout": (1.0, r"model.dropout must be in \[0, 1\)"),
    "dataset.image_size": (-8, "must not be below 0"),
    "seed": (-1, "seed must be from 0"),
    "train.steps_per_dispatch": (7, "multiple of train.steps_per_dispatch=7"),
    "dataset.name": ("brightnes/32", "brightness/16"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_in_one_sentence(name: str) -> None:
    value, message = WRONG[name]
    config = recipe("brightness")
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UsageError, match=message) as caught:
        build.build(config)
    assert "\n" not in str(caught.value)


def test_the_largest_number_of_sample_steps_is_T() -> None:
    config = recipe("brightness")
    config.sampler.num_steps = 1001
    with pytest.raises(UsageError, match="from 1 to T = 1000, and it is 1001"):
        build.build(config)


def test_another_run_is_told_from_the_same_one() -> None:
    saved = config_lib.to_json(recipe("brightness"))
    same = recipe("brightness")
    same.sampler.num_steps = 10
    same.evaluation.num_samples = 8
    config_lib.require_same_run(saved, config_lib.to_json(same), "DIR")
    same.seed = 1
    with pytest.raises(UsageError, match="DIR holds a different run, with seed=0 .* has 1"):
        config_lib.require_same_run(saved, config_lib.to_json(same), "DIR")


def test_a_checkpoint_says_nothing_of_what_a_fresh_network_alone_depends_on() -> None:
    config = recipe("brightness", "smoke")
    record = build.build(config).record
    assert record["model"]["patch_size"] == 2
    config.model.label_scale = 3.0
    assert build.build(config).record == record  # as those that older versions wrote


def test_a_run_older_than_a_setting_had_its_default() -> None:
    saved = config_lib.to_json(recipe("brightness"))
    del saved["loss"]["offset_noise"]
    current = recipe("brightness")
    config_lib.require_same_run(saved, config_lib.to_json(current), "DIR")
    current.loss.offset_noise = 0.1
    with pytest.raises(UsageError, match="loss.offset_noise=0.0 .* has 0.1"):
        config_lib.require_same_run(saved, config_lib.to_json(current), "DIR")
