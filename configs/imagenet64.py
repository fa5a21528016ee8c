"""Class-conditional ImageNet at 64 x 64 with the four fixes, at accelerator scale.

Widths, depth, attention at 32, 16 and 8, dropout 0.1, batch 2048, learning rate 1e-4 and EMA
0.9999 over 540k steps are those of ADM's ImageNet-64 model (arXiv 2105.05233, table 11: 296 M
parameters there). The schedule is Stable Diffusion's, on which the flaw at 64 x 64 costs more than
half of the brightness spread (std ratio 0.416 by the one-mode law). This recipe has not been run
here; it wants many accelerators: by pmap every device holds the whole state, by fsdp a slice.

  pip install "zsnr_jax[tfds]" && python -c \\
    "import tensorflow_datasets as tfds; tfds.builder('imagenet_resized/64x64', file_format='array_record').download_and_prepare()"
  python -m zsnr_jax.main --config=configs/imagenet64.py --workdir=runs/imagenet64

Variants: flawed, the recipe the paper mends; smoke, a tiny network for a few steps.
"""  # noqa: E501

from zsnr_jax import config as config_lib


def get_config(variants: str = "") -> config_lib.Config:
    """The recipe; `variants` is what follows the colon."""
    config = config_lib.default_config()
    config.dataset.name = "imagenet_resized/64x64"
    config.dataset.batch_size = 2048
    config.dataset.flip = True
    config.model.channels = (192, 384, 576, 768)
    config.model.num_res_blocks = 3
    config.model.attention = (False, True, True, True)
    config.model.head_dim = 64
    config.model.dropout = 0.1
    config.model.remat = True
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 5_000
    config.optimizer.decay = "constant"
    config.train.num_steps = 540_000
    config.train.steps_per_dispatch = 10
    config.train.sample_every = 10_000
    config.train.save_every = 10_000
    config.evaluation.num_samples = 10_000
    config.evaluation.batch_size = 1_000
    return config_lib.with_variants(
        config, variants, {"flawed": config_lib.flawed, "smoke": config_lib.smoke}
    )
