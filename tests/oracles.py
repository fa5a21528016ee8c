"""Closed-form truth in NumPy float64, written from the paper's formulas and not from our code.

Everything is in the textbook's alpha_bar, with SNR = abar / (1 - abar), so that it shares neither
parametrisation nor arithmetic with what it judges. Equation and table numbers are those of arXiv
2305.08891.
"""

from fractions import Fraction
from typing import Any

import numpy as np


def table_1_betas(name: str, T: int = 1000) -> np.ndarray:
    """beta_1..beta_T of Table 1; the cosine row over t/T, which is where its numbers come from."""
    if name == "cosine":
        abar = cosine_alphas_cumprod(T)
        return np.minimum(1 - abar[1:] / abar[:-1], 0.999)
    i = (np.arange(1, T + 1) - 1) / (T - 1)
    if name == "linear":
        return 0.0001 * (1 - i) + 0.02 * i
    return (np.sqrt(0.00085) * (1 - i) + np.sqrt(0.012) * i) ** 2


def cosine_alphas_cumprod(T: int = 1000) -> np.ndarray:
    """f(t) / f(0), unclipped, for t = 0..T."""
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return f / f[0]


def algorithm_1(betas: np.ndarray) -> np.ndarray:
    """The paper's Algorithm 1: betas in, betas with zero terminal SNR out."""
    abar_sqrt = np.sqrt(np.cumprod(1 - betas))
    first, last = abar_sqrt[0], abar_sqrt[-1]
    abar_sqrt = abar_sqrt - last
    abar_sqrt = abar_sqrt * first / (first - last)
    abar = abar_sqrt**2
    alphas = np.concatenate([abar[:1], abar[1:] / abar[:-1]])
    return 1 - alphas


def alphas_cumprod(name: str, zero_terminal_snr: bool, T: int = 1000) -> np.ndarray:
    """alpha_bar_1..alpha_bar_T of a schedule of Table 1, flawed or mended."""
    if name == "cosine" and zero_terminal_snr:
        return np.append(cosine_alphas_cumprod(T)[1:-1], 0.0)
    betas = table_1_betas(name, T)
    return np.cumprod(1 - (algorithm_1(betas) if zero_terminal_snr else betas))


def table_2(spacing: str, T: int, S: int) -> list[int]:
    """The rows of Table 2 in exact rational arithmetic, ties to even, noisiest first.

    `leading` is cut to S entries, where the printed arange has more.
    """
    if spacing == "leading":
        return [1 + k * (T // S) for k in range(S)][::-1]
    if spacing == "trailing":
        return [round(Fraction(T) - k * Fraction(T, S)) for k in range(S)]
    if S == 1:
        return [T]
    return [round(1 + k * Fraction(T - 1, S - 1)) for k in range(S)][::-1]


def noised(x0: Any, eps: Any, abar: Any) -> Any:
    """x_t (Eq. 2)."""
    return np.sqrt(abar) * x0 + np.sqrt(1 - abar) * eps


def v_from(x0: Any, eps: Any, abar: Any) -> Any:
    """v (Eq. 11)."""
    return np.sqrt(abar) * eps - np.sqrt(1 - abar) * x0


def x0_eps_from_v(v: Any, x_t: Any, abar: Any) -> tuple[Any, Any]:
    """x0 and eps from v (Eqs. 19 and 17)."""
    return np.sqrt(abar) * x_t - np.sqrt(1 - abar) * v, np.sqrt(abar) * v + np.sqrt(1 - abar) * x_t


def guided(cond: Any, uncond: Any, scale: float, rescale: float) -> np.ndarray:
    """Algorithm 2 for one example, with the n - 1 of torch.std."""
    cond, uncond = np.asarray(cond, np.float64), np.asarray(uncond, np.float64)
    cfg = uncond + scale * (cond - uncond)
    rescaled = cfg * (cond.std(ddof=1) / cfg.std(ddof=1))
    return rescale * rescaled + (1 - rescale) * cfg


def gaussian_x0(x_t: Any, alpha: Any, sigma: Any, mean: float, std: float) -> Any:
    """E[x0 | x_t] for data N(mean, std^2): the exact denoiser. Plain arithmetic, traceable."""
    return (mean * sigma**2 + std**2 * alpha * x_t) / (sigma**2 + std**2 * alpha**2)


def ddim_step(abar_t: Any, abar_s: Any, eta: float) -> tuple[Any, Any, Any]:
    """Eqs. 21-22 from t to s: the coefficients of x0 and eps, and the noise's deviation."""
    noise = eta * np.sqrt((1 - abar_s) / (1 - abar_t)) * np.sqrt(1 - abar_t / abar_s)
    return np.sqrt(abar_s), np.sqrt(1 - abar_s - noise**2), noise


def ddpm_step(abar_t: Any, abar_s: Any) -> tuple[Any, Any, Any]:
    """Eq. 20 from t to s: the coefficients of x0 and x_t, and the posterior's deviation."""
    beta = 1 - abar_t / abar_s
    of_x0 = np.sqrt(abar_s) * beta / (1 - abar_t)
    of_x_t = np.sqrt(1 - beta) * (1 - abar_s) / (1 - abar_t)
    return of_x0, of_x_t, np.sqrt((1 - abar_s) / (1 - abar_t) * beta)


def euler_ancestral_sigmas(abar_t: Any, abar_s: Any, eta: float) -> tuple[Any, Any]:
    """(sigma_up, sigma_down) of a step, in the variance-exploding sigma = sqrt(1/abar - 1)."""
    variance_t, variance_s = 1 / abar_t - 1, 1 / abar_s - 1
    up = eta * np.sqrt(variance_s * (variance_t - variance_s) / variance_t)
    return up, np.sqrt(variance_s - up**2)


def dpmpp_2m(x_T: Any, denoise: Any, abar: Any, z: Any = None) -> Any:
    """DPM-Solver++(2M) in lambda = log(alpha / sigma): arXiv 2211.01095, Algorithm 2.

    With z, [S, ...], its SDE form. denoise(x, abar) returns x0_hat; abar: [S + 1],
    rising within (0, 1). The last step is first order, and adds no noise.
    """
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - np.asarray(abar))
    lam = np.log(alpha / sigma)
    x, last = x_T, None
    for i in range(len(abar) - 1):
        h, final = lam[i + 1] - lam[i], i == len(abar) - 2
        x0_hat = denoise(x, abar[i])
        D = x0_hat
        if last is not None and not final:
            r = (lam[i] - lam[i - 1]) / h
            D = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * last
        last = x0_hat
        if z is None or final:
            x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * D
        else:
            x = sigma[i + 1] / sigma[i] * np.exp(-h) * x - alpha[i + 1] * np.expm1(-2 * h) * D
            x = x + sigma[i + 1] * np.sqrt(-np.expm1(-2 * h)) * z[i]
    return x


def heun(x_T: Any, denoise: Any, abar: Any) -> Any:
    """Heun's method for dX/du = x0_hat, X = x / sigma, u = alpha / sigma; Euler's last."""
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - np.asarray(abar))
    u = alpha / sigma
    X = x_T / sigma[0]
    for i in range(len(abar) - 1):
        du = u[i + 1] - u[i]
        slope = denoise(X * sigma[i], abar[i])
        if i < len(abar) - 2:
            after = denoise((X + du * slope) * sigma[i + 1], abar[i + 1])
            slope = (slope + after) / 2
        X = X + du * slope
    return X * sigma[-1]


def projected(cond: Any, delta: Any, scale: float, eta: float, norm_threshold: float) -> np.ndarray:
    """Adaptive projected guidance of one example: arXiv 2410.02416, Algorithm 1, on x0_hat."""
    cond, delta = np.float64(cond).ravel(), np.float64(delta).ravel()
    delta = delta * min(1, norm_threshold / np.linalg.norm(delta))
    along = cond / np.linalg.norm(cond)
    parallel = (delta @ along) * along
    return cond + (scale - 1) * ((delta - parallel) + eta * parallel)
