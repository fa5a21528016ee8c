"""The control of `configs/sd21_zsnr.py`: the same fine-tuning, with none of the four fixes.

arXiv 2305.08891, section 5, fine-tunes Stable Diffusion 2.1-base unchanged as well, on the same data,
since the data alone changes what it draws: FID 22.96 and IS 34.11 (Table 3). Eps-prediction on the
original schedule; sampled as Stable Diffusion is: leading steps, steps_offset 1, set_alpha_to_one
false (ends at level 1), w = 7.5 without rescale. Not run here. Commands, hardware and time as there:

  python -m zsnr_jax.main --config=configs/sd21_reference.py --config.pretrained=sd21-base --config.dataset.latents=laion-latents --workdir=runs/sd21_reference

Variants: smoke, a few steps, for a small folder.
"""  # noqa: E501

from zsnr_jax import config as config_lib


def get_config(variants: str = "") -> config_lib.Config:
    """The recipe; `variants` is what follows the colon."""
    config = config_lib.default_config()
    config.pretrained = "sd21-base"
    config.dataset.latents = "laion-latents"
    config_lib.stable_diffusion(config)
    config_lib.flawed(config)
    return config_lib.with_variants(config, variants, {"smoke": config_lib.smoke_latents})
