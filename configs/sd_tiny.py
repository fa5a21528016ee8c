"""Stable Diffusion in small: everything that fine-tuning it takes, in minutes on two CPU cores.

A folder of random weights in diffusers' format, made for eps-prediction on the original schedule; a
generated set of captioned pictures; and the paper's recipe on them, from the encoding to a folder
that torch users load. The weights being random, an autoencoder's included, pictures show
that it runs, and not what the fixes do: that is what `configs/brightness.py` shows.

  python -m zsnr_jax.random_folder --out=/tmp/zsnr_jax/sd/tiny
  python -m zsnr_jax.data.scenes --out=/tmp/zsnr_jax/sd/scenes --num=512 --size=32
  python -m zsnr_jax.data.encode --pretrained=/tmp/zsnr_jax/sd/tiny --source=/tmp/zsnr_jax/sd/scenes --out=/tmp/zsnr_jax/sd/latents --image_size=32
  python -m zsnr_jax.main --config=configs/sd_tiny.py --workdir=/tmp/zsnr_jax/sd/run
  python -m zsnr_jax.main --config=configs/sd_tiny.py --workdir=/tmp/zsnr_jax/sd/run --mode=export

Expect less than ten minutes in all: with XLA_FLAGS=--xla_force_host_platform_device_count=8 for the
training, 9 min 31 s by pmap, and of the training and its evaluation by `:fsdp` 6 min 35 s, on 2
busy cores of an Intel Xeon. The two log the same losses to 2e-7, and their parameters after 200
steps differ by 3e-5 of their norm, as Adam lets rounding grow in float32; either's checkpoints are
exported, and gone on from, in the other's mode.

Variants (after a colon, commas between):
  reference  the control: no fix, sampled as Stable Diffusion is
  fsdp       the state in slices over all devices; checkpoints are the same
  smoke      a few steps
"""  # noqa: E501

from zsnr_jax import config as config_lib


def get_config(variants: str = "") -> config_lib.Config:
    """The recipe; `variants` is what follows the colon."""
    config = config_lib.default_config()
    config.pretrained = "/tmp/zsnr_jax/sd/tiny"
    config.dataset.latents = "/tmp/zsnr_jax/sd/latents"
    config.dataset.batch_size = 32
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.ema.decay = 0.99
    config.train.num_steps = 200
    config.train.log_every = 20
    config.train.sample_every = 100
    config.train.save_every = 100
    config.sampler.num_steps = 25
    config.sampler.guidance_scale = 7.5
    config.evaluation.num_samples = 64
    config.evaluation.batch_size = 32
    config.evaluation.prompts = "configs/scenes_prompts.txt"
    return config_lib.with_variants(
        config,
        variants,
        {
            "reference": config_lib.flawed,
            "fsdp": fsdp,
            "smoke": config_lib.smoke_latents,
        },
    )


def fsdp(config: config_lib.Config) -> None:
    """The state in slices over all devices."""
    config.parallel.mode = "fsdp"
