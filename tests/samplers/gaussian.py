"""A sampler's own rule and step in NumPy float64, and its exact law on Gaussian data.

For data N(MEAN, STD^2) the exact denoiser is affine, hence so is every step, and each state is a
number plus a linear form in x_T and in the fresh noise of the steps. Carrying that form's row of
coefficients, [the number, of x_T, of z_1, ..., of z_S], gives the law without one random number.
"""

from typing import Any

import jax
import numpy as np
import oracles

from zsnr_jax import samplers

MEAN, STD = 0.9, 0.3  # of the data


def run(sampler, alpha, sigma, x, denoise, z) -> Any:
    """Every step of a sampler, as `samplers.integrate` takes them.

    Args: alpha, sigma: float64 [S + 1], at every listed level and the final one; denoise: (x, place
      in that list) -> x0_hat; z: [S, ...], the fresh noise.
    """
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    path = samplers.Path(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    noise, rule = sampler.rule(path)
    place = np.arange(len(noise))  # stands for the level
    table: Any = samplers.Coefficients(place, place + 1, path[2], path[3], noise, rule)

    def estimate(x, place):
        x0_hat = denoise(x, place)
        return x0_hat, (x - alpha[place] * x0_hat) / sigma[place]

    memory = jax.tree.map(np.float64, sampler.init(x))
    for i in place[:-1]:
        c = jax.tree.map(lambda column, i=i: column[i], table)
        x, memory = sampler.step(estimate(x, i), memory, c, estimate)
        x = x + c.noise * z[i]
    x0_hat, eps_hat = estimate(x, place[-1])
    return alpha[-1] * x0_hat + sigma[-1] * eps_hat


def law(sampler, alpha, sigma, start=(0.0, 1.0)) -> tuple[float, float]:
    """The mean and deviation of what `run` makes of x_T ~ N(start), start being both of them."""

    def denoise(x, place):
        at_0, at_1 = (
            oracles.gaussian_x0(x_t, alpha[place], sigma[place], MEAN, STD) for x_t in (0.0, 1.0)
        )
        x0_hat = (at_1 - at_0) * x
        x0_hat[0] += at_0
        return x0_hat

    of_number, of_x_T, *of_z = np.eye(1 + len(alpha))
    form = run(sampler, alpha, sigma, start[0] * of_number + start[1] * of_x_T, denoise, of_z)
    return form[0], np.sqrt(np.sum(form[1:] ** 2))


def data_std(alpha, sigma) -> Any:
    """The exact deviation of x_t."""
    return np.sqrt((alpha * STD) ** 2 + sigma**2)


def uniform_path(S: int, start=-2.0, end=1.0) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma, [S + 1], uniform in log(alpha / sigma)."""
    ratio = np.exp(np.linspace(start, end, S + 1))
    return ratio / np.sqrt(1 + ratio**2), 1 / np.sqrt(1 + ratio**2)


def order(error_of) -> float:
    """The slope of the error of S steps against 1/S, both as logarithms, for S = 64..512."""
    steps = np.array([64, 128, 256, 512])
    return -np.polyfit(np.log(steps), np.log([abs(error_of(S)) for S in steps]), 1)[0]
