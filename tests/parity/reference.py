"""What the textbooks' formulas give on the cases, in NumPy float64, from SNR = 0 itself."""

import numpy as np
import oracles
from parity.cases import DATA, SOLVERS, Case, posterior_mean, starts
from scipy.special import ndtr


def first_update(case: Case, levels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The limit of a solver's first step at SNR = 0.

    alpha_s E[x0] + sigma_s x_T, and for solvers that leave nothing of x_T, with fresh noise for it.
    For Heun, whose first step is not of first order, the exact flow.
    """
    if case.solver == "heun":
        return flow(case, levels[1])
    abar = case.alphas_cumprod[levels[1]]
    fresh = SOLVERS[case.solver].fresh_noise
    return np.sqrt(abar) * DATA[case.data].mean + np.sqrt(1 - abar) * (noise if fresh else starts())


def flow(case: Case, level: int) -> np.ndarray:
    """Where the probability-flow ODE takes x_T, in closed form.

    On a line it keeps every state's quantile, so that the answer is the inverse of one distribution
    function after another, here by bisection.
    """
    target = _below(case, -1, starts())
    low, high = np.full(target.shape, -10.0), np.full(target.shape, 10.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = np.where(_below(case, level, middle) < target, [middle, high], [low, middle])
    return low


def _below(case: Case, level: int, x: np.ndarray) -> np.ndarray:
    """The probability of an x_t below x."""
    abar, data = case.alphas_cumprod[level], DATA[case.data]
    spread = np.sqrt(abar * data.std**2 + 1 - abar)
    standard = (x - np.sqrt(abar) * np.array(data.means)[:, None]) / spread
    return np.array(data.weights) @ ndtr(standard)


def end(case: Case, levels: np.ndarray, noise: dict[int, np.ndarray]) -> np.ndarray:
    """The samples that a solver's published formulas give from zero terminal SNR to clean data.

    Args: levels: the listed ones; noise: [24] for each of them.
    """
    if case.solver == "heun":
        return flow(case, 0)
    abar, step = case.alphas_cumprod, _dpmpp if case.solver.startswith("dpmpp") else _first_order
    x = first_update(case, levels, noise[levels[0]])
    x0_hats = [np.full_like(x, DATA[case.data].mean)]
    visited = [abar[level] for level in levels]
    for i in range(1, len(levels)):
        alpha, sigma = np.sqrt(visited[i]), np.sqrt(1 - visited[i])
        x0_hats.append(posterior_mean(x, alpha, sigma, DATA[case.data], np.exp))
        if i < len(levels) - 1:
            x = step(case, visited[: i + 2], x, x0_hats, noise[levels[i]])
    return x0_hats[-1]


def _first_order(case, visited, x, x0_hats, noise):
    """Eqs. 21-22 of arXiv 2305.08891."""
    eta = float(SOLVERS[case.solver].fresh_noise)
    of_x0, of_eps, of_noise = oracles.ddim_step(visited[-2], visited[-1], eta)
    eps_hat = (x - np.sqrt(visited[-2]) * x0_hats[-1]) / np.sqrt(1 - visited[-2])
    return of_x0 * x0_hats[-1] + of_eps * eps_hat + of_noise * noise


def _dpmpp(case, visited, x, x0_hats, noise):
    """DPM-Solver++(2M) and its SDE, arXiv 2211.01095, over lambda = log(alpha / sigma)."""
    with np.errstate(divide="ignore"):
        lambdas = np.log(np.divide(visited, np.subtract(1, visited))) / 2
    h, h_last = np.diff(lambdas)[:-3:-1]  # the last is infinite in the second step from SNR = 0
    D = x0_hats[-1] + h / (2 * h_last) * (x0_hats[-1] - x0_hats[-2])
    alpha, (sigma_t, sigma_s) = np.sqrt(visited[-1]), np.sqrt(np.subtract(1, visited[-2:]))
    if not SOLVERS[case.solver].fresh_noise:
        return sigma_s / sigma_t * x - alpha * np.expm1(-h) * D
    fresh = -np.expm1(-2 * h)
    return sigma_s / sigma_t * np.exp(-h) * x + alpha * fresh * D + sigma_s * np.sqrt(fresh) * noise
