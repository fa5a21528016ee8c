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
# # 3. Trailing steps: where a sampler starts, and where it steps
#
# A model knows $T = 1000$ levels, and a sampler visits $S$ of them. Which ones? Samplers often
# start below $T$, and hand the network pure noise all the same. This notebook compares the
# choices, counts where a rounding formula goes wrong, and computes what each choice does to the
# brightness of images. All networks here are perfect, so that every error shown is the sampler's.
#
# Source: Lin et al., [arXiv 2305.08891](https://arxiv.org/abs/2305.08891), section 3.3, Table 2
# and section 5.1; for the two other spacings, Karras et al.,
# [arXiv 2206.00364](https://arxiv.org/abs/2206.00364), and Lu et al.,
# [arXiv 2206.00927](https://arxiv.org/abs/2206.00927).

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from zsnr_jax import samplers, schedules
from zsnr_jax.timesteps import SPACINGS, make_timesteps

T = 1000
flawed = schedules.make_schedule("scaled_linear")
mended = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
blue, sky, orange, green = "#0072b2", "#56b4e9", "#d55e00", "#007a5a"

# %% [markdown]
# ## Five ways to choose ten levels
#
# The first three are the paper's Table 2. Leading stops 99 levels short of $T$. Linspace reaches
# both ends, and spends its last step on level 1, where next to nothing is left to remove. Trailing
# starts at $T$ and wastes no step; it is the paper's choice.
#
# Two more are common elsewhere: evenly spaced in a power of $\sigma/\alpha$ (Karras et al.), or in
# its logarithm. With zero terminal SNR that ratio is infinite at $T$, and no formula in it can
# place $T$. Here no large number stands in for infinity: $T$ comes first by itself, and the
# formula places the $S - 1$ others, from level 990, a hundredth of $T$ below it, down to level 1.

# %%
ten = {spacing: make_timesteps(spacing, T, 10, mended) for spacing in SPACINGS}
for spacing, levels in ten.items():
    print(f"{spacing:<16}" + "".join(f"{level:>6}" for level in levels))

figure, axes = plt.subplots(figsize=(10, 2.9), layout="constrained")
for row, levels in enumerate(ten.values()):
    color = blue if levels[0] == T else orange
    axes.plot(levels, [-row] * 10, "o", color=color, markersize=7, clip_on=False)
axes.axvline(T, color="0.7", linewidth=1, zorder=0)
axes.set(title="Only leading does not start at T", xlabel="level t (0 is clean data)")
axes.set_yticks(-np.arange(len(ten)), ten, fontsize=11)
axes.set(xlim=(-10, 1030), ylim=(-4.6, 0.6))
plt.show()

# %% [markdown]
# ## Counting steps
#
# Table 2 writes trailing as a range from $T$ down to 0 in steps of $T/S$. In floating point there
# may be room for one step too many, and then level 0 is listed, at which no network is trained.
# This library computes the levels in integers.

# %%
counts = {S: len(np.round(np.arange(T, 0, -T / S))) for S in range(1, T + 1)}
wrong = [S for S, count in counts.items() if count != S]
print(f"the formula in floating point: a wrong count for {len(wrong)} of {T} values of S")
print(f"the first of them: {wrong[:6]}")
print(f"S = 61 gives {counts[61]} levels, which end with", np.round(np.arange(T, 0, -T / 61))[-3:])

exact = {S: make_timesteps("trailing", T, S) for S in range(1, T + 1)}
ours_wrong = [S for S, levels in exact.items() if len(levels) != S or levels[-1] < 1]
print(f"make_timesteps: a wrong count for {len(ours_wrong)}")

# %% [markdown]
# ## The next level is the next one listed
#
# Many samplers do not look up the next level: they subtract a stride, and step from $t$ to
# $t - \lfloor T/S \rfloor$. Where $S$ does not divide $T$, that is not the level at which the
# network is asked next: it is then told of a little more picture than there is.
#
# To see it, let data be single numbers from $N(0.9, 0.3^2)$. A perfect network is known in closed
# form: $\hat x_0$ is linear in $x_t$, and so is a step of DDIM, and so is the whole sampler. Its
# result is $a + b\, x_T$; over all noise $x_T$ its mean is $a$ and its standard deviation is $|b|$.


# %%
def walk(schedule, timesteps, mean, std, stride=None):
    """Mean and standard deviation of DDIM's samples, for data N(mean, std^2)."""
    alpha, sigma = (np.asarray(side, np.float64) for side in schedule)
    arrivals = np.append(timesteps[1:], 0) if stride is None else np.maximum(timesteps - stride, 0)
    x = np.array([0.0, 1.0])  # x_T, as [a, b]
    for t, s in zip(timesteps, arrivals):
        gain = alpha[t] * std**2 / (alpha[t] ** 2 * std**2 + sigma[t] ** 2)
        x0_hat = gain * x + np.array([mean - gain * alpha[t] * mean, 0.0])
        eps_hat = (x - alpha[t] * x0_hat) / sigma[t]
        x = alpha[s] * x0_hat + sigma[s] * eps_hat
    return x[0], abs(x[1])


listed = {S: walk(mended, exact[S], 0.9, 0.3)[0] for S in range(1, 101)}
strided = {S: walk(mended, exact[S], 0.9, 0.3, stride=T // S)[0] for S in range(1, 101)}
print("  S   T // S   steps to a wrong level   mean, next listed level   mean, t - T // S")
for S in (10, 30, 50, 60, 61):
    missed = np.sum(exact[S] - T // S != np.append(exact[S][1:], 0))
    print(f"{S:>3}{T // S:>9}{missed:>25}{listed[S]:>26.4f}{strided[S]:>19.4f}")

# %%
figure, axes = plt.subplots(figsize=(10, 3.2), layout="constrained")
axes.plot(list(listed), list(listed.values()), color=blue, label="to the next listed level")
axes.plot(list(strided), list(strided.values()), "o", color=orange, ms=4, label="to t - T // S")
axes.set(title="A stride loses brightness wherever S does not divide T", ylabel="mean of samples")
axes.set(xlabel="number of steps S")
axes.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# At $S = 60$ the listed levels are 16 or 17 apart and the stride is 16, so that two steps of three
# end at a level that is not the next one; the last of all ends at level 1, with noise left. The
# stride is right where $S$ divides 1000, as 10, 25 and 50 do, and so the fault is easily missed.
#
# ## What the start costs
#
# Fifty leading steps start at level 981. The network is handed pure noise, and told that there is
# some picture in it; it believes that, and finds a picture of medium brightness. So the start must
# be $T$, and $T$ must be pure noise: either alone is not enough.

# %%
STEPS = (5, 10, 25, 50, 1000)
RECIPES = {
    "flawed, leading": (flawed, "leading"),
    "flawed, trailing": (flawed, "trailing"),
    "mended, leading": (mended, "leading"),
    "mended, linspace": (mended, "linspace"),
    "mended, trailing": (mended, "trailing"),
}
print("mean of samples; the data's is 0.9\n  S" + "".join(f"{name:>18}" for name in RECIPES))
for S in STEPS:
    means = (
        walk(schedule, make_timesteps(spacing, T, S), 0.9, 0.3)[0]
        for schedule, spacing in RECIPES.values()
    )
    print(f"{S:>4}" + "".join(f"{mean:>18.4f}" for mean in means))

# %% [markdown]
# ## The same for the brightness of an image
#
# The loss above is small, since one number tells little amid so much noise. Many pixels together
# tell their mean well, and mislead the network more. Notebook 1 has that mean as one mode of
# variance $N \tau^2$, in units in which the noise has variance 1. Take $N \tau^2 = 1024$, which is
# $\tau = 0.5$ at 64 x 64. The table has the part of the data's spread that the samples have, then
# the part of the mean.

# %%
std = np.sqrt(1024)
mode = {
    (name, S): walk(schedule, make_timesteps(spacing, T, S), 1.0, std)
    for name, (schedule, spacing) in RECIPES.items()
    for S in STEPS
}
print("spread | mean recovered\n    S" + "".join(f"{name:>18}" for name in RECIPES))
for S in STEPS:
    cells = (f"{mode[name, S][1] / std:.3f} | {mode[name, S][0]:.3f}" for name in RECIPES)
    print(f"{S:>5}" + "".join(f"{cell:>18}" for cell in cells))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
STYLES = ((orange, ":"), (orange, "-"), (sky, "-"), (blue, ":"), (blue, "-"))
for name, (color, style) in zip(RECIPES, STYLES):
    means, stds = np.transpose([mode[name, S] for S in STEPS])
    left.semilogx(STEPS, means, "o", ls=style, color=color, ms=4)
    right.semilogx(STEPS, stds / std, "o", ls=style, color=color, ms=4, label=name)
left.set(title="A start at T, of pure noise, keeps the mean", ylabel="part of the data's")
right.set(title="The spread needs steps as well")
for axes in (left, right):
    axes.set(xlabel="number of steps S", ylim=(-0.05, 1.1))
    axes.set_xticks(STEPS, STEPS)
    axes.minorticks_off()
right.legend(frameon=False, fontsize=8.5, loc="lower right")
plt.show()

# %% [markdown]
# - **The mean.** It is exact, at every number of steps, where the schedule is mended and the start
#   is $T$, be it trailing or linspace. With leading steps the mended schedule still loses a quarter
#   of it at $S = 50$.
# - **The spread.** Among the two that keep the mean, trailing has more of it: .223 against .165 at
#   5 steps, .762 against .752 at 25. It agrees with the paper's Figure 4, where trailing looks
#   better at 5 steps, and at 25 the two can hardly be told apart.
# - **A caveat.** At few steps most of the spread is lost with trailing too, and at 5 the flawed
#   schedule has more of it. Starting at $T$ keeps the mean; it does not keep a first-order sampler
#   from making images more alike than the data.
#
# ## The first step, from pure noise
#
# A second-order solver, `dpmpp_2m`, makes smaller errors with as many network calls. But its first
# step, from pure noise, is DDIM's: it arrives at the second level, $s$, with the spread $\sigma_s$,
# where the exact one is $\sqrt{\alpha_s^2 N \tau^2 + \sigma_s^2}$. If all later steps were exact,
# the samples would keep this part of the data's spread,
#
# $$\frac{1}{\sqrt{1 + q_s}}, \qquad q_s = \mathrm{SNR}(s)\, N \tau^2,$$
#
# which is notebook 1's law at level $s$, for a start of the spread $\sigma_s$ and not 1. Trailing
# steps go far in the first one when there are few; the two spacings in $\sigma/\alpha$ go from $T$
# to 990, whatever $S$ is.


# %%
def spread(name, timesteps, std=std):
    """The part of its spread that one mode, N(0, std^2), keeps: this library's samplers."""

    def denoise(x_t, level):
        alpha, sigma = jnp.asarray(mended.alpha)[level], jnp.asarray(mended.sigma)[level]
        x0_hat = alpha * std**2 * x_t / (alpha**2 * std**2 + sigma**2)
        return x0_hat, (x_t - alpha * x0_hat) / sigma

    x_T = jnp.ones((1, 1))  # samples are b x_T, so that one start gives b
    x_0 = samplers.sample(samplers.make_sampler(name), denoise, x_T, mended, timesteps)
    return abs(float(x_0[0, 0])) / std


WAYS = [("ddim", "trailing"), ("dpmpp_2m", "trailing"), ("ddim", "uniform_logsnr")]
WAYS += [("dpmpp_2m", "karras"), ("dpmpp_2m", "uniform_logsnr")]
kept = {
    (solver, spacing, S): spread(solver, make_timesteps(spacing, T, S, mended))
    for solver, spacing in WAYS
    for S in STEPS[:-1]
}


def ceiling(spacing, S):
    """What a first step over the listed levels leaves at best."""
    second = make_timesteps(spacing, T, S, mended)[1]
    return 1 / np.sqrt(1 + 1024 * schedules.snr(mended)[second])


print(f"{'part of the spread':<40}" + "".join(f"   S = {S:>2}" for S in STEPS[:-1]))
for solver, spacing in WAYS:
    row = "".join(f"{kept[solver, spacing, S]:>9.3f}" for S in STEPS[:-1])
    print(f"{solver + ', ' + spacing:<40}{row}")
for spacing in ("trailing", "uniform_logsnr"):
    row = "".join(f"{ceiling(spacing, S):>9.3f}" for S in STEPS[:-1])
    print(f"{'first step alone, ' + spacing:<40}{row}")

# %% [markdown]
# With trailing steps `dpmpp_2m` keeps about what the first step leaves, so that at few steps it is
# hardly better than DDIM. Even in log SNR, ten steps are enough for it. (A little more than all of
# the spread is its own error, of second order.) DDIM errs at every step, and gains less.
# Finer structure has modes of smaller spread: there `dpmpp_2m` is as good, and DDIM may lose:

# %%
stds = (std, 1.0, 0.3)
parts = {
    (solver, spacing): [
        spread(solver, make_timesteps(spacing, T, 10, mended), mode_std) for mode_std in stds
    ]
    for solver, spacing in WAYS
}
print("part of the spread, 10 steps; the mode's own:" + "".join(f"{s:>8}" for s in stds))
for (solver, spacing), row in parts.items():
    print(f"{solver + ', ' + spacing:<45}" + "".join(f"{part:>8.3f}" for part in row))

# %%
figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
x = STEPS[:-1]
axes.plot(x, [ceiling("trailing", S) for S in x], color="0.85", lw=7,
          label="trailing, if all but the first step were exact")  # fmt: skip
lines = [
    (WAYS[0], orange, "--"),
    (WAYS[1], orange, "-"),
    (WAYS[2], blue, "--"),
    (WAYS[4], blue, "-"),
]
for (solver, spacing), color, style in lines:
    row = [kept[solver, spacing, S] for S in x]
    axes.plot(x, row, "o", ls=style, color=color, label=f"{solver}, {spacing}")
axes.set(title="A short first step lets a second-order solver keep the spread", ylim=(0, 1.12))
axes.set(xlabel="number of steps S", ylabel="part of the data's spread")
axes.set_xscale("log")
axes.set_xticks(x, x)
axes.minorticks_off()
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# ## What this notebook claims

# %%
assert list(ten["leading"]) == list(range(901, 0, -100))
assert list(ten["linspace"]) == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
assert list(ten["trailing"]) == list(range(1000, 0, -100))
for spacing in ("karras", "uniform_logsnr"):
    assert list(ten[spacing][:2]) == [1000, 990] and ten[spacing][-1] == 1
assert len(wrong) == 62 and wrong[0] == 61 and counts[61] == 62 and not ours_wrong

np.testing.assert_allclose(list(listed.values()), 0.9, rtol=1e-12)
np.testing.assert_allclose([strided[S] for S in (30, 60, 61)], [0.8970, 0.8861, 0.8920], atol=1e-4)
assert all((abs(strided[S] - 0.9) < 1e-9) == (T % S == 0) for S in strided)

for name, S, mean in (("flawed, leading", 50, 0.8812), ("mended, leading", 50, 0.8979)):
    schedule, spacing = RECIPES[name]
    found = walk(schedule, make_timesteps(spacing, T, S), 0.9, 0.3)[0]
    np.testing.assert_allclose(found, mean, atol=1e-4)

printed = {  # spread, mean recovered
    ("flawed, leading", 5): (0.160, 0.017),
    ("flawed, trailing", 50): (0.414, 0.095),
    ("mended, leading", 50): (0.877, 0.754),
    ("mended, linspace", 5): (0.165, 1),
    ("mended, linspace", 25): (0.752, 1),
    ("mended, trailing", 5): (0.223, 1),
    ("mended, trailing", 25): (0.762, 1),
}
for recipe, (part, mean) in printed.items():
    np.testing.assert_allclose((mode[recipe][1] / std, mode[recipe][0]), (part, mean), atol=6e-4)
for S in STEPS[:-1]:  # the library's sampler and the few lines above are one
    np.testing.assert_allclose(
        kept["ddim", "trailing", S], mode["mended, trailing", S][1] / std, 1e-4
    )
    assert kept["dpmpp_2m", "trailing", S] < 1.01 * ceiling("trailing", S)
    assert kept["dpmpp_2m", "uniform_logsnr", S] > kept["dpmpp_2m", "trailing", S]
for S in (10, 25, 50):
    np.testing.assert_allclose(kept["dpmpp_2m", "uniform_logsnr", S], 1, atol=0.03)
np.testing.assert_allclose(parts["dpmpp_2m", "uniform_logsnr"], 1, atol=0.03)
np.testing.assert_allclose(walk(mended, ten["uniform_logsnr"], 0.9, 0.3)[0], 0.9, rtol=1e-12)
