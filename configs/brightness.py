"""The main job: very dark and very bright images, on two CPU cores, in two minutes.

A class-conditional UNet learns `brightness/32`, pictures whose mean brightness is uniform over
[-1, 1], with the four fixes of arXiv 2305.08891 on Stable Diffusion's schedule.

  python -m zsnr_jax.main --config=configs/brightness.py --workdir=/tmp/zsnr_jax/brightness

Expect brightness to vary 0.972 [0.949, 0.990] times as much as in the data, over three seeds; and
0.491 [0.473, 0.505] times with `flawed`. By `python -m experiments.brightness_recipes`, on 2 cores
of an AMD EPYC.

Variants (after a colon, commas between):
  adamw    a wider network by AdamW alone, in a thousand steps, as most experiments have it
  flawed   the recipe the paper mends: original schedule, eps, leading, no rescale
  smoke    under a minute: a tiny network, to see that everything runs
  16, 64   other image sizes
"""

from zsnr_jax import config as config_lib


def get_config(variants: str = "") -> config_lib.Config:
    """The recipe; `variants` is what follows the colon of --config=configs/brightness.py:..."""
    config = config_lib.default_config()
    config.dataset.name = "brightness/32"
    config.dataset.batch_size = 32
    # Coarse and wide, without attention: what a CPU learns most from in a few minutes.
    config.model.channels = (64, 96)
    config.model.num_res_blocks = 1
    config.model.attention = (False, False)
    config.model.patch_size = 4
    config.model.label_scale = 20.0
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.99
    config.ema.decay = 0.99
    config.train.num_steps = 700
    config.train.log_every = 20
    config.train.save_every = 350
    config.evaluation.batch_size = 64
    return config_lib.with_variants(
        config,
        variants,
        {
            "adamw": adamw,
            "flawed": config_lib.flawed,
            "smoke": config_lib.smoke,
            "16": size_16,
            "64": size_64,
        },
    )


def adamw(config: config_lib.Config) -> None:
    """A wider network, a thousand steps at three fifths of the rate, labels that start short."""
    config.model.channels = (96, 128)
    config.model.label_scale = 1.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.train.num_steps = 1000
    config.train.sample_every = 500
    config.train.save_every = 500


def size_16(config: config_lib.Config) -> None:
    """16 x 16 pixels: the flaw is milder, since q grows with the number of pixels.

    Blocks of 2 pixels keep the cost the same.
    """
    config.dataset.name = "brightness/16"
    config.model.patch_size = 2


def size_64(config: config_lib.Config) -> None:
    """64 x 64 pixels: the flaw is stronger. Blocks of 8 pixels keep the cost the same."""
    config.dataset.name = "brightness/64"
    config.model.patch_size = 8
