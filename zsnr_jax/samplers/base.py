"""The one loop over time that every sampler runs in.

A sampler visits the listed levels t_1 > t_2 > ... > t_S and ends at `final_level`, so it takes S
steps, each from a level to the next one listed: never to t - T//S, which is wrong wherever S does
not divide T. What a solver needs of the schedule is computed beforehand, on the host, in float64.

Every solver here is the first-order step alpha_s x0_hat + kept eps_hat, with at most one correction
by the difference of two x0_hat. The last step is first order for all, alpha_s x0_hat + sigma_s
eps_hat. A solver that looks at the level a step ends at has it after the scan; the others within,
so that a program holds one network and not two. It is never called at level 0, where eps_hat
would be 0/0, and no `where` has to hide a NaN, in value or in gradient.

At SNR = 0, where the first step starts, each solver's coefficients are finite by construction.
Source: DDIM, arXiv 2010.02502, Eq. 12, in the notation of arXiv 2305.08891, Eqs. 21-22.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import randomness
from zsnr_jax.errors import UsageError
from zsnr_jax.predictions import Denoise, NetworkDenoise, StatefulDenoise
from zsnr_jax.schedules import NoiseSchedule

Array = Any  # NumPy's where it is made, JAX's where it is traced
Estimate = tuple[jax.Array, jax.Array]  # (x0_hat, eps_hat), with alpha x0_hat + sigma eps_hat = x_t


class Path(NamedTuple):
    """The schedule along the steps of a sampler: from (alpha, sigma) to the next pair, float64."""

    alpha: np.ndarray  # [S], 0 first where the path starts at zero terminal SNR
    sigma: np.ndarray  # [S], above 0
    alpha_next: np.ndarray  # [S], above 0
    sigma_next: np.ndarray  # [S], 0 last where the path ends at clean data

    @property
    def ratio(self) -> np.ndarray:
        """r = (sigma_s alpha) / (sigma alpha_s) = exp(-h) in [0, 1): 0 in a step from SNR = 0."""
        return (self.sigma_next * self.alpha) / (self.sigma * self.alpha_next)


class Coefficients(NamedTuple):
    """What a sampler needs to know of the schedule: arrays of S entries, one for each step."""

    level: Array  # int32 [S], the level a step starts from
    level_next: Array  # int32 [S], the level it ends at
    alpha_next: Array  # float32 [S], of the level it ends at
    sigma_next: Array  # float32 [S]
    noise: Array  # float32 [S], standard deviation of the fresh noise it adds
    rule: Any  # the solver's own, a pytree of float32 [S]


class Sampler(NamedTuple):
    """An update rule: two pure functions, of which the second knows no option of the first.

    All options (eta, say) live in the numbers that `rule` returns, so that a compiled sampler
    serves every value of them.
    """

    name: str
    # Path -> (noise [S], the solver's own coefficients, a pytree of [S])
    rule: Callable[[Path], tuple[np.ndarray, Any]]
    # (estimate at x_t, memory, coefficients of this step, denoise) -> (x_s before noise, memory)
    step: Callable[[Estimate, Any, Coefficients, Denoise], tuple[jax.Array, Any]]
    # x_T -> what the first step finds in memory
    init: Callable[[jax.Array], Any] = lambda x_T: ()
    stochastic: bool = False  # whether it needs a key, for more than one step
    looks: bool = False  # whether `step` calls denoise, at the level that it ends at


def coefficients(
    sampler: Sampler, schedule: NoiseSchedule, timesteps: np.ndarray, final_level: int = 0
) -> Coefficients:
    """Work out a sampler's coefficients along a path, on the host, in float64.

    Args:
      sampler: the update rule.
      schedule: concrete arrays, T + 1 levels.
      timesteps: int [S], strictly decreasing levels within final_level + 1..T. A list that starts
        below T serves image-to-image. Make it for this schedule: `make_timesteps(schedule=...)`
        checks that.
      final_level: the level the sample ends at; 0 is clean data.
    Returns: a pytree of NumPy arrays [S]; equal S means equal shapes, hence one compilation.
    Raises: UsageError for levels that do not decrease or leave the range, and for a rule that is
      not finite; for the last step, too, which is not taken, but is computed beside what is.
    """
    levels, T = np.asarray(timesteps), schedule.num_steps
    if levels.ndim != 1 or levels.size == 0 or not np.issubdtype(levels.dtype, np.integer):
        raise UsageError("timesteps must be one non-empty row of integer levels.")
    if not isinstance(final_level, int | np.integer) or final_level < 0:
        raise UsageError(f"final_level must be an integer from 0 up, and it is {final_level!r}.")
    levels = np.append(levels, final_level)
    if not (np.all(np.diff(levels) < 0) and levels[0] <= T):
        raise UsageError(
            f"timesteps must decrease strictly from at most T = {T} to above final_level = "
            f"{final_level}, and they are {_shortened(levels[:-1])}: change them or "
            "final_level."
        )
    alpha, sigma = (np.asarray(x, np.float64)[levels] for x in schedule)
    path = Path(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    noise, rule = sampler.rule(path)
    noise = np.append(noise[:-1], 0.0)  # the last step is deterministic
    numbers = jax.tree.map(np.float32, (path.alpha_next, path.sigma_next, noise, rule))
    if not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(numbers)):
        raise UsageError(
            f"the rule of {sampler.name} is not finite on this path: let it return finite numbers "
            "for every step, also for the last, which is first order whatever the rule."
        )
    return Coefficients(np.int32(levels[:-1]), np.int32(levels[1:]), *numbers)


def integrate(
    sampler: Sampler,
    denoise: Denoise | StatefulDenoise,
    x_T: jax.Array,
    coefficients: Coefficients,
    key: jax.Array | None = None,
    index: jax.Array | None = None,
) -> jax.Array:
    """Run a sampler along its coefficients. Pure and traceable.

    Args:
      sampler: the rule the coefficients were made for.
      denoise: (x_t [B, ...], level, int32 scalar) -> (x0_hat, eps_hat), like x_t.
      x_T: [B, ...], the start: standard normal noise where the path starts at T.
      coefficients: of S steps; may be traced.
      key: for the fresh noise of a stochastic sampler.
      index: int32 [B], each row's place in the whole batch; default 0..B-1.
    Returns: float32 [B, ...], the sample at the path's final level.
    Raises: UsageError where denoise returns something else, or a key is missing, before anything is
      compiled.
    """
    return _run(sampler, denoise, x_T, coefficients, key, index, keep=False)[0]


def trajectory(
    sampler: Sampler,
    denoise: Denoise | StatefulDenoise,
    x_T: jax.Array,
    coefficients: Coefficients,
    key: jax.Array | None = None,
    index: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run a sampler, and keep what the network took the picture for on the way.

    Returns: the sample as by `integrate`, and x0_hat at every listed level, float32 [S, B, ...].
    """
    return _run(sampler, denoise, x_T, coefficients, key, index, keep=True)


def _run(
    sampler: Sampler,
    denoise: Denoise | StatefulDenoise,
    x_T: jax.Array,
    coefficients: Coefficients,
    key: jax.Array | None,
    index: jax.Array | None,
    keep: bool,
) -> tuple[jax.Array, Any]:
    """The only scan over time. Returns: the sample, and all x0_hat where they are kept."""
    num_steps = coefficients.level.shape[0]
    if sampler.stochastic and key is None and num_steps > 1:
        raise UsageError(f"{sampler.name} adds noise and needs a key: pass key=.")
    x_T = x_T.astype(jnp.float32)
    index = jnp.arange(x_T.shape[0]) if index is None else index
    start, estimate = _checked(denoise)

    def body(carry: Any, step: tuple[Coefficients, jax.Array]) -> tuple[Any, Any]:
        (x, memory, seen), (c, is_last) = carry, step
        now, seen_next = estimate(x, c.level, seen)
        # A second look within a step knows what the first knew, and leaves no trace.
        look = lambda x, level: estimate(x, level, seen)[0]  # noqa: E731
        x, memory = sampler.step(now, memory, c, look if sampler.looks else _no_look)
        if key is not None:
            x += c.noise * randomness.row_normal(key, c.level, index, x.shape[1:])
        x = jnp.where(is_last, _first_order(now, c), x)
        return (x, memory, seen_next), now[0] if keep else None

    steps = (coefficients, np.arange(num_steps) == num_steps - 1)
    apart = sampler.looks or keep  # so that the last x0_hat that is kept is the sample, to the bit
    scanned = jax.tree.map(lambda x: x[:-1], steps) if apart else steps
    (x, _, seen), estimates = jax.lax.scan(body, (x_T, sampler.init(x_T), start(x_T)), scanned)
    if apart:
        last = jax.tree.map(lambda x: x[-1], coefficients)
        now, _ = estimate(x, last.level, seen)
        x = _first_order(now, last)
        estimates = jnp.concatenate([estimates, now[0][None]]) if keep else None
    return x, estimates


def _first_order(estimate: Estimate, c: Coefficients) -> jax.Array:
    x0_hat, eps_hat = estimate
    return c.alpha_next * x0_hat + c.sigma_next * eps_hat


def _no_look(x: jax.Array, level: jax.Array) -> Estimate:
    raise UsageError("a sampler whose step calls denoise must say so: set Sampler(looks=True).")


def _checked(denoise: Denoise | StatefulDenoise) -> StatefulDenoise:
    """A denoise with memory, be it an empty one, that returns what it should, in float32."""
    start, estimate = StatefulDenoise.of(denoise)

    def checked(x: jax.Array, level: jax.Array, seen: Any) -> tuple[Estimate, Any]:
        pair, seen = estimate(x, level, seen)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(pair)]
        if not isinstance(pair, tuple) or shapes != [x.shape, x.shape]:
            raise UsageError(
                f"denoise must return the pair (x0_hat, eps_hat), each of the shape {x.shape} of "
                f"x_t, and it returned {shapes}."
            )
        x0_hat, eps_hat = pair
        return (x0_hat.astype(jnp.float32), eps_hat.astype(jnp.float32)), seen

    return StatefulDenoise(start, checked)


def sample(
    sampler: Sampler,
    denoise: Denoise | StatefulDenoise,
    x_T: jax.Array,
    schedule: NoiseSchedule,
    timesteps: np.ndarray,
    key: jax.Array | None = None,
    index: jax.Array | None = None,
    final_level: int = 0,
) -> jax.Array:
    """Draw samples: `coefficients`, then `integrate`, whose arguments these are.

    To draw again and again, jit `integrate`: this traces the network at every call.

    Raises: UsageError where denoise was made for another schedule, too.
    """
    if isinstance(denoise, NetworkDenoise) and not _equal(denoise.schedule, schedule):
        raise UsageError(
            f"denoise was made for another schedule ({_told(denoise.schedule)}) than the sampler's "
            f"({_told(schedule)}): pass the same to both."
        )
    path = coefficients(sampler, schedule, timesteps, final_level)
    if not sampler.stochastic:
        key = None  # drawing noise only to multiply it by 0 takes time
    return integrate(sampler, denoise, x_T, path, key, index)


def _equal(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    return one is other or all(map(np.array_equal, one, other))


def _told(schedule: NoiseSchedule) -> str:
    return f"T = {schedule.num_steps}, alpha(T) = {schedule.alpha[-1]:.3g}"


def _shortened(levels: np.ndarray) -> str:
    listed = [str(level) for level in levels]
    return ", ".join(listed if len(listed) <= 6 else [*listed[:3], "...", *listed[-2:]])
