"""From settings to objects: the only reader of a config's strings. ConfigDict stops here."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsnr_jax import config as config_lib
from zsnr_jax import data, guidance, losses, parallel, randomness, samplers, signal_leak, timesteps
from zsnr_jax.apg import make_apg_denoise
from zsnr_jax.config import Config
from zsnr_jax.errors import UsageError
from zsnr_jax.generate import Generator, Guidance, Sampling
from zsnr_jax.models.unet import UNet
from zsnr_jax.predictions import StatefulDenoise, make_denoise
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train.loop import LoopOptions
from zsnr_jax.train.optimizer import learning_rate_schedule, make_optimizer
from zsnr_jax.train.state import Params, TrainState, init_state
from zsnr_jax.train.step import Objective

# Data beyond this many images is sampled at even distances: enough for every statistic of it.
_MAX_IMAGES = 10_000
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run is made of; nothing has been computed yet."""

    settings: dict[str, Any]  # the resolved config, as JSON
    seed: int
    process: DiffusionProcess
    source: data.Source
    image_size: int
    model: UNet
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    ema_decay: float
    loop: LoopOptions
    sampling: Sampling
    num_samples: int
    sample_batch_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what is trained on."""
        return (self.image_size, self.image_size, self.source.info.image_shape[2])

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint says it belongs to: process, network and data."""
        return {
            "process": self.process.to_dict(),
            "model": self.settings["model"],
            "data": data.fingerprint(self.source, **self._data_options),
        }

    @functools.cached_property
    def generator(self) -> Generator:
        """Draws samples from parameters."""
        return Generator(
            self.model.apply,
            self.process,
            self.sampling,
            negative_label=self.negative_label,
            image_shape=self.image_shape,
            batch_size=self.sample_batch_size,
            seed=self.seed,
            leak=self._leak,
        )

    @functools.cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images float32 [n, H, W, C] in [-1, 1] and labels int32 [n]: all, or evenly some."""
        return data.load_arrays(self.source, self.image_size, _MAX_IMAGES)

    @property
    def negative_label(self) -> int:
        """What guidance moves away from."""
        chosen = self.settings["sampler"]["negative_label"]
        return self.model.null_label if chosen is None else chosen

    @property
    def _leak(self) -> signal_leak.SignalLeak | None:
        """Each label's own, since a network that is told the label expects that label's leak."""
        sampler = self.settings["sampler"]
        if sampler["start"] == "noise":
            return None
        images, labels = self.arrays
        leaks = [
            signal_leak.fit(images[labels == label], sampler["leak_frequencies"])
            for label in range(self.source.info.num_classes)
        ]
        return jax.tree.map(lambda *of_labels: np.stack(of_labels), *leaks)

    def init_params(self) -> Params:
        """Fresh parameters; a function of the seed."""
        image = jnp.zeros((1, *self.image_shape))
        zeros = jnp.zeros(1, jnp.int32)
        key = randomness.purpose_key(self.seed, randomness.Purpose.INIT)
        return jax.jit(self.model.init)(key, image, zeros, zeros)

    def init_state(self) -> TrainState:
        """The state before the first step."""
        return init_state(self.init_params(), self.optimizer)

    def batches(self, start_step: int) -> Any:
        """This host's batches from a step on, for ever."""
        return data.make_batches(
            self.source,
            start_step=start_step,
            host=parallel.host(),
            num_hosts=parallel.num_hosts(),
            **self._data_options,
        )

    @property
    def _data_options(self) -> dict[str, Any]:
        dataset = self.settings["dataset"]
        return {
            "batch_size": dataset["batch_size"],
            "seed": self.seed,
            "image_size": self.image_size,
            "flip": dataset["flip"],
        }


def build(config: Config) -> Run:
    """Make the objects of a run, and refuse what cannot be made, before any computation.

    Raises: UsageError, one sentence, for the first setting that is wrong.
    """
    config_lib.validate(config)
    process = build_process(config)
    sampling = build_sampling(config, process)
    learning_rate = learning_rate_schedule(
        config.optimizer.learning_rate,
        config.train.num_steps,
        config.optimizer.warmup_steps,
        config.optimizer.decay,
    )
    source = data.open_source(config.dataset.name, "train", config.dataset.data_dir or None)
    image_size = config.dataset.image_size or _native_size(source)
    model = build_model(config, source.info.num_classes, image_size)
    first_alpha = float(process.noise_schedule.alpha[sampling.coefficients.level[0]])
    _require_fitting_sampler(config, first_alpha, source.info.num_classes, image_size)
    return Run(
        settings=config_lib.to_json(config),
        seed=config.seed,
        process=process,
        source=source,
        image_size=image_size,
        model=model,
        objective=build_objective(config, process, model),
        optimizer=make_optimizer(
            learning_rate,
            config.optimizer.b1,
            config.optimizer.b2,
            config.optimizer.weight_decay,
            config.optimizer.clip_norm,
        ),
        learning_rate=learning_rate,
        ema_decay=config.ema.decay,
        loop=LoopOptions(**config.train),
        sampling=sampling,
        num_samples=config.evaluation.num_samples,
        sample_batch_size=config.evaluation.batch_size,
    )


def build_process(config: Config) -> DiffusionProcess:
    """The diffusion process: what training, sampling and evaluation all read."""
    schedule = config.schedule
    return DiffusionProcess(
        schedule.name, schedule.num_steps, schedule.zero_terminal_snr, config.prediction
    )


def build_objective(config: Config, process: DiffusionProcess, model: UNet) -> Objective:
    """What the network learns."""
    options = {} if config.loss.gamma is None else {"gamma": config.loss.gamma}
    return Objective(
        network=model.apply,
        process=process,
        null_label=model.null_label,
        weight=losses.make_weight(config.loss.weight, **options),
        label_dropout=config.loss.label_dropout,
        offset_noise=config.loss.offset_noise,
    )


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


def _require_fitting_sampler(
    config: Config, first_alpha: float, num_classes: int, image_size: int
) -> None:
    """Refuse settings of the sampler that do not fit the data, or the level it starts from."""
    sampler = config.sampler
    if sampler.start not in ("noise", "signal_leak"):
        raise UsageError(
            f"sampler.start {sampler.start!r} is unknown: choose noise or signal_leak."
        )
    if sampler.start == "signal_leak" and first_alpha == 0:
        raise UsageError(
            "sampler.start=signal_leak does nothing where sampling starts at zero SNR, at which no "
            "signal leaks: set it to noise."
        )
    if not 0 <= sampler.leak_frequencies <= image_size:
        raise UsageError(
            f"sampler.leak_frequencies must be from 0 to {image_size}, the images' size, and it is "
            f"{sampler.leak_frequencies}."
        )
    if sampler.negative_label is not None and not 0 <= sampler.negative_label < num_classes:
        raise UsageError(
            f"sampler.negative_label must be from 0 to {num_classes - 1}, and it is "
            f"{sampler.negative_label}."
        )


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
        if sampler.guidance == "projected":
            denoise = make_apg_denoise(network, *of_network, *rows, scale, **projected)
        else:
            pair = guidance.guide_network(network, *rows, scale, sampler.guidance_rescale)
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


def build_model(config: Config, num_classes: int, image_size: int) -> UNet:
    """The network, its sizes checked against the images'."""
    model = config.model.to_dict()
    if model["dtype"] not in _DTYPES:
        raise UsageError(
            f"model.dtype {model['dtype']!r} is unknown: choose {' or '.join(_DTYPES)}."
        )
    if len(model["channels"]) != len(model["attention"]):
        raise UsageError(
            f"model.attention={model['attention']} needs one entry for each of model.channels="
            f"{model['channels']}."
        )
    for channels, attends in zip(model["channels"], model["attention"], strict=True):
        divisor = np.lcm(8, model["head_dim"]) if attends else 8
        if channels % divisor:
            raise UsageError(f"model.channels holds {channels}, which {divisor} must divide.")
    coarsest = model["patch_size"] * 2 ** (len(model["channels"]) - 1)
    if image_size % coarsest:
        raise UsageError(
            f"images of {image_size} pixels do not fit model.patch_size={model['patch_size']} and "
            f"{len(model['channels'])} resolutions: {coarsest} must divide the size."
        )
    return UNet(num_classes=num_classes, **model | {"dtype": _DTYPES[model["dtype"]]})


def _native_size(source: data.Source) -> int:
    height, width, _ = source.info.image_shape
    if height is None or height != width:
        raise UsageError(
            f"the images of {source.info.name} are not all square ({height} x {width}): set "
            "dataset.image_size."
        )
    return height
