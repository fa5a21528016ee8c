"""Our samplers on the cases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from parity.cases import DATA, SEED, SOLVERS, Case, starts, velocity

from zsnr_jax import randomness, samplers, schedules
from zsnr_jax.predictions import StatefulDenoise, make_denoise
from zsnr_jax.timesteps import make_timesteps

KEY = randomness.purpose_key(SEED, randomness.Purpose.SAMPLE)
SCHEDULES = {
    zero: schedules.make_schedule("scaled_linear", zero_terminal_snr=zero) for zero in (False, True)
}


def noise(level: int) -> np.ndarray:
    """What a stochastic sampler of ours draws in the step from a level: float64 [24]."""
    return np.asarray(_noise(level), np.float64)


@jax.jit
def _noise(level):
    return randomness.row_normal(KEY, level, jnp.arange(len(starts())), ())


def levels(case: Case) -> np.ndarray:
    spacing, offset = ("leading", 1) if case.as_stable_diffusion else ("trailing", 0)
    return make_timesteps(spacing, 1000, case.num_steps, steps_offset=offset)


def end(case: Case, believed: schedules.NoiseSchedule | None = None) -> np.ndarray:
    """The samples, [24].

    Args: believed: the sampler's schedule, where it is not the true one that the network knows.
    """
    schedule = SCHEDULES[case.zero_terminal_snr] if believed is None else believed
    last = int(case.as_stable_diffusion)
    x_0 = _end(*_arguments(case, schedule, levels(case), last))
    return np.asarray(x_0, np.float64)


def first_update(case: Case) -> np.ndarray:
    """The state after the first step, [24]."""
    schedule = SCHEDULES[case.zero_terminal_snr]
    return np.asarray(_first(*_arguments(case, schedule, levels(case)[:2])), np.float64)


def _arguments(case, believed, levels, final_level=0):
    """Those of the compiled functions, which serve every solver that has the same step."""
    solver = SOLVERS[case.solver]
    options = {} if solver.eta is None else {"eta": solver.eta}
    sampler = samplers.make_sampler(solver.sampler, **options)
    coefficients = samplers.coefficients(sampler, believed, levels, final_level)
    truth = SCHEDULES[case.zero_terminal_snr]
    functions = (sampler.step, sampler.init, sampler.looks)
    return functions, truth, believed, coefficients, DATA[case.data]


@partial(jax.jit, static_argnums=0)
def _end(functions, truth, believed, coefficients, data):
    denoise = _exact_denoise(truth, believed, data)
    return samplers.integrate(
        _sampler(*functions), denoise, jnp.asarray(starts()), coefficients, KEY
    )


@partial(jax.jit, static_argnums=0)
def _first(functions, truth, believed, coefficients, data):
    denoise = _exact_denoise(truth, believed, data)

    def apply(x, level, second):
        # A look ahead within the first step is none of the second's: it is told what the first was.
        estimate = jax.tree.map(lambda e: jnp.where(second, x, e), denoise(x, level))
        return estimate, jnp.array(True)

    told = StatefulDenoise(lambda x: jnp.array(False), apply)
    _, estimates = samplers.trajectory(
        _sampler(*functions), told, jnp.asarray(starts()), coefficients, KEY
    )
    return estimates[1]  # for which the second call gave back its state


def _sampler(step, init, looks) -> samplers.Sampler:
    return samplers.Sampler("of the coefficients", _no_rule, step, init, looks=looks)


def _no_rule(path):
    raise AssertionError("The coefficients are made by now.")


def _exact_denoise(truth, believed, data):
    """That of a network which knows the true schedule, read by a sampler which believes another."""
    alphas, sigmas = jnp.asarray(truth.alpha), jnp.asarray(truth.sigma)

    def network(x_t, timestep):
        return velocity(x_t, alphas[timestep + 1], sigmas[timestep + 1], data, jnp.exp)

    return make_denoise(network, believed, "v")
