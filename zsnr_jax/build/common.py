"""What every run is made of, whatever it learns: process, optimizer, sampler and guidance."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsnr_jax import config as config_lib
from zsnr_jax import guidance, losses, parallel, randomness, samplers, timesteps
from zsnr_jax.apg import make_apg_denoise
from zsnr_jax.config import Config
from zsnr_jax.errors import UsageError
from zsnr_jax.generate import Generator, Guidance, Sampling
from zsnr_jax.losses import LossWeight
from zsnr_jax.predictions import StatefulDenoise, make_denoise
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train.loop import LoopOptions
from zsnr_jax.train.muon import make_muon
from zsnr_jax.train.optimizer import Optimizer, learning_rate_schedule, make_optimizer
from zsnr_jax.train.state import Params, TrainState, init_state
from zsnr_jax.train.step import Objective, make_probe, make_train_step

# Of Flax itself; what changes memory and time alone; and what a fresh network alone depends on.
_NO_SIZES = ("parent", "name", "remat", "label_scale")
_RULES = {"adamw": make_optimizer, "muon": make_muon}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run is made of; nothing has been computed yet.

    What it learns, from labels to images or from captions to latents, is a subclass's.
    """

    settings: dict[str, Any]  # the resolved config, as JSON
    seed: int
    process: DiffusionProcess
    model: Any  # the Flax network that is trained
    objective: Objective
    optimizer: Optimizer
    learning_rate: optax.Schedule
    ema_decay: float
    loop: LoopOptions
    sampling: Sampling
    num_samples: int
    sample_batch_size: int

    @functools.cached_property
    def placement(self) -> parallel.Placement:
        """Where state and batches lie, on the devices there are."""
        chosen = self.settings["parallel"]
        return parallel.make_placement(chosen["mode"], chosen["mesh"])

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint says it belongs to: process, network and data."""
        raise NotImplementedError

    @functools.cached_property
    def generator(self) -> Generator:
        """Draws samples from parameters."""
        return self.make_generator(self.placement)

    def make_generator(self, placement: parallel.Placement) -> Generator:
        """What draws samples on devices of a placement."""
        raise NotImplementedError

    def state_shapes(self) -> TrainState:
        """Shapes of the state; no weight is made or read."""
        make = lambda params, frozen: init_state(params, self.optimizer, frozen)  # noqa: E731
        return jax.eval_shape(make, self.param_shapes(), self.frozen_shapes())

    def param_shapes(self) -> Params:
        """Shapes of the parameters."""
        raise NotImplementedError

    def init_params(self) -> Params:
        """The parameters before the first step."""
        raise NotImplementedError

    def frozen_shapes(self) -> Params:
        """Shapes of `frozen`."""
        return ()

    def frozen(self) -> Params:
        """Weights that training reads and does not change."""
        return ()

    def preview(self, params: Params) -> np.ndarray:
        """A batch of samples to look at while training goes on: float [n, H, W, C] in [-1, 1]."""
        raise NotImplementedError

    def init_state(self) -> TrainState:
        """The state before the first step."""
        return init_state(self.init_params(), self.optimizer, self.frozen())

    def train_step(self, placement: parallel.Placement) -> Any:
        """The step of `train.step`, for devices that the state lies on as `placement` says."""
        return make_train_step(
            self.objective,
            self.optimizer,
            self.ema_decay,
            self.seed,
            placement.axis_name,
            self.settings["train"]["accumulate"],
            placement.gather_inside,
            placement.scatter_inside,
        )

    def probe(self, placement: parallel.Placement) -> Any:
        """The loss at t = T, placed likewise."""
        return make_probe(
            self.objective,
            self.seed,
            placement.axis_name,
            self.settings["train"]["accumulate"],
            placement.gather_inside,
        )

    def levels(self, step: int) -> np.ndarray:
        """The levels t that the rows of a step's batch were trained at, int [B]."""
        key = randomness.purpose_key(self.seed, randomness.Purpose.LEVEL)
        rows = jnp.arange(self.settings["dataset"]["batch_size"])
        return np.asarray(randomness.row_levels(key, step, rows, self.process.num_steps))

    def batches(self, start_step: int) -> Any:
        """This host's batches from a step on, for ever."""
        raise NotImplementedError


def common_parts(config: Config) -> dict[str, Any]:
    """The fields of `Run` that do not depend on what it learns.

    Raises: UsageError, one sentence, for the first setting that is wrong.
    """
    process = build_process(config)
    optimizer = config.optimizer
    learning_rate = learning_rate_schedule(
        optimizer.learning_rate, config.train.num_steps, optimizer.warmup_steps, optimizer.decay
    )
    loop = config.train.to_dict()
    del loop["accumulate"]  # of the step
    return {
        "settings": config_lib.to_json(config),
        "seed": config.seed,
        "process": process,
        "optimizer": build_optimizer(config, learning_rate),
        "learning_rate": learning_rate,
        "ema_decay": config.ema.decay,
        "loop": LoopOptions(**loop),
        "sampling": build_sampling(config, process),
        "num_samples": config.evaluation.num_samples,
        "sample_batch_size": config.evaluation.batch_size,
    }


def build_optimizer(config: Config, learning_rate: Any) -> Optimizer:
    """The optimizer of a name. Raises: UsageError for an unknown one."""
    chosen = config.optimizer
    if chosen.name not in _RULES:
        known = " or ".join(_RULES)
        raise UsageError(f"optimizer.name {chosen.name!r} is unknown: choose {known}.")
    return _RULES[chosen.name](
        learning_rate, chosen.b1, chosen.b2, chosen.weight_decay, chosen.clip_norm
    )


def sizes_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of a network's fields, those that trained parameters fit alone, as JSON can hold them."""
    sizes = {name: value for name, value in fields.items() if name not in _NO_SIZES}
    return json.loads(json.dumps(sizes))


def build_process(config: Config) -> DiffusionProcess:
    """The diffusion process: what training, sampling and evaluation all read."""
    schedule = config.schedule
    return DiffusionProcess(
        schedule.name, schedule.num_steps, schedule.zero_terminal_snr, config.prediction
    )


def build_weight(config: Config) -> LossWeight:
    """The weight of the loss."""
    options = {} if config.loss.gamma is None else {"gamma": config.loss.gamma}
    return losses.make_weight(config.loss.weight, **options)


def require_dtype(name: str) -> Any:
    """The dtype of a name. Raises: UsageError for an unknown one."""
    if name not in DTYPES:
        raise UsageError(f"model.dtype {name!r} is unknown: choose {' or '.join(DTYPES)}.")
    return DTYPES[name]


def build_sampling(config: Config, process: DiffusionProcess) -> Sampling:
    """The sampler, its levels and its guidance."""
    sampler = config.sampler
    options = {} if sampler.eta is None else {"eta": sampler.eta}
    levels = timesteps.make_timesteps(
        sampler.spacing,
        process.num_steps,
        sampler.num_steps,
        process.noise_schedule,
        sampler.steps_offset,
    )
    made = samplers.make_sampler(sampler.name, **options)
    path = samplers.coefficients(made, process.noise_schedule, levels, sampler.final_level)
    return Sampling(made, path, build_guidance(config, process))


def build_guidance(config: Config, process: DiffusionProcess) -> Guidance:
    """How the conditional and the negative prediction become one, and at which levels."""
    sampler, of_network = config.sampler, (process.noise_schedule, process.prediction)
    interval = _guidance_interval(sampler.guidance_interval, process.num_steps)
    if sampler.guidance not in ("rescaled", "projected"):
        raise UsageError(
            f"sampler.guidance {sampler.guidance!r} is unknown: choose rescaled or projected."
        )
    if sampler.guidance == "projected" and sampler.guidance_rescale:
        raise UsageError(
            "projected guidance has no rescale, and sampler.guidance_rescale is "
            f"{sampler.guidance_rescale}: set it to 0."
        )
    projected = sampler.projected.to_dict()
    projected["norm_threshold"] = projected["norm_threshold"] or math.inf

    def guide(network: Any, condition: Any, negative: Any) -> StatefulDenoise:
        rows, scale = (condition, negative), sampler.guidance_scale
        # The only pretrained networks are Stable Diffusion's.
        pair = guidance.sharing_input(network) if config.pretrained else network
        if sampler.guidance == "projected":
            denoise = make_apg_denoise(pair, *of_network, *rows, scale, **projected)
        else:
            pair = guidance.guide_network(pair, *rows, scale, sampler.guidance_rescale)
            denoise = make_denoise(pair, *of_network)
        if interval is None:
            return StatefulDenoise.of(denoise)
        alone = make_denoise(lambda x_t, timestep: network(x_t, timestep, condition), *of_network)
        return guidance.guide_within(denoise, alone, *interval)

    return guide


def _guidance_interval(interval: tuple[int, ...], num_steps: int) -> tuple[int, int] | None:
    if not interval:
        return None
    integers = all(isinstance(level, int) for level in interval)
    if not integers or len(interval) != 2 or not 1 <= interval[0] <= interval[1] <= num_steps:
        raise UsageError(
            f"sampler.guidance_interval must be (lowest, highest) within 1..{num_steps}, and it is "
            f"{interval}."
        )
    return interval[0], interval[1]
