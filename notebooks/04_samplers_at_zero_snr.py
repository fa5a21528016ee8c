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
# # 4. Samplers at zero SNR: what it costs not to start there
#
# With zero terminal SNR, $\sigma/\alpha$ is infinite at $T$ and $\log(\alpha/\sigma)$ is
# $-\infty$. Euler, Heun and DPM-Solver++ are usually written in these two, so that programs patch
# $\bar\alpha_T$ to $2^{-24}$. This notebook takes the first step of each solver without the patch,
# draws what the patch costs, compares with PyTorch's `diffusers`, and measures how accurate each
# solver is along the rest of the path.
#
# Sources: Lin et al., [arXiv 2305.08891](https://arxiv.org/abs/2305.08891); Karras et al.,
# [2206.00364](https://arxiv.org/abs/2206.00364); Lu et al.,
# [2211.01095](https://arxiv.org/abs/2211.01095). That each rule has a limit at $T$ is worked out in
# the docstrings of `zsnr_jax.samplers`.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from zsnr_jax import samplers, schedules, timesteps

fixed = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
SOLVERS = {
    "DDIM, Euler": samplers.ddim(),
    "DDPM, Euler ancestral": samplers.ddpm(),
    "Heun": samplers.heun(),
    "DPM-Solver++(2M)": samplers.dpmpp_2m(),
    "2M SDE": samplers.dpmpp_2m_sde(),
}
COLOURS = dict(zip(SOLVERS, ["#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7"]))

# %% [markdown]
# ## The first step, from T itself
#
# Nothing here divides by $\alpha$. What enters is the ratio $r = \sigma_s \alpha / (\sigma
# \alpha_s)$, which is 0 in a step from $T$, and every rule is
#
# $$x_s = \alpha_s\, \hat{x}_0 + \mathrm{kept}\; \hat\epsilon + \mathrm{correction}\,
# (\hat{x}_0' - \hat{x}_0) + \mathrm{noise}\; z,$$
#
# where $\hat{x}_0'$ is the estimate at the end of the step for Heun, and that of the last step for
# 2M (with the sign turned). These are the numbers of the first step, from level 1000 to 900, the
# first of ten:

# %%
levels = timesteps.make_timesteps("trailing", 1000, 10)
print(f"{'':<24}{'alpha_s':>9}{'kept':>9}{'correction':>12}{'noise':>9}")
first = {}
for name, sampler in SOLVERS.items():
    path = samplers.coefficients(sampler, fixed, levels)
    rule = path.rule
    kept = {"Heun": path.sigma_next}.get(name, getattr(rule, "kept", rule))
    correction = getattr(rule, "correction", 0 * path.noise)
    first[name] = [float(x[0]) for x in (path.alpha_next, kept, correction, path.noise)]
    print(f"{name:<24}{first[name][0]:>9.4f}{first[name][1]:>9.4f}"
          f"{first[name][2]:>12.4f}{first[name][3]:>9.4f}")  # fmt: skip

# %% [markdown]
# All are finite. DDPM and the SDE keep nothing of $x_T$; 2M has no last estimate to lean on; Heun
# takes the mean of the two estimates.
#
# ## What 2^-24 costs
#
# Take two-valued data, 1 in seven cases of ten and -1 in the others, and the network that is exact
# for them. At $T$ it says the mean, 0.4, whatever its input. Now give the solver a small
# $\bar\alpha_T$ in place of 0, in the variables that are usual elsewhere, and see how far its first
# step lands from the limit.


# %%
def x0_hat(x, level):
    """The exact estimate of the two-valued data."""
    alpha, sigma = np.float64(fixed.alpha[level]), np.float64(fixed.sigma[level])
    return np.tanh(alpha * x / sigma**2 + np.log(0.7 / 0.3) / 2)


rng = np.random.default_rng(0)
x_T, z = rng.standard_normal((2, 4096))
s = levels[1]
alpha_s, sigma_s = np.float64(fixed.alpha[s]), np.float64(fixed.sigma[s])


def patched(alpha_bar):
    """Each solver's first step with alpha_bar in place of 0."""
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    r = sigma_s * alpha / (sigma * alpha_s)
    D = alpha * x_T + sigma * 0.4  # x0_hat from the network's v, which is -0.4
    euler = sigma_s / sigma * x_T + alpha_s * (1 - r) * D
    noisy = sigma_s / sigma * r * x_T + alpha_s * (1 - r**2) * D + sigma_s * np.sqrt(1 - r**2) * z
    in_sigma = euler + alpha_s * (1 - 1 / r) * (D - x0_hat(euler, s)) / 2
    return {"Euler, 2M": euler, "Euler ancestral, 2M SDE": noisy, "Heun in sigma/alpha": in_sigma}


at_0 = alpha_s * 0.4 + sigma_s * x_T
exact = {
    "Euler, 2M": at_0,
    "Euler ancestral, 2M SDE": alpha_s * 0.4 + sigma_s * z,
    "Heun in sigma/alpha": alpha_s * (0.4 + x0_hat(at_0, s)) / 2 + sigma_s * x_T,
}
sizes = 2.0 ** np.arange(-40, -11)
errors = {
    name: [np.sqrt(np.mean((patched(size)[name] - exact[name]) ** 2)) for size in sizes]
    for name in exact
}

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for (name, error), colour in zip(errors.items(), ["#0072b2", "#cc79a7", "#d55e00"]):
    axes.loglog(sizes, error, color=colour)
    place = 3 if "Heun" in name else 20
    axes.annotate(name, (sizes[place], error[place]), (6, 6 if "Heun" in name else -14),
                  textcoords="offset points", color=colour)  # fmt: skip
axes.axvline(2.0**-24, color="#999999", lw=1)
axes.annotate("the usual patch, 2^-24", (2.0**-24, 30), (5, 0), textcoords="offset points",
              color="#666666", va="center")  # fmt: skip
axes.set(title="A smaller patch mends Euler and ruins Heun", xlabel="alpha_bar put in place of 0",
         ylabel="error of the first step (rms)")  # fmt: skip
axes.spines[["top", "right"]].set_visible(False)
plt.show()
at_patch = {name: error[list(sizes).index(2.0**-24)] for name, error in errors.items()}
for name, error in at_patch.items():
    print(f"{name:<25} {error:.1e}")

# %% [markdown]
# For Euler and 2M the patch costs little. The solvers with noise keep a trace of $x_T$ that should
# be gone. Heun in $\sigma/\alpha$ has no limit: its correction is multiplied by $1/r$, so that a
# better patch makes it worse. In $u = \alpha/\sigma$, where the ODE reads
# $\mathrm{d}(x/\sigma)/\mathrm{d}u = \hat{x}_0$, Heun's rule is regular at $T$; that is the one
# here.
#
# ## Beside diffusers
#
# The same starts, noise and exact denoiser in `diffusers`: where it computes what its papers say,
# the two agree to float32 rounding, which the tests hold. Here is where they do not, with the
# largest of 24 samples' errors against the closed form (data N(0.9, 0.3^2), trailing, zero SNR).

# %%
here = Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "tests" / "golden").exists())
golden = json.loads((root / "tests" / "golden" / "diffusers_samplers.json").read_text())
rows = [row for row in golden["deviations"]
        if row["closed_form"] == "limit" and row["data"] == "gaussian"]  # fmt: skip


def show(error):
    return "nan" if error is None else f"{error:.0e}"


versions = golden["versions"]
print(f"diffusers {versions['diffusers']}, torch {versions['torch']}\n")
print(f"{'class':<33}{'solver':<17}{'S':>3}  {'first step':^16} {'sample':^16}  closer    cause")
print(f"{'':<53}  {'theirs':>7} {'ours':>7}  {'theirs':>7} {'ours':>7}")
for row in rows:
    step, end = row["first_update"], row["end"]
    print(f"{row['scheduler']:<33}{row['solver']:<17}{row['num_steps']:>3}  "
          f"{show(step['diffusers']):>7} {show(step['zsnr_jax']):>7}  "
          f"{show(end['diffusers']):>7} {show(end['zsnr_jax']):>7}  "
          f"{end['closer']:<9} {row['cause']}")  # fmt: skip
print()
for cause in dict.fromkeys(row["cause"] for row in rows):
    print(f"{cause}: {golden['causes'][cause]}")

# %% [markdown]
# The mean of the samples says it shortest. The data's is 0.9.

# %%
for row in rows:
    if row["mean"] and row["mean"]["diffusers"] is not None:
        print(f"{row['scheduler']:<33} S = {row['num_steps']:<3} theirs "
              f"{row['mean']['diffusers']:.4f}, ours {row['mean']['zsnr_jax']:.4f}")  # fmt: skip

# %% [markdown]
# ## How accurate a solver is
#
# A sampler here is two pure functions, `rule` and `step`. On Gaussian data the exact denoiser is
# affine, and so is every step; carrying the coefficients of $x_T$ and of each fresh $z$ along, in
# float64, gives the law of the samples without one random number.

# %%
MEAN, STD = 0.9, 0.3


def law(sampler, alpha, sigma, mean=0.0, std=1.0):
    """The mean and deviation of samples from x_T ~ N(mean, std^2), over the S + 1 listed levels."""
    S = len(alpha) - 1
    path = samplers.Path(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    noise, rule = sampler.rule(path)

    def denoise(form, i):
        variance = sigma[i] ** 2 + (alpha[i] * STD) ** 2
        x0 = STD**2 * alpha[i] / variance * form
        x0[0] += MEAN * sigma[i] ** 2 / variance
        return x0, (form - alpha[i] * x0) / sigma[i]

    form = np.zeros(2 + S)  # a number, and the coefficients of x_T and of z_1 .. z_S
    form[:2] = mean, std
    memory = np.zeros_like(form)
    for i in range(S - 1):
        at = rule if not isinstance(rule, tuple) else type(rule)(*(x[i] for x in rule))
        at = at[i] if isinstance(at, np.ndarray) else at
        c = samplers.Coefficients(i, i + 1, alpha[i + 1], sigma[i + 1], noise[i], at)
        form, memory = sampler.step(denoise(form, i), memory, c, denoise)
        form[2 + i] += noise[i]
    x0, eps = denoise(form, S - 1)
    form = alpha[-1] * x0 + sigma[-1] * eps
    return form[0], np.sqrt(np.sum(form[1:] ** 2))


def listed(schedule, levels):
    levels = np.append(levels, 0)
    return np.float64(schedule.alpha[levels]), np.float64(schedule.sigma[levels])


print("mean of the samples (0.9 in the data), trailing steps")
print(f"{'S':<24}" + "".join(f"{S:>9}" for S in (5, 7, 10, 15, 30, 50, 61)))
means = {}
for name, sampler in SOLVERS.items():
    means[name] = [
        law(sampler, *listed(fixed, timesteps.make_timesteps("trailing", 1000, S)))[0]
        for S in (5, 7, 10, 15, 30, 50, 61)
    ]
    print(f"{name:<24}" + "".join(f"{mean:>9.5f}" for mean in means[name]))

# %% [markdown]
# The mean is exact at every number of steps. What is left is an error of the spread. Within a path,
# between two levels that are both noisy, it shrinks with the order that each solver is known for.
# Over a whole trailing path it does not: the last jump, from level $T/S$ to clean data, can only be
# the network's estimate there, which has less spread than the data. That loss is proportional to
# $\sigma^2$, hence to $T/S$ on this schedule: first order, whatever the solver.

# %%
STEPS = np.array([16, 32, 64, 128, 256, 512])
betas = np.linspace(np.sqrt(0.00085), np.sqrt(0.012), 4096) ** 2 * 1000 / 4096
fine = schedules.rescale_zero_terminal_snr(schedules.from_betas(betas))  # S divides its T


def error_within(sampler, S):
    ratio = np.exp(np.linspace(-2, 1, S + 1))
    alpha, sigma = ratio / np.sqrt(1 + ratio**2), 1 / np.sqrt(1 + ratio**2)
    true = np.sqrt((alpha * STD) ** 2 + sigma**2)
    return abs(law(sampler, alpha, sigma, alpha[0] * MEAN, true[0])[1] - true[-1])


def error_over(sampler, S, spacing):
    return abs(
        law(sampler, *listed(fine, timesteps.make_timesteps(spacing, 4096, S, fine)))[1] - STD
    )


def jump(S):
    alpha, sigma = np.float64(fine.alpha[4096 // S]), np.float64(fine.sigma[4096 // S])
    return STD - STD / np.sqrt(1 + (sigma / (alpha * STD)) ** 2)


within = {n: [error_within(f, S) for S in STEPS] for n, f in SOLVERS.items()}
whole = {n: [error_over(f, S, "trailing") for S in STEPS] for n, f in SOLVERS.items()}
even = {n: [error_over(f, S, "uniform_logsnr") for S in STEPS] for n, f in SOLVERS.items()}
jumps = [jump(S) for S in STEPS]

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained")
titles = ("Between noisy levels", "A whole trailing path", "A whole path, even in log SNR")
for ax, errors_of, title in zip(axes, (within, whole, even), titles):
    for name, error in errors_of.items():
        ax.loglog(STEPS, error, color=COLOURS[name], marker="o", ms=3, label=name)
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel("number of steps S")
    ax.spines[["top", "right"]].set_visible(False)
axes[1].loglog(STEPS, jumps, color="#666666", ls="--", lw=1.2, label="the last jump alone")
axes[0].set_ylabel("error of the standard deviation")
axes[0].set_xticks(STEPS, [str(S) for S in STEPS])
axes[0].minorticks_off()
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6,
              frameon=False, fontsize=9)  # fmt: skip
plt.show()


def slope(error):
    return -np.polyfit(np.log(STEPS[2:]), np.log(error[2:]), 1)[0]


print(f"{'measured order, S = 64 .. 512':<30}{'within':>8}{'trailing':>10}")
orders = {name: (slope(within[name]), slope(whole[name])) for name in SOLVERS}
for name, (inside, over) in orders.items():
    print(f"{name:<30}{inside:>8.2f}{over:>10.2f}")
print(f"{'the last jump alone':<30}{'':>8}{slope(jumps):>10.2f}")

# %% [markdown]
# So with trailing steps a second-order solver gains little: its error is the last jump's. Levels
# even in the log SNR go closer to clean data before they jump, and there a second-order solver
# earns its name, until only the jump from level 1 is left. (Where a curve dips, errors of the path
# and of the jump cancel, having opposite signs; so does 2M SDE's on trailing steps, in part.)
#
# ## What this notebook claims

# %%
for name, numbers in first.items():
    assert np.all(np.isfinite(numbers)), name
np.testing.assert_allclose([first["DDPM, Euler ancestral"][1], first["2M SDE"][1]], 0)
assert at_patch["Euler, 2M"] < 1e-3 < at_patch["Euler ancestral, 2M SDE"]
heun = errors["Heun in sigma/alpha"]
assert heun[0] > 100 * heun[16] and errors["Euler, 2M"][0] < errors["Euler, 2M"][16]
assert all(row["end"]["closer"] == "zsnr_jax" for row in rows)
for name in SOLVERS:
    np.testing.assert_allclose(means[name], MEAN, atol=1e-6)
    second = name in ("Heun", "DPM-Solver++(2M)", "2M SDE")
    assert abs(orders[name][0] - (2 if second else 1)) < 0.15, name
for name in ("Heun", "DPM-Solver++(2M)"):
    assert abs(orders[name][1] - 1) < 0.15
    np.testing.assert_allclose(whole[name][-1], jumps[-1], rtol=0.2)
    assert even[name][2] < whole[name][2] / 10
