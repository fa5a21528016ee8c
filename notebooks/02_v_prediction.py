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
# # 2. v is a rotation
#
# With zero terminal SNR the last level holds noise and nothing else, and a network that is asked
# for the noise has no more to do there than to return its input. The paper's second fix is to
# ask for
#
# $$v = \alpha_t\, \epsilon - \sigma_t\, x_0 .$$
#
# This notebook shows what that quantity is: the picture and the noise, seen after a rotation. From
# this follow its value at $T$, how its errors reach the picture, and which loss weights suit it.
#
# Source: Lin et al., [arXiv 2305.08891](https://arxiv.org/abs/2305.08891), section 3.2;
# v-prediction is from Salimans and Ho, [arXiv 2202.00512](https://arxiv.org/abs/2202.00512).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from zsnr_jax import losses, predictions, schedules
from zsnr_jax.errors import UsageError

flawed = schedules.make_schedule("scaled_linear")
mended = schedules.make_schedule("scaled_linear", zero_terminal_snr=True)
T = mended.num_steps
alpha, sigma = mended.alpha[1:], mended.sigma[1:]  # the levels 1..T, so that the last one is [-1]

rng = np.random.default_rng(0)  # one small picture and its noise for each of the T levels
x0 = rng.uniform(-1, 1, (T, 64)).astype(np.float32)
eps = rng.standard_normal((T, 64)).astype(np.float32)

# %% [markdown]
# ## Two legs of a rotation
#
# Since $\alpha^2 + \sigma^2 = 1$, every level is an angle, $\phi = \mathrm{atan2}(\sigma, \alpha)$,
# and
#
# $$x_t = \cos\phi\; x_0 + \sin\phi\; \epsilon, \qquad v = -\sin\phi\; x_0 + \cos\phi\; \epsilon .$$
#
# So $(x_t, v)$ are the axes $(x_0, \epsilon)$ turned by $\phi$. A rotation keeps lengths, and it is
# undone by turning back, with the same two numbers and no division:
#
# $$x_0 = \cos\phi\; x_t - \sin\phi\; v, \qquad \epsilon = \sin\phi\; x_t + \cos\phi\; v .$$

# %%
angle = np.arctan2(sigma, alpha)
x_t = predictions.add_noise(x0, eps, alpha, sigma)
v = predictions.velocity(x0, eps, alpha, sigma)
x0_hat, eps_hat = predictions.to_x0_eps(v, x_t, alpha, sigma, "v")

lengths = np.sum(x_t**2 + v**2, axis=1) / np.sum(x0**2 + eps**2, axis=1)
there_and_back = max(np.max(np.abs(x0_hat - x0)), np.max(np.abs(eps_hat - eps)))
print(
    f"squared length of (x_t, v) over that of (x0, eps): {lengths.min():.6f}..{lengths.max():.6f}"
)
print(f"largest error after turning there and back, of all levels: {there_and_back:.1e}")

# %%
blue, orange, green = "#0072b2", "#d55e00", "#007a5a"
figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharey=True)
for axes, level in zip(panels, (200, 500, T)):
    phi = angle[level - 1]
    for name, tip, label, color in (
        ("$x_0$", (1, 0), (0.88, 0.18), "0.55"),
        (r"$\epsilon$", (0, 1), (0.17, 0.84), "0.55"),
        ("$x_t$", (np.cos(phi), np.sin(phi)), None, blue),
        ("$v$", (-np.sin(phi), np.cos(phi)), None, orange),
    ):
        x, y = label or (1.2 * tip[0], 1.2 * tip[1])
        axes.quiver(0, 0, *tip, color=color, width=0.016, angles="xy", scale_units="xy", scale=1)
        axes.text(x, y, name, color=color, fontsize=14, ha="center", va="center")
    axes.set(title=f"level {level}: turned by {np.degrees(phi):.0f} degrees", aspect="equal")
    axes.set(xlim=(-1.45, 1.45), ylim=(-0.3, 1.45), xlabel="part of the picture")
panels[0].set(ylabel="part of the noise")
plt.show()

# %% [markdown]
# On the right, $x_t$ lies on $\epsilon$ and $v$ on $-x_0$.
#
# ## v is the speed of the turn
#
# Differentiate $x_t$ in the angle, picture and noise held fixed: cosine becomes minus sine, sine
# becomes cosine, and $v$ stands there. That is why it is called a velocity. Its own derivative is
# $-x_t$. To move from level $t$ to level $s$ is then to turn by the difference of their angles,
#
# $$x_s = \cos(\phi_s - \phi_t)\; x_t + \sin(\phi_s - \phi_t)\; v,$$
#
# which is DDIM's step, if the network's $v$ is put in.

# %%
along = (jnp.asarray(angle),), (jnp.ones(T),)
_, x_t_dot = jax.jvp(lambda phi: predictions.add_noise(x0, eps, jnp.cos(phi), jnp.sin(phi)), *along)
_, v_dot = jax.jvp(lambda phi: predictions.velocity(x0, eps, jnp.cos(phi), jnp.sin(phi)), *along)
print(f"largest difference of d x_t / d phi from v:   {np.max(np.abs(x_t_dot - v)):.1e}")
print(f"largest difference of d v / d phi from -x_t:  {np.max(np.abs(v_dot + x_t)):.1e}")

turn = (np.roll(angle, 100) - angle)[100:, None]  # from each level above 100 to 100 levels below
turned = np.cos(turn) * x_t[100:] + np.sin(turn) * v[100:]
x_s = predictions.add_noise(x0[100:], eps[100:], alpha[:-100], sigma[:-100])
print(f"largest difference of a turn from x_s:        {np.max(np.abs(turned - x_s)):.1e}")

# %% [markdown]
# ## At T it is a quarter turn
#
# There $\alpha = 0$ and $\sigma = 1$, so that $x_T = \epsilon$ and $v_T = -x_0$, to the last bit.
# The paper's text has $v_T = x_0$ at this point; its own Eq. 11, the definition above, has the
# minus. Whoever leaves the minus out gets every first estimate of the picture as its negative.

# %%
print(f"alpha(T) = {alpha[-1]}, sigma(T) = {sigma[-1]}, angle = {angle[-1] / (np.pi / 2):.6f} x 90")
print("x_T == eps:", bool(np.all(x_t[-1] == eps[-1])))
print("v_T == -x0:", bool(np.all(v[-1] == -x0[-1])))
print("v_T ==  x0:", bool(np.all(v[-1] == x0[-1])))

# %% [markdown]
# ## What an error of the output does to the picture
#
# A sampler needs an estimate of both, picture and noise, and makes them from one output:
#
# - from $v$: $\hat x_0 = \alpha x_t - \sigma v$ and $\hat\epsilon = \sigma x_t + \alpha v$;
# - from $x_0$: $\hat x_0$ as it is, and $\hat\epsilon = (x_t - \alpha x_0) / \sigma$;
# - from $\epsilon$: $\hat x_0 = (x_t - \sigma \epsilon) / \alpha$, and $\hat\epsilon$ as it is.
#
# So an error of the output reaches $\hat x_0$ multiplied by $\sigma$, by 1, or by
# $\sigma / \alpha$. Here the factors are measured, as derivatives, level by level.

# %%
to_x0, to_eps = {}, {}
for prediction in predictions.PREDICTIONS:
    _, (d_x0, d_eps) = jax.jvp(
        lambda output: predictions.to_x0_eps(output, x_t, alpha, sigma, prediction),  # noqa: B023
        (v,),
        (jnp.ones_like(v),),
    )
    to_x0[prediction], to_eps[prediction] = np.abs(d_x0[:, 0]), np.abs(d_eps[:, 0])

SHOWN = (1, 250, 500, 750, 900, 990, 999, T)
print("an error of the output is multiplied in x0_hat by, at level")
print(f"{'output':<8}" + "".join(f"{level:>10}" for level in SHOWN))
for prediction, factor in to_x0.items():
    print(f"{prediction:<8}" + "".join(f"{factor[level - 1]:>10.3f}" for level in SHOWN))
print(f"eps on the schedule before the fix, at T: {flawed.sigma[-1] / flawed.alpha[-1]:.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
levels = np.arange(1, T + 1)
for prediction, color in (("eps", orange), ("x0", green), ("v", blue)):
    left.semilogy(levels, to_x0[prediction], color=color, label=f"output {prediction}")
    right.semilogy(levels, to_eps[prediction], color=color)
left.annotate("infinite at T", (T, 2300), (560, 900), color=orange, va="center",
              arrowprops={"arrowstyle": "->", "color": orange})  # fmt: skip
left.set(title="In the picture: eps fails where noise is strong", xlabel="level t")
left.set(ylabel="error's factor in x0_hat", ylim=(1e-4, 6e3))
left.legend(frameon=False, loc="lower right")
right.set(title="In the noise: x0 fails where noise is weak", xlabel="level t")
right.set_ylabel("error's factor in eps_hat", labelpad=6)
plt.show()

# %% [markdown]
# Each of the other two is good at one end. A rotation makes nothing longer, and so an error of $v$
# is nowhere amplified, neither in the picture nor in the noise.
#
# ## eps cannot have zero terminal SNR, v can
#
# At $T$ the target $\epsilon$ is the input itself: any data would do, and $\hat x_0$ is 0/0. There
# is nothing to compute it with, so this library refuses the pair, and says so before anything runs.

# %%
network = lambda x_t, timestep: jnp.full_like(x_t, -0.25)  # noqa: E731
noise = jnp.asarray(eps[:2])
try:
    predictions.make_denoise(network, mended, "eps")
    refusal = ""
except UsageError as error:
    refusal = str(error)
print(refusal)

x0_at_T, eps_at_T = predictions.make_denoise(network, mended, "v")(noise, T)
print(f"\nwith v, a network that returns -0.25 at T estimates x0_hat = {x0_at_T[0, 0]}")

# %% [markdown]
# ## Nothing is lost to rounding
#
# The same factors act on rounding. Below, a perfect output is rounded to float32, or to bfloat16
# as many networks compute in, and turned into $\hat x_0$ in float32. From $v$ the error stays as
# small as the rounding at every level, and at $T$ float32 loses nothing at all.

# %%
rounding = {}
for prediction, output in (("v", v), ("eps", eps)):
    for dtype in (jnp.float32, jnp.bfloat16):
        rounded = jnp.asarray(output).astype(dtype).astype(jnp.float32)
        estimate, _ = predictions.to_x0_eps(rounded, x_t, alpha, sigma, prediction)
        rounding[prediction, dtype.__name__] = np.max(np.abs(estimate - x0), axis=1)
print(f"{'largest error of x0_hat at level':<32}" + "".join(f"{level:>9}" for level in SHOWN[2:]))
for (prediction, dtype), error in rounding.items():
    name = f"from {prediction}, rounded to {dtype}"
    print(f"{name:<32}" + "".join(f"{error[level - 1]:>9.0e}" for level in SHOWN[2:]))

# %% [markdown]
# ## One error, three losses
#
# Because $x_t$ is given, the three estimates of one network have proportional errors:
#
# $$\|\Delta v\|^2 = (\mathrm{SNR} + 1)\, \|\Delta x_0\|^2
#   = (1 + 1 / \mathrm{SNR})\, \|\Delta \epsilon\|^2 .$$
#
# To predict $v$ with a plain squared error is therefore to weight the error of $x_0$ by
# $\mathrm{SNR} + 1$, and a loss weight is a function $w(\mathrm{SNR})$ of the error of $x_0$,
# whatever the network returns. Given the same weight, the three losses agree. The exception is
# $\epsilon$ at $T$: its error is 0 and its weight infinite.

# %%
wrong_v = v + 0.1 * rng.standard_normal(v.shape).astype(np.float32)
wrong_x0, wrong_eps = predictions.to_x0_eps(wrong_v, x_t, alpha, sigma, "v")
outputs = {"v": (wrong_v, v), "x0": (wrong_x0, x0), "eps": (wrong_eps, eps)}
plain, weighted = {}, {}
for prediction, (output, target) in outputs.items():
    plain[prediction] = np.mean((output - target) ** 2, axis=1)
    loss = losses.per_example_loss(
        output, x0, eps, alpha, sigma, prediction, weight=losses.snr_plus_one
    )
    weighted[prediction] = np.asarray(loss)
print("level     squared error of v, x0, eps        loss as one of v, x0, eps")
for level in (1, 250, 500, 750, 900, 990, T):
    errors = "".join(f"{error[level - 1]:>10.1e}" for error in plain.values())
    print(f"{level:<6}{errors}    " + "".join(f"{x[level - 1]:>10.5f}" for x in weighted.values()))

# %% [markdown]
# ## Which weights teach the last level
#
# In terms of $v$, a weight is one multiplier, $\sigma^2 w(\mathrm{SNR})$. Zero terminal SNR adds
# one level, pure noise, and every sample starts there: a weight that is 0 at $T$ leaves out the
# very level that was added. Two do so, and one of them is min-SNR as it is usually written,
# $w = \min(\mathrm{SNR}, 5)$.

# %%
multiplier = {
    name: np.asarray(losses.multiplier(weight, jnp.asarray(alpha), jnp.asarray(sigma), "v"))
    for name, weight in losses.LOSS_WEIGHTS.items()
}
shown = (1, 100, 250, 500, 750, 900, 990, T)
print(f"{'multiplier of the v error':<26}" + "".join(f"{level:>8}" for level in shown))
for name, m in multiplier.items():
    print(f"{name:<26}" + "".join(f"{m[level - 1]:>8.2g}" for level in shown))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
learnt = [name for name, m in multiplier.items() if m[-1] == 1]
unlearnt = [name for name, m in multiplier.items() if m[-1] == 0]
for name, color, dash in zip(learnt, (blue, "#56b4e9", green, blue, green), "--::-"):
    style = {"-": "-", ":": (0, (1, 1.2))}[dash]
    left.plot(levels, multiplier[name], color=color, linestyle=style, label=name)
for name, style in zip(unlearnt, ("--", "-")):
    right.plot(levels, multiplier[name], color=orange, linestyle=style, label=name)
left.set(title="Five weights are 1 at T", xlabel="level t", ylabel="multiplier of the v error")
right.set(title="Two are 0 at T, where every sample starts", xlabel="level t")
left.legend(frameon=False, fontsize=8.5, loc="lower right")
right.legend(frameon=False, fontsize=8.5, loc="upper right")
plt.show()

# %% [markdown]
# ## What this notebook claims

# %%
np.testing.assert_allclose(lengths, 1, rtol=1e-5)
assert there_and_back < 1e-6 and np.max(np.abs(turned - x_s)) < 1e-5
assert np.max(np.abs(x_t_dot - v)) < 1e-5 and np.max(np.abs(v_dot + x_t)) < 1e-5
assert (alpha[-1], sigma[-1]) == (0, 1)
assert np.all(x_t[-1] == eps[-1]) and np.all(v[-1] == -x0[-1]) and np.all(x0_hat[-1] == x0[-1])

np.testing.assert_allclose(to_x0["v"], sigma)
np.testing.assert_allclose(to_x0["x0"], 1)
np.testing.assert_allclose(to_x0["eps"][:-1], sigma[:-1] / alpha[:-1], rtol=1e-6)
assert np.isinf(to_x0["eps"][-1]) and np.isfinite(to_eps["x0"]).all()
assert max(to_x0["v"].max(), to_eps["v"].max()) <= 1

assert "eps-prediction cannot be used with zero terminal SNR" in refusal
assert np.all(x0_at_T == 0.25) and np.all(eps_at_T == noise)
assert rounding["v", "float32"].max() < 1e-6 and rounding["v", "float32"][-1] == 0
assert rounding["eps", "float32"][-2] > 1e-5 and np.isnan(rounding["eps", "float32"][-1])

snr = schedules.snr(mended)[1:]
np.testing.assert_allclose(plain["v"], (snr + 1) * plain["x0"], rtol=1e-3)
np.testing.assert_allclose(plain["v"][:900], ((1 + 1 / snr[:900]) * plain["eps"][:900]), rtol=1e-3)
np.testing.assert_allclose(weighted["x0"], weighted["v"], rtol=1e-3)
np.testing.assert_allclose(weighted["eps"][:900], weighted["v"][:900], rtol=1e-3)
assert unlearnt == ["snr", "min_snr_zero_at_terminal"] and len(learnt) == 5
