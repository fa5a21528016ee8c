"""Zero-terminal-SNR diffusion in JAX: the four fixes of arXiv 2305.08891, exact.

Import what you need: `from zsnr_jax import schedules, timesteps, samplers`. This file imports
nothing, so that importing the package touches no device.
"""

__version__ = "0.5.0"
