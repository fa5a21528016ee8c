"""Where diffusers and we differ, by how much, and who has the closed form. No torch here."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from parity import ours, reference
from parity.cases import DATA, SOLVERS, TOLERANCE, Case

# What diffusers does, by cause.
CAUSES = {
    "patched": (
        "alpha_bar_T is set to 2**-24 where the rescale made it 0, so that sigma/alpha is 4096 and "
        "not infinite: x0_hat at T is off by x_T / 4096, and the step keeps a trace of x_T."
    ),
    "stride": (
        "Each step goes from t to t - T//S and not to the next listed timestep, which is another "
        "wherever S does not divide T: the state is then read at a level it is not at."
    ),
    "not_a_number": (
        "At T it takes the root of 1 - alpha_bar_s - std^2, which is 0 at eta = 1 and, in float32, "
        "below 0 wherever the square of the rounded root exceeds 1 - alpha_bar_s."
    ),
    "heun_variable": (
        "Heun's rule is in sigma/alpha and ours in alpha/sigma: two methods of second order for "
        "the same flow."
    ),
    "heun_patched": (
        "There is no option to rescale. With rescaled betas, and 2**-24 for alpha_bar_T as other "
        "classes have it, the first step's correction grows like 4096: it has no limit."
    ),
    "heun_infinite": (
        "There is no option to rescale. With rescaled betas, sigma/alpha at T is infinite."
    ),
    "start": (
        "With trailing timesteps, init_noise_sigma is sigma/alpha, so that the network is first "
        "shown sigma_T z, where DDIM, DPM-Solver++ and we show it z."
    ),
    "last_noise": (
        "With set_alpha_to_one=False the last step ends at level 1 and adds noise, as Eq. 22 has "
        "it; ours adds none in the last step, whatever the solver."
    ),
}


class Deviation(NamedTuple):
    """A case in which the two differ."""

    cause: str
    case: Case
    run: dict[str, Any] = {}  # arguments of `diffusers_samplers.run`
    closed_form: str | None = "limit"  # "limit": of published formulas; "flow": of the exact ODE

    @property
    def name(self) -> str:
        return f"{self.cause}-{self.case.name}"


def deviations() -> list[Deviation]:
    """The rows of the table."""
    both = [(data, S) for data in DATA for S in (5, 50)]
    zero = partial(Case, zero_terminal_snr=True)
    patched = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde")
    patch = {"patch_heun": True}
    return [
        *(Deviation("patched", zero(s, data, S)) for s in patched for data, S in both),
        *(Deviation("stride", zero("ddim(eta=0)", "gaussian", S)) for S in (30, 60, 61)),
        *(Deviation("not_a_number", zero("ddim(eta=1)", "gaussian", S)) for S in (10, 25)),
        *(Deviation("heun_variable", Case("heun", *at), closed_form="flow") for at in both),
        *(Deviation("heun_patched", zero("heun", *at), patch, "flow") for at in both),
        Deviation("heun_infinite", zero("heun", "gaussian", 50), closed_form="flow"),
        *(Deviation("start", Case("euler", d, 50), {"own_start": True}, None) for d in DATA),
        Deviation(
            "last_noise",
            Case("ddim(eta=1)", "gaussian", 50, as_stable_diffusion=True),
            closed_form=None,
        ),
    ]


class Errors(NamedTuple):
    """The largest error, or difference, of the first update and at the end; not finite is inf."""

    first_update: float
    end: float


def errors(deviation: Deviation, first_update: np.ndarray, end: np.ndarray) -> Errors:
    """Someone's samples, [24], against the closed form."""
    case, levels = deviation.case, ours.levels(deviation.case)
    noise = {level: ours.noise(level) for level in levels}
    return Errors(
        farthest(first_update, reference.first_update(case, levels, noise[levels[0]])),
        farthest(end, reference.end(case, levels, noise)),
    )


def farthest(x: np.ndarray, y: np.ndarray) -> float:
    """The largest difference; inf where either is not finite."""
    difference = np.abs(x - y)
    return float(np.max(np.where(np.isfinite(difference), difference, np.inf)))


def closer(error: dict[str, float], tolerance: float) -> str:
    """Whose error is at most a third of the other's, where the least that counts is a tolerance."""
    counted = {side: max(error[side], tolerance) for side in ("zsnr_jax", "diffusers")}
    closest = min(counted, key=lambda side: counted[side])
    return closest if 3 * counted[closest] <= max(counted.values()) else "neither"


def table_row(deviation: Deviation, theirs: Any) -> dict[str, Any]:
    """A row of the table of deviations: `make_golden.FIELDS` says what is what.

    Args: theirs: a `diffusers_samplers.Run`.
    """
    case = deviation.case
    first_update, end = ours.first_update(case), ours.end(case)
    row = {
        "cause": deviation.cause,
        "scheduler": SOLVERS[case.solver].scheduler,
        **case._asdict(),
        "closed_form": deviation.closed_form,
        "first_update": {"difference": farthest(first_update, theirs.first_update)},
        "end": {"difference": farthest(end, theirs.end)},
        "mean": None,
    }
    if deviation.closed_form:
        sides = {
            "zsnr_jax": errors(deviation, first_update, end),
            "diffusers": errors(deviation, *theirs),
        }
        for place in Errors._fields:
            row[place] |= {side: getattr(error, place) for side, error in sides.items()}
            row[place]["closer"] = closer(row[place], TOLERANCE[case.data])
    if case.zero_terminal_snr and case.data == "gaussian" and not SOLVERS[case.solver].fresh_noise:
        # Every step is affine in x_T, and the mean of the starts is 0.
        exact = DATA["gaussian"].mean
        row["mean"] = {"exact": exact, "zsnr_jax": np.mean(end), "diffusers": np.mean(theirs.end)}
    return row
