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
# # 6. Reading a training run
#
# A run writes a row of numbers to `WORKDIR/metrics.jsonl` as it trains. TensorBoard draws most of
# them, `report.html` a few, and at the end `results.json` holds statistics of its samples. Which of
# these should be small, and how small can they be? This notebook reads two runs of the main job by
# AdamW, as they were recorded: with the four fixes, and with the flawed recipe.
#
# ```
# python -m zsnr_jax.main --config=configs/brightness.py:adamw --workdir=/tmp/zsnr_jax/fixed
# python -m zsnr_jax.main --config=configs/brightness.py:adamw,flawed --workdir=/tmp/zsnr_jax/flawed
# ```
#
# The data are few enough for the best possible denoiser to be known in closed form. So each number
# can be held against the least, or the best, that it could be.

# %%
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from zsnr_jax import data, files, generate, losses, plotting, predictions, schedules
from zsnr_jax.evaluation import brightness, ideal
from zsnr_jax.train.optimizer import learning_rate_schedule

here = Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "notebooks" / "runs").exists())
folders = {name: root / "notebooks" / "runs" / name for name in ("fixed", "flawed")}
rows = {name: files.read_rows(folder / "metrics.jsonl") for name, folder in folders.items()}
results = {n: json.loads((folder / "results.json").read_text()) for n, folder in folders.items()}
config = {n: json.loads((folder / "config.json").read_text()) for n, folder in folders.items()}
column = {n: {c: np.array([row[c] for row in rows[n]], float) for c in rows[n][0]} for n in rows}
steps = column["fixed"]["step"]

theme = plotting.LIGHT
COLOUR = {"fixed": theme.samples, "flawed": theme.flawed}

# %% [markdown]
# ## What is in a row
#
# There is a row for every `train.log_every` steps, here 20. Four columns are means over the steps
# since the last row:
#
# - `loss`, the number that is minimised, over all levels;
# - `loss_by_level`, the same in ten bands of levels, 1..100 to 901..1000 (null for a band that no
#   picture fell in);
# - `grad_norm`, the length of the whole gradient, before it is clipped;
# - `steps_per_second`, without the time for checkpoints, sample grids and the probe below.
#
# Two are of the moment: `learning_rate`, that of the last step, and `loss_at_T`, a probe: the loss
# of the last batch if all its pictures were at level $T$. TensorBoard has all but the bands.

# %%
print("run       step    loss  levels 1..100  901..1000  loss_at_T  grad_norm      rate  steps/s")
for name in rows:
    for row in rows[name][:3] + rows[name][-2:]:
        bands = row["loss_by_level"]
        print(f"{name:<8}{row['step']:>6}{row['loss']:>8.3f}{bands[0]:>15.3f}{bands[-1]:>11.3f}"
              f"{row['loss_at_T']:>11.4f}{row['grad_norm']:>11.3f}{row['learning_rate']:>10.5f}"
              f"{row['steps_per_second']:>9.1f}")  # fmt: skip

# %% [markdown]
# ## The loss alone says little
#
# It falls and flattens in both runs, and it is lower in the flawed one. Neither tells whether the
# samples will be right. The loss is a mean over levels, and the level decides how much of the
# target can be known at all.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
for name in rows:
    left.semilogy(steps, column[name]["loss"], color=COLOUR[name], label=name)
left.set(title="The flawed run has the lower loss", xlabel="step", ylabel="loss")
left.legend(frameon=False)
shades = plt.get_cmap("cividis")(np.linspace(0, 0.85, 10))
for band, shade in enumerate(shades):
    right.semilogy(steps, column["fixed"]["loss_by_level"][:, band], color=shade, lw=1.3)
places = {0: (150, 0.65), 1: (1010, 0.09), 4: (1010, 0.036), 8: (1010, 0.15), 9: (1010, 0.29)}
for band, place in places.items():
    text = f"{100 * band + 1}..{100 * band + 100}"
    right.annotate(text, place, color=theme.ink, va="center", fontsize=9)
right.set(title="Fixed, by level: some bands stay high", xlabel="step", xlim=(-20, 1190))
right.set_xticks(range(0, 1001, 200))
for axes in (left, right):
    axes.set_yticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

end = {name: column[name]["loss"][-10:].mean() for name in rows}  # the last fifth, here as below
last = {name: np.array(plotting.mean_by_level(rows[name])) for name in rows}
ends = (last["fixed"][0] + last["fixed"][-1]) / last["fixed"].sum()
print(f"last fifth: fixed {end['fixed']:.3f}, flawed {end['flawed']:.3f}")
print(f"{100 * ends:.0f} % of the fixed run's is in the first and the last band")

# %% [markdown]
# ## How low could each band go?
#
# Of all estimates of $x_0$ from $x_t$ and the label, the posterior mean has the least error. For a
# finite set it is a weighted mean of its pictures (`evaluation.ideal`), so that its error can be
# measured. It depends on the SNR alone; here it is measured at a few levels and interpolated. Times
# $\mathrm{SNR} + 1 = 1/\sigma^2$ it is a $v$ loss. One picture in ten has its label hidden, and
# counts with the posterior mean over all labels.
#
# That floor belongs to a denoiser that knows the training pictures by heart. So take the same
# denoiser on new pictures, too. The best *general* denoiser, for all pictures that might have been
# drawn, lies between the two on average: on the set, none beats the one that knows it; on new
# pictures, none beats the general one. A third line is no knowledge at all: the network starts with
# an output of 0, whose loss is $\alpha^2 + \sigma^2\, \overline{x_0^2}$.

# %%
pixels, labels = data.make_images(32, 4096, seed=0)  # the training split, and the test split:
new_pixels, new_labels = data.make_images(32, 1024, seed=1)
images, new_images = data.to_float(pixels), data.to_float(new_pixels)
square = float(np.mean(images**2))
label_means = np.stack([images[labels == label].mean(axis=0) for label in range(6)])
SHOWN = np.array([1, 100, 300, 400, 500, *range(600, 901, 50), 925, 950, 975, 1000])
schedule = {
    "fixed": schedules.make_schedule("scaled_linear", zero_terminal_snr=True),
    "flawed": schedules.make_schedule("scaled_linear"),
}
alpha, sigma = (jnp.asarray(side) for side in schedule["fixed"])


@jax.jit
def error_of_ideal(known, mask, pictures, eps):
    """The mean squared error of x0_hat at the levels shown: who knows these, on such pictures."""
    denoise = ideal.make_ideal_denoise(known, schedule["fixed"], mask)

    def at(level):
        x_t = predictions.add_noise(pictures, eps, alpha[level], sigma[level])
        return jnp.mean((denoise(x_t, level)[0] - pictures) ** 2)

    return jax.lax.map(at, SHOWN)


def evenly(pictures, mean, count):
    """Pictures at even quantiles of their distance from the mean: a few that stand for all."""
    order = np.argsort(np.mean((pictures - mean) ** 2, axis=(1, 2, 3)))
    return pictures[order[((np.arange(count) + 0.5) / count * len(order)).astype(int)]]


def least_error(pictures, of_labels):
    """Of the ideal denoiser of the training set on such pictures: told the label, and not."""
    rng, told, size = np.random.default_rng(0), [], max(np.bincount(labels))
    for label in range(6):
        index = np.resize(np.flatnonzero(labels == label), size)  # padded to one shape
        mask = np.arange(size) < np.sum(labels == label)
        some = evenly(pictures[of_labels == label], label_means[label], 96)
        eps = rng.standard_normal(some.shape, np.float32)
        share = np.mean(of_labels == label)
        told.append(share * error_of_ideal(images[index], mask, some, eps))
    some = evenly(pictures, images.mean(axis=0), 32)
    eps, mask = rng.standard_normal(some.shape, np.float32), np.ones(len(images), bool)
    return np.sum(told, axis=0), np.asarray(error_of_ideal(images, mask, some, eps))


told, hidden = least_error(images, labels)
told_new, hidden_new = least_error(new_images, new_labels)
DROPOUT = config["fixed"]["loss"]["label_dropout"]


def at_levels(error, name="fixed"):
    """The error at all levels 1..T of a schedule, from those shown."""
    at, known = schedule[name].alpha[1:], np.asarray(alpha)[SHOWN]
    return np.exp(np.interp(at, known[::-1], np.log(np.maximum(error, 1e-9))[::-1]))


def by_band(per_level):
    return per_level.reshape(10, 100).mean(axis=1)


variance = schedule["fixed"].sigma[1:] ** 2
floor = at_levels((1 - DROPOUT) * told + DROPOUT * hidden) / variance
on_new = at_levels((1 - DROPOUT) * told_new + DROPOUT * hidden_new) / variance
nothing = schedule["fixed"].alpha[1:] ** 2 + variance * square
print("levels        output 0   fixed run   ideal, new pictures   ideal, its own pictures")
bands = np.transpose([by_band(nothing), last["fixed"], by_band(on_new), by_band(floor)])
for band, (zero, run, new, own) in enumerate(bands):
    print(f"{100 * band + 1:>4}..{100 * band + 100:<4}{zero:>12.3f}{run:>12.3f}"
          f"{new:>18.3f}{own:>22.4f}")  # fmt: skip

# %%
figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
levels, middles = np.arange(1, 1001), np.arange(50.5, 1000, 100)
axes.fill_between(levels, np.maximum(floor, 1e-4), on_new, color=theme.ideal, alpha=0.12, lw=0)
axes.semilogy(levels, nothing, color=theme.faint, ls="--")
axes.semilogy(levels, on_new, color=theme.ideal, ls="--")
axes.semilogy(levels, floor, color=theme.ideal)
axes.semilogy(middles, last["fixed"], "o", color=theme.samples, ms=7)
for text, place, colour in (
    ("output 0, as at the start", (500, 0.75), theme.ink),
    ("ideal denoiser, new pictures", (205, 0.33), theme.ideal),
    ("ideal denoiser, its own pictures", (520, 0.00035), theme.ideal),
    ("fixed run, last fifth", (300, 0.018), theme.samples),
):
    axes.text(*place, text, color=colour)
axes.set(title="The run is near its floor only where noise is strong", xlabel="noise level t",
         ylabel="v loss", xlim=(0, 1005), ylim=(1e-4, 3))  # fmt: skip
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# - **801..1000.** The two sides of the floor are close to each other, and the run is about a fifth
#   and a tenth above them. A loss of 0.3 at the end is nearly the least that can be.
# - **Below 700** the lower line is memory, 0.007 and less. No network that generalises comes near,
#   and to be far above it is no fault. The run is below the upper line, so that it does better than
#   to look pictures up. (It is measured on training pictures, of which it has seen each 8 times; a
#   loss on the test split would tell how much of that is memory.)
# - **701..800** is above both lines: here there is something left to learn.
# - **1..100** is the highest of all beside what can be known: 0.28, and still falling. The target
#   is almost the noise there, and to find it is to know the picture's finest structure.
#
# ## The loss at T
#
# Uniform levels meet $T$ once in a thousand pictures, so no band shows it. Yet every sample starts
# there. `loss_at_T` puts all pictures of the last batch at $T$, and hides no label. On the mended
# schedule the input is then pure noise and the target is $-x_0$. All that can be known of the
# picture is its label, and the best output is minus the mean of the label's pictures. So the least
# loss is the variance of the data given the label: one number, from the data alone.

# %%
spread = np.mean((images - label_means[labels]) ** 2, axis=(1, 2, 3))  # of each picture
told_at_T = float(spread.mean())
untold_at_T = float(np.mean((images - images.mean(axis=0)) ** 2))
print(f"output 0                       {square:.3f}")
print(f"minus the mean of all          {untold_at_T:.3f}")
print(f"minus the mean of the label's  {told_at_T:.3f}")
print(f"a batch of 32 wanders by       {spread.std() / np.sqrt(32):.3f}\n")

examples: Any = [{"image": image, "label": label} for image, label in zip(pixels, labels)]
batches = data.batches_by_step(examples, batch_size=32, seed=0, image_size=32)


def least_of_batch(step):
    """The variance given the label, of the batch that was probed: a pure function of the step."""
    batch = batches[int(step) - 1]  # the first batch is number 0
    return np.mean((batch["image"] - label_means[batch["label"]]) ** 2)


at_T = {name: column[name]["loss_at_T"].reshape(5, 10) for name in rows}  # by fifths of the run
least_at_T = np.array([least_of_batch(step) for step in steps]).reshape(5, 10)
excess = at_T["fixed"] - least_at_T
print("steps         loss_at_T   least, same batches   difference")
for i, few in enumerate(steps.reshape(5, 10)):
    error = excess[i].std(ddof=1) / np.sqrt(10)
    print(f"{few[0]:>3.0f}..{few[-1]:<5.0f}{at_T['fixed'][i].mean():>12.3f}"
          f"{least_at_T[i].mean():>22.3f}{excess[i].mean():>13.3f} +- {error:.3f}")  # fmt: skip

# %%
figure, axes = plt.subplots(figsize=(10, 3.5), layout="constrained")
axes.plot([0, 1000], [untold_at_T] * 2, color=theme.faint, ls="--")
axes.plot([0, 1000], [told_at_T] * 2, color=theme.ideal)
axes.plot(steps, column["fixed"]["loss_at_T"], "o", color=theme.samples, ms=4, alpha=0.5)
for i, mean in enumerate(at_T["fixed"].mean(axis=1)):
    axes.plot([200 * i + 12, 200 * i + 200], [mean] * 2, color=theme.samples, lw=3)
axes.text(1012, untold_at_T, "label not used,\nor output 0", va="center")
axes.text(1012, told_at_T, "least possible", color=theme.ideal, va="center")
axes.set(title="What the label tells is learnt late (bars: means of ten rows)", xlabel="step",
         ylabel="loss_at_T, fixed run", xlim=(0, 1150), ylim=(0.25, 0.65))  # fmt: skip
axes.set_xticks(range(0, 1001, 200))
axes.spines[["top", "right"]].set_visible(False)
plt.show()

v_loss = (jnp.zeros(1), jnp.ones(1), "v")  # alpha, sigma, prediction at T
for name in ("snr_plus_one", "min_snr_zero_at_terminal"):
    factor = losses.multiplier(losses.LOSS_WEIGHTS[name], *v_loss)[0]
    print(f"multiplier of the loss at T with {name}: {factor:.0f}")

# %% [markdown]
# For 400 steps the run is at $T$ about as good as an output of 0, which is 0.11 above the least.
# Then it learns what the label tells. One row wanders by 0.05, since it is one batch: read ten
# together, beside the least of the same batches. Other values mean:
#
# - **flat at 0.467**: at $T$ the network uses no label, or has learnt nothing;
# - **exactly 0**: the loss weight is 0 at $T$, and that level is not learnt (above: min-SNR as it
#   is usually written);
# - **null** (nan in the progress bar, a gap in TensorBoard): the loss is not finite, the run has
#   diverged. `loss` itself is then written as `NaN`.
#
# ## A small loss at T is no good sign by itself
#
# The flawed run's `loss_at_T` is 0.0014. Its target is the noise, and at $T$ the noise is nearly
# the input: to copy the input does almost as well. The errors of one estimate, as $v$, $x_0$ or
# $\epsilon$, are proportional (notebook 2),
#
# $$\|\Delta v\|^2 = (1 + \mathrm{SNR})\, \|\Delta x_0\|^2
#   = (1 + 1 / \mathrm{SNR})\, \|\Delta \epsilon\|^2 ,$$
#
# so divide by $\mathrm{SNR}(T) = 0.0047$ to see what the loss says of the picture.

# %%
snr_T = schedules.snr(schedule["flawed"])[-1]
alpha_T, sigma_T = schedule["flawed"].alpha[-1], schedule["flawed"].sigma[-1]
eps_losses = {
    "copy the input": alpha_T**2 * square + (1 - sigma_T) ** 2,
    "x0_hat the label's mean": snr_T * told_at_T,
    "flawed run, last fifth": at_T["flawed"][-1].mean(),
    "ideal denoiser": snr_T * at_levels(told, "flawed")[-1],
}
print(f"SNR(T) = {snr_T:.6f}\nflawed schedule, at T      eps loss   squared error of x0_hat")
for name, loss in eps_losses.items():
    print(f"{name:<25}{loss:>10.5f}{loss / snr_T:>26.3f}")

eps_to_v = (1 / schedule["flawed"].alpha[1:] ** 2).reshape(10, 100)[:, [0, -1]]
as_v = last["flawed"][:, None] * eps_to_v  # least and most, at the two ends of each band
flawed_x0 = at_levels((1 - DROPOUT) * told + DROPOUT * hidden, "flawed")
flawed_floor = flawed_x0 / schedule["flawed"].sigma[1:] ** 2
print("\nlevels      flawed, as logged   flawed, as v   fixed (v)")
for band, (low, high) in enumerate(as_v):
    print(f"{100 * band + 1:>4}..{100 * band + 100:<4}{last['flawed'][band]:>19.4f}"
          f"{low:>8.2f}..{high:.2f}{last['fixed'][band]:>12.2f}")  # fmt: skip

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
for axes in (left, right):
    axes.semilogy(middles, last["fixed"], "o", color=theme.samples, ms=7, label="fixed, v loss",
                  zorder=3)  # fmt: skip
    axes.set(xlabel="noise level t", xlim=(0, 1005), ylim=(1e-3, 1))
    axes.spines[["top", "right"]].set_visible(False)
left.semilogy(middles, last["flawed"], "s", color=theme.flawed, ms=6, label="flawed, eps loss")
right.vlines(middles, *as_v.T, color=theme.flawed, lw=9, alpha=0.5, label="flawed, as v loss")
left.set(title="As logged they seem far apart", ylabel="loss, last fifth of the steps")
right.set(title="As errors of v they are much alike")
left.legend(frameon=False, loc="lower left")
right.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# (A band's mean can be turned into a $v$ loss only up to the range of $1/\alpha^2$ within the band,
# hence the bars.) Losses of different predictions are not comparable as they are logged.
#
# At $T$ the flawed run's estimate of the picture is even better than the fixed run's: 0.30, where
# the label alone allows 0.36. It reads the rest off its input, as the ideal denoiser does to reach
# 0.16: 6.8 % of the picture is still there, and many pixels together show its brightness. That is
# the flaw itself. In sampling, the input is noise and shows nothing.
#
# ## Gradient, learning rate, speed

# %%
for name in rows:
    norm, seconds = column[name]["grad_norm"], 20 / column[name]["steps_per_second"]
    print(f"{name:<7}gradient norm above 1 in {np.sum(norm > 1)} of {len(norm)} rows, "
          f"{norm[-10:].mean():.2f} in the last fifth")  # fmt: skip
    print(f"{'':<7}median {20 / np.median(seconds):.1f} steps/s; the first row took "
          f"{seconds[0] - np.median(seconds):.0f} s more than the median; rows in all "
          f"{seconds.sum():.0f} s of {results[name]['seconds']['train']:.0f} s")  # fmt: skip
optimizer = config["fixed"]["optimizer"]
rate: Any = learning_rate_schedule(
    optimizer["learning_rate"], int(steps[-1]), optimizer["warmup_steps"], optimizer["decay"]
)
expected_rate = [float(rate(int(step) - 1)) for step in steps]

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
for name in rows:
    panels[0].semilogy(steps, column[name]["grad_norm"], color=COLOUR[name], label=name)
    panels[2].plot(steps, column[name]["steps_per_second"], color=COLOUR[name])
    panels[1].plot(steps, 1000 * column[name]["learning_rate"], color=theme.ink)
panels[0].axhline(optimizer["clip_norm"], color=theme.faint, ls="--")
panels[0].text(1000, 1.08, "clip", ha="right", va="bottom")
panels[0].set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
panels[0].minorticks_off()
panels[0].legend(frameon=False)
panels[0].set(title="Clipped in the first steps", ylabel="gradient norm")
panels[1].set(title="As configured", ylabel="learning rate / 0.001", ylim=(0, 3.2))
panels[2].set(title="The machine's other work shows", ylabel="steps per second", ylim=(0, None))
for axes in panels:
    axes.set(xlabel="step")
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# - **Gradient norm.** Above 1 the gradient is shortened to 1 before Adam sees it. Adam divides by
#   the gradients' usual size, so that a constant factor changes nothing: the clip only keeps a rare
#   large gradient from ruling the averages. Above 1 in the first rows is usual. A row is a mean of
#   20 steps, and hides a single large one.
# - **Learning rate.** Up from 0 in 20 steps, then down half a cosine to a twentieth. The first row
#   is step 20, counted from 0 the 19th: 19/20 of the peak.
# - **Steps per second.** Both runs do the same work in a step. They differ by what else ran on the
#   two cores. The first row holds the compilation. What is missing to the training time of
#   `results.json` is the start, the probe, the sample grid and checkpoints.
#
# ## The samples' brightness
#
# No curve above says whether the samples are right. `results.json` does: three numbers of the mean
# brightness of 512 samples, each with a 95 % interval, beside those of the ideal denoiser, which
# was sampled with the same recipe from the same noise. But 512 is not many. So the table starts
# with what a perfect sampler would get: 512 pictures drawn from the data, 400 times.

# %%
of_data = brightness.mean_brightness(pixels)
by_label = [of_data[labels == label] for label in range(6)]
counts = np.bincount(generate.spread_labels(labels, 512))
rng = np.random.default_rng(0)
draws = [[rng.choice(group, n) for group, n in zip(by_label, counts)] for _ in range(400)]
perfect = {
    "std_ratio": [brightness.std_ratio(np.concatenate(draw), of_data) for draw in draws],
    "wasserstein1": [brightness.wasserstein1(np.concatenate(draw), of_data) for draw in draws],
    "mean_recovery": [brightness.recovery_slope(draw, by_label) for draw in draws],
}
usual = {name: np.percentile(values, [2.5, 50, 97.5]) for name, values in perfect.items()}
found = {run: {n: results[run]["metrics"][f"brightness/{n}"] for n in usual} for run in rows}
of_ideal = {run: results[run]["ideal"]["this"] for run in rows}

print(f"{'':<15}{'drawn from the data':^24}{'fixed run':^24}{'ideal':^8}"
      f"{'flawed run':^26}{'ideal':^8}")  # fmt: skip
for name, (low, middle, high) in usual.items():
    print(f"{name:<15}{middle:>7.3f} [{low:.3f}, {high:.3f}]", end="")
    for run in rows:
        value, start, stop = (found[run][name][key] for key in ("value", "low", "high"))
        print(f"{value:>9.3f} [{start:.3f}, {stop:.3f}]{of_ideal[run][name]:>7.3f}", end="")
    print()

# %% [markdown]
# The error of `mean_recovery` can be had by hand. It is the slope of the labels' mean brightnesses
# $g_l$ in the samples on those in the data, $d_l$, and $g_l$ is a mean of $n_l$ pictures whose
# brightness has the standard deviation $\tau_l$:
#
# $$\mathrm{slope} = \frac{\sum_l g_l d_l}{\sum_l d_l^2}, \qquad
#   \mathrm{error}^2 = \frac{\sum_l d_l^2\, \tau_l^2 / n_l}{(\sum_l d_l^2)^2} .$$

# %%
d, tau = np.array([(group.mean(), group.std()) for group in by_label]).T
error = np.sqrt(np.sum(d**2 * tau**2 / counts)) / np.sum(d**2)
recovery = found["fixed"]["mean_recovery"]
missing = (1 - recovery["value"]) ** 2 * (untold_at_T - told_at_T)
print(f"d = {d.round(2)}, tau = {tau.round(2)}, n = {counts}")
print(f"error by hand {error:.4f}, of the draws {np.std(perfect['mean_recovery']):.4f}")
print(f"95 %: +- {1.96 * error:.3f}; the run's interval, "
      f"+- {(recovery['high'] - recovery['low']) / 2:.3f}")  # fmt: skip
print(f"the fixed run is {(1 - recovery['value']) / error:.1f} errors below 1")
print(f"what is missing would add to loss_at_T: {missing:.3f}")

# %%
figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
histogram = {run: results[run]["histogram"] for run in rows}
edges = histogram["fixed"]["edges"]
axes.stairs(histogram["fixed"]["data"], edges, fill=True, color=theme.data)
for run in rows:
    axes.stairs(histogram[run]["ideal_this"], edges, baseline=None, color=COLOUR[run], ls=":")
    axes.stairs(histogram[run]["samples"], edges, baseline=None, color=COLOUR[run], lw=2.2)
axes.text(-0.99, 0.04, "data")
axes.text(-0.97, 0.74, "fixed run", color=COLOUR["fixed"])
axes.text(0.22, 1.45, "flawed run", color=COLOUR["flawed"])
axes.text(0.97, 1.5, "dotted: ideal denoisers,\nsame recipe and noise", ha="right", va="center")
axes.set(title="The flawed run makes no dark and no bright pictures", ylabel="density",
         xlabel="mean brightness of a picture (-1 black, 1 white)", xlim=(-1, 1))  # fmt: skip
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# - **`std_ratio`**, spread over the data's. Fixed: 0.97, as draws from the data have it. Its ideal
#   has 0.93 in the same noise; to be above the ideal is not to be better, both are 512 pictures.
#   Flawed: 0.49, far from 1 and near its own ideal of 0.43. The fault is the recipe's, and longer
#   training would not mend it.
# - **`wasserstein1`**, the distance of the two distributions. It is never 0: perfect draws are
#   0.023 away. Fixed 0.033, flawed 0.274.
# - **`mean_recovery`**, the part of the labels' mean brightness that comes through. Flawed: none,
#   its interval holds 0. Fixed: 0.74, which is 4 errors below 1, and its ideal has 0.94 in the same
#   noise. So chance in 512 samples does not explain it; this network makes too little of the label.
#   `loss_at_T` could not have shown that: a quarter of the labels' part missing adds 0.007, less
#   than its error. Whether the recipe or this one training is to blame, no interval here says, for
#   they know of the samples only: run it again with `--config.seed=1`.
#
# ## What a broken run looks like
#
# The same questions for both runs:


# %%
def answers(name, untouched, least, untold):
    """Of a run, given the losses by band of an output of 0 and of the ideal, and one at T."""
    table, found_here = column[name], found[name]
    numbers = np.concatenate([np.ravel(values) for values in table.values()])
    return {
        "every number is finite": np.isfinite(numbers).all(),
        "the learning rate is as configured": np.allclose(table["learning_rate"], expected_rate),
        "the gradient is not clipped in the end": table["grad_norm"][-10:].max() < 1,
        "every band is below an output of 0": np.all(last[name] < untouched),
        "no band is below its floor": np.all(last[name] > least),
        "loss_at_T is below that without a label": at_T[name][-1].mean() < untold,
        "SNR(T) is 0": schedules.snr(schedule[name])[-1] == 0,
        "std_ratio's interval holds 1": found_here["std_ratio"]["high"] > 1,
        "mean_recovery's interval is above 0": found_here["mean_recovery"]["low"] > 0,
    }


flawed_least = by_band(flawed_floor * schedule["flawed"].alpha[1:] ** 2)
answer = {
    "fixed": answers("fixed", by_band(nothing), by_band(floor), untold_at_T),
    "flawed": answers("flawed", np.ones(10), flawed_least, snr_T * untold_at_T),
}
print(f"{'':<42}fixed   flawed")
for question in answer["fixed"]:
    yes = ["yes" if answer[name][question] else "NO" for name in rows]
    print(f"{question:<42}{yes[0]:<8}{yes[1]}")

# %% [markdown]
# The flawed run trains without a fault. Nothing in `metrics.jsonl` can show a start at the wrong
# SNR, because training never starts anywhere: look at the schedule, and at the samples.
#
# So, when a run looks odd:
#
# - `loss` is `NaN` and `loss_at_T` null: it has diverged. Lower the learning rate. Samples that are
#   not finite are refused by the statistics.
# - `grad_norm` above the clip to the end: every step is clipped. The learning rate is too high, or
#   the clip too low for this network.
# - A band stays at the loss of an output of 0: that level is not learnt. Does the loss weight reach
#   it?
# - A band is below its floor over many rows: the loss is not the plain one, or the floor is that of
#   other data.
# - `loss_at_T` is 0: the loss weight is 0 at $T$.
# - `loss_at_T` stays at the variance over all labels: at $T$ no label is used. It is early, or the
#   labels are lost.
# - `loss_at_T` is small, and the prediction is eps: that says nothing yet. Divide it by SNR(T).
# - null in `loss_by_level`: no picture fell in that band, for `log_every` times `batch_size` is
#   small.
# - `steps_per_second` falls: other work on the machine, or slow data.
# - `std_ratio` is well below 1, and so is its ideal: the recipe. Well below its ideal: the network.
#
# ## What this notebook claims

# %%
close = np.testing.assert_allclose
assert len(steps) == 50 and all(np.array_equal(column[name]["step"], steps) for name in rows)
assert end["flawed"] < end["fixed"] / 2
printed = [0.148, 0.315, 0.277]
close(last["fixed"][[8, 9, 0]], printed, atol=6e-4)
close(last["fixed"][8:] / by_band(floor)[8:], [1.2, 1.1], atol=0.04)
assert np.all(by_band(on_new)[8:] < 1.15 * by_band(floor)[8:])
assert np.all(by_band(floor)[:7] < 0.0075) and np.all(last["fixed"][:7] < by_band(on_new)[:7])
assert last["fixed"][7] > by_band(on_new)[7] > by_band(floor)[7]
assert round(1000 * 32 / len(images)) == 8
first_band = column["fixed"]["loss_by_level"][:, 0].reshape(5, 10).mean(axis=1)
assert np.all(np.diff(first_band) < 0)

close([square, untold_at_T, told_at_T], [0.467, 0.467, 0.357], atol=6e-4)
close([told[-1], hidden[-1]], [told_at_T, untold_at_T], rtol=0.01)  # the few stand for all
close(spread.std() / np.sqrt(32), 0.05, atol=0.005)
close(excess[:2].mean(), square - told_at_T, atol=0.02)
close(square - told_at_T, 0.11, atol=5e-3)
assert excess[-1].mean() < 0.04 < excess[:4].mean(axis=1).min()
close(at_T["flawed"][-1].mean(), 0.0014, atol=5e-5)
close(snr_T, 0.0047, atol=5e-5)
in_x0 = {name: loss / snr_T for name, loss in eps_losses.items()}
close(in_x0["flawed run, last fifth"], 0.30, atol=5e-3)
close(in_x0["x0_hat the label's mean"], 0.36, atol=5e-3)
close(in_x0["ideal denoiser"], 0.16, atol=5e-3)
close(alpha_T, 0.068, atol=5e-4)

for name in rows:
    close(column[name]["learning_rate"], expected_rate, rtol=1e-6)
assert np.isclose(expected_rate[0], 0.95 * 3e-3) and np.isclose(expected_rate[-1], 3e-3 / 20, 1e-2)

ratios = [(found[name]["std_ratio"]["value"], of_ideal[name]["std_ratio"]) for name in rows]
close(ratios, [[0.97, 0.93], [0.49, 0.43]], atol=5e-3)
close([found[name]["wasserstein1"]["value"] for name in rows], [0.033, 0.274], atol=6e-4)
close(usual["wasserstein1"][1], 0.023, atol=6e-4)
assert usual["std_ratio"][0] < found["fixed"]["std_ratio"]["value"] < usual["std_ratio"][2]
assert found["flawed"]["mean_recovery"]["low"] < 0 < found["flawed"]["mean_recovery"]["high"]
close([recovery["value"], of_ideal["fixed"]["mean_recovery"]], [0.74, 0.94], atol=5e-3)
close((1 - recovery["value"]) / error, 4, atol=0.1)
close(error, np.std(perfect["mean_recovery"]), rtol=0.1)
close((recovery["high"] - recovery["low"]) / 2, 1.96 * error, rtol=0.15)
close(missing, 0.007, atol=5e-4)
assert missing < excess[-1].std(ddof=1) / np.sqrt(10)

assert all(answer["fixed"].values())
assert list(answer["flawed"].values()) == 6 * [True] + 3 * [False]  # of training; of sampling
