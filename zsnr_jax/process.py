"""The one record of which diffusion process a network belongs to.

Training, loss weights, sampling and evaluation read this record and nothing else, and every
checkpoint carries it, so that they cannot disagree. Prediction type and zero terminal SNR are two
settings: each can be had without the other, except that eps cannot have zero terminal SNR.
"""

import dataclasses
import functools
from typing import Any

from zsnr_jax import schedules
from zsnr_jax.errors import UsageError
from zsnr_jax.predictions import EPS_AT_ZERO_SNR, check_prediction


@dataclasses.dataclass(frozen=True)
class DiffusionProcess:
    """Schedule, T, zero-terminal-SNR flag and prediction type; checked when made.

    The fields are those of `schedules.make_schedule`, and `prediction`: v, x0 or eps.
    Raises: UsageError for a value out of range, and for eps with zero terminal SNR.
    """

    schedule: str = "scaled_linear"
    num_steps: int = 1000
    zero_terminal_snr: bool = True
    prediction: str = "v"
    beta_start: float | None = None
    beta_end: float | None = None

    def __post_init__(self) -> None:
        check_prediction(self.prediction)
        if self.prediction == "eps" and self.zero_terminal_snr:
            raise UsageError(EPS_AT_ZERO_SNR)
        _ = self.noise_schedule

    @functools.cached_property
    def noise_schedule(self) -> schedules.NoiseSchedule:
        """The schedule's arrays, float32 [T+1], on the host."""
        return schedules.make_schedule(
            self.schedule, self.num_steps, self.zero_terminal_snr, self.beta_start, self.beta_end
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON can hold it; `from_dict` inverts."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "DiffusionProcess":
        """Read a record back. Raises: UsageError for a field that is unknown or missing."""
        known = {field.name for field in dataclasses.fields(cls)}
        if differing := sorted(record.keys() ^ known):
            raise UsageError(
                f"the diffusion process on record and this version of zsnr_jax differ in "
                f"{', '.join(differing)}: use the version that wrote it."
            )
        return cls(**record)

    def require_same(self, other: "DiffusionProcess", mine: str, theirs: str) -> None:
        """Refuse two records that differ, with a sentence that names both values.

        Args: other: the record to agree with; mine, theirs: what to call the two ("the config").
        """
        ours, others = self.to_dict(), other.to_dict()
        for name, value in ours.items():
            if value != others[name]:
                raise UsageError(
                    f"{theirs} was made with {name}={others[name]!r} and {mine} says "
                    f"{name}={value!r}: they must agree, since a network is right for the process "
                    "it was trained on and no other."
                )
