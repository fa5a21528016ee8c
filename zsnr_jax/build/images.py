"""From labels to images: the runs that learn a TFDS dataset's pixels."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import data, parallel, randomness, signal_leak, xla_options
from zsnr_jax.build import common
from zsnr_jax.config import Config
from zsnr_jax.errors import UsageError
from zsnr_jax.generate import Generator, spread_labels
from zsnr_jax.models.unet import UNet
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train.state import Params
from zsnr_jax.train.step import Objective

# Data beyond this many images is sampled at even distances: enough for every statistic of it.
_MAX_IMAGES = 10_000


@dataclasses.dataclass(frozen=True)
class ImageRun(common.Run):
    """A run that learns images with labels."""

    source: data.Source
    image_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what is trained on."""
        return (self.image_size, self.image_size, self.source.info.image_shape[2])

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint says it belongs to: process, network and data."""
        return {
            "process": self.process.to_dict(),
            "model": common.sizes_of(self.settings["model"]),
            "data": data.fingerprint(self.source, **self._data_options),
        }

    def make_generator(self, placement: parallel.Placement) -> Generator:
        """Draws samples from parameters."""
        return Generator(
            self.model.apply,
            self.process,
            self.sampling,
            negative=self.negative_label,
            shape=self.image_shape,
            batch_size=self.sample_batch_size,
            seed=self.seed,
            placement=placement,
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

    def param_shapes(self) -> Params:
        """Shapes of the parameters."""
        return jax.eval_shape(self._fresh, self._init_key)

    def init_params(self) -> Params:
        """Fresh parameters; a function of the seed."""
        return self._fresh(self._init_key)

    @functools.cached_property
    def _fresh(self) -> Callable[[jax.Array], Params]:
        """Makes parameters from a key; one function, so that it is traced once for all."""
        options = xla_options.of_a_program_run_once()
        return jax.jit(self._make_params, compiler_options=options)

    @property
    def _init_key(self) -> jax.Array:
        return randomness.purpose_key(self.seed, randomness.Purpose.INIT)

    def _make_params(self, key: jax.Array) -> Params:
        zeros = jnp.zeros(1, jnp.int32)
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), zeros, zeros)

    def preview(self, params: Params) -> np.ndarray:
        """Samples of every label, evenly."""
        labels = np.arange(self.source.info.num_classes)
        return self.generator(params, spread_labels(labels, self.generator.batch_size))

    def batches(self, start_step: int) -> Any:
        """This host's batches from a step on, for ever."""
        batches = data.batches_by_step(
            self.source,
            host=parallel.host(),
            num_hosts=parallel.num_hosts(),
            **self._data_options,
        )
        return data.read_ahead(batches, start_step)

    @property
    def _data_options(self) -> dict[str, Any]:
        dataset = self.settings["dataset"]
        return {
            "batch_size": dataset["batch_size"],
            "seed": self.seed,
            "image_size": self.image_size,
            "flip": dataset["flip"],
        }


def build_images(config: Config) -> ImageRun:
    """Make a run on images. Raises: UsageError for the first setting that is wrong."""
    of_latents = {"dataset.latents": config.dataset.latents} | {
        f"evaluation.{name}": config.evaluation[name]
        for name in ("prompts", "inception", "fid_statistics", "clip")
    }
    for name, value in of_latents.items():
        if value:
            raise UsageError(
                f"{name}={value} is of runs on latents, and config.pretrained is not set: set it "
                f"to a Stable Diffusion folder, or leave {name} empty."
            )
    parts = common.common_parts(config)
    process, sampling = parts["process"], parts["sampling"]
    source = data.open_source(config.dataset.name, "train", config.dataset.data_dir or None)
    image_size = config.dataset.image_size or _native_size(source)
    model = build_model(config, source.info.num_classes, image_size)
    first_alpha = float(process.noise_schedule.alpha[sampling.coefficients.level[0]])
    _require_fitting_sampler(config, first_alpha, source.info.num_classes, image_size)
    return ImageRun(
        **parts,
        source=source,
        image_size=image_size,
        model=model,
        objective=build_objective(config, process, model),
    )


def build_objective(config: Config, process: DiffusionProcess, model: UNet) -> Objective:
    """What the network learns."""
    return Objective(
        network=model.apply,
        process=process,
        null_condition=model.null_label,
        weight=common.build_weight(config),
        label_dropout=config.loss.label_dropout,
        offset_noise=config.loss.offset_noise,
    )


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


def build_model(config: Config, num_classes: int, image_size: int) -> UNet:
    """The network, its sizes checked against the images'."""
    model = config.model.to_dict()
    dtype = common.require_dtype(model["dtype"])
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
    return UNet(num_classes=num_classes, **model | {"dtype": dtype})


def _native_size(source: data.Source) -> int:
    height, width, _ = source.info.image_shape
    if height is None or height != width:
        raise UsageError(
            f"the images of {source.info.name} are not all square ({height} x {width}): set "
            "dataset.image_size."
        )
    return height
