# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Terminal SNR: why Stable Diffusion could not paint a black square
#
# A diffusion model is trained on $x_t = \alpha_t x_0 + \sigma_t \epsilon$ for levels $t = 1..T$,
# and sampled from pure noise, as if $x_T$ were nothing else. In common schedules it is not: a
# little of the picture is left at $T$, and what is left longest is its mean brightness. The network
# learns to read brightness off its input; then it is handed noise, whose brightness is always
# medium. This notebook measures what is left, removes it, and predicts what it cost.
#
# Source: Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed*,
# [arXiv 2305.08891](https://arxiv.org/abs/2305.08891), sections 2 and 3.1.

# %%
import matplotlib.pyplot as plt
import numpy as np

from zsnr_jax import schedules
from zsnr_jax.evaluation import ideal

NAMES = ("linear", "cosine", "scaled_linear")
flawed = {name: schedules.make_schedule(name) for name in NAMES}
fixed = {name: schedules.make_schedule(name, zero_terminal_snr=True) for name in NAMES}

# %% [markdown]
# ## What is left at T
#
# The paper's Table 1. `scaled_linear` is Stable Diffusion's: 6.8 % of the picture's amplitude is
# still there at the level that sampling takes for pure noise.

# %%
print(f"{'schedule':<15}{'SNR(T)':>14}{'alpha(T)':>14}     after the fix")
for name in NAMES:
    snr, alpha = schedules.snr(flawed[name])[-1], flawed[name].alpha[-1]
    print(f"{name:<15}{snr:>14.6e}{alpha:>14.6f}{fixed[name].alpha[-1]:>18}")

# %% [markdown]
# ## The fix
#
# Algorithm 1 shifts $\alpha$ down until it ends at 0, and stretches it so that $\alpha_1$ stays.
# (The cosine schedule needs no such thing: only a clip on its betas kept it above 0.) Below on the
# right, the log SNR: mended, it goes down to $-\infty$ at $T$. A table of schedules that shows an
# infinity there is right, and nothing needs it: this library computes with $\alpha$ and $\sigma$,
# which are finite everywhere.

# %%
blue, orange = "#0072b2", "#d55e00"
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for schedule, color, label in (
    (flawed["scaled_linear"], orange, "Stable Diffusion's"),
    (fixed["scaled_linear"], blue, "rescaled"),
):
    left.plot(schedule.alpha, color=color, label=label)
    right.plot(schedules.logsnr(schedule)[1:-1], color=color)
left.set(title="The mended schedule ends at exactly 0", xlabel="level t", ylabel="alpha")
left.annotate("0.068 of the picture is left", (1000, 0.068), (590, 0.58), color=orange,
              arrowprops={"arrowstyle": "->", "color": orange})  # fmt: skip
left.legend(frameon=False)
right.set(title="Only the noisiest levels change", xlabel="level t", ylabel="log SNR")
plt.show()

# %% [markdown]
# ## What it costs
#
# Take mean brightness as one Gaussian number, of standard deviation $\tau$, seen through $N$
# pixels. Its own signal-to-noise ratio at $T$ is $q = \mathrm{SNR}(T)\, N \tau^2$: many pixels
# together betray the mean that each of them hides. A perfect network, sampled perfectly from pure
# noise, then makes images whose brightness has this part of the right spread, and this part of the
# right mean:
#
# $$\frac{1}{\sigma_T \sqrt{1 + q}} \qquad\text{and}\qquad 1 - \sqrt{\frac{q}{1 + q}}.$$
#
# Both are 1 only if $q = 0$. The flaw grows with resolution; no training makes it smaller.

# %%
tau = 0.5
print("size      spread of brightness (flawed)     mean recovered (flawed)     with the fix")
for size in (8, 16, 32, 64, 128, 256):
    law = ideal.one_mode_law(flawed["scaled_linear"], size**2, tau)
    mended = ideal.one_mode_law(fixed["scaled_linear"], size**2, tau)
    print(f"{size:>3}^2 {law.std_ratio:>23.3f} {law.mean_recovery:>30.3f} "
          f"{mended.std_ratio:>20.3f}")  # fmt: skip

# %% [markdown]
# At 64 x 64, the size of Stable Diffusion's latents, 42 % of the spread and 9 % of the mean are
# left. That is the medium grey that its users know.
#
# ## What this notebook claims

# %%
printed = {"linear": 4.035993e-05, "cosine": 2.428735e-09, "scaled_linear": 0.004682}
for name, digits in printed.items():
    np.testing.assert_allclose(schedules.snr(flawed[name])[-1], digits, rtol=1e-4)
    assert fixed[name].alpha[-1] == 0.0
    assert np.isfinite(fixed[name].alpha).all() and np.isfinite(fixed[name].sigma).all()
law = ideal.one_mode_law(flawed["scaled_linear"], 64**2, tau)
np.testing.assert_allclose([law.std_ratio, law.mean_recovery], [0.4164, 0.0904], atol=1e-4)
mended = ideal.one_mode_law(fixed["scaled_linear"], 64**2, tau)
assert (mended.std_ratio, mended.mean_recovery) == (1.0, 1.0)
