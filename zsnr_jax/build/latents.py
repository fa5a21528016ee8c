"""From captions to latents: the runs that fine-tune a Stable Diffusion folder's UNet.

The UNet alone learns. The text encoder reads captions in the step, and the autoencoder, whose
moments the dataset holds, turns latents into images for samples.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import architectures, data, diffusers_io, parallel
from zsnr_jax.build import common
from zsnr_jax.config import Config
from zsnr_jax.data.latents import (
    LatentInfo,
    LatentSource,
    open_latents,
    tokenizer_digests,
    vae_digests,
)
from zsnr_jax.data.tokenizer import ClipTokenizer
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import scores
from zsnr_jax.generate import Generator
from zsnr_jax.models.autoencoder import AutoencoderKL, sample_latents
from zsnr_jax.models.sd_unet import UNet2DCondition, project_context
from zsnr_jax.models.text_encoder import TextEncoder
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.prompts import Prompt, read_prompts
from zsnr_jax.scheduler_config import SamplerSettings
from zsnr_jax.train.state import Params
from zsnr_jax.train.step import Objective


@dataclasses.dataclass(frozen=True)
class LatentRun(common.Run):
    """A run that learns latents with captions. `model` is the UNet."""

    pretrained: Path
    vae: AutoencoderKL
    text_encoder: TextEncoder
    image_size: int  # pixels per side
    empty_ids: np.ndarray  # int32 [L], of the caption ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the UNet learns."""
        side = self.image_size // 2 ** (len(self.vae.block_out_channels) - 1)
        return (side, side, self.vae.latent_channels)

    @functools.cached_property
    def source(self) -> LatentSource:
        """The encoded dataset, checked to be of this folder. Raises: UsageError where it is not."""
        source = open_latents(self.settings["dataset"]["latents"])
        _require_same_folder(source, self.pretrained, self.latent_shape)
        return source

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint says it belongs to: process, networks and data."""
        return {
            "process": self.process.to_dict(),
            "model": common.sizes_of(
                {
                    field.name: getattr(self.model, field.name)
                    for field in dataclasses.fields(self.model)
                }
                | {"dtype": self.settings["model"]["dtype"]}
            ),
            "pretrained": self._digests,
            "data": {
                "sha256": self.source.sha256,
                "length": len(self.source),
                "seed": self.seed,
                "batch_size": self.settings["dataset"]["batch_size"],
            },
        }

    def make_generator(self, placement: parallel.Placement) -> Generator:
        """Draws images of token ids; `drawing` holds the weights that it reads."""
        return Generator(
            self.objective.network,
            self.process,
            self.sampling,
            negative=self.empty_ids,
            shape=self.latent_shape,
            batch_size=self.sample_batch_size,
            seed=self.seed,
            placement=placement,
            encode=self.objective.encode,
            prepare=lambda unet, text: project_context(unet, text, self.model.dtype),
            decode=lambda frozen, latents: self.decode(frozen["vae"], latents),
        )

    def decode(self, vae: Params, latents: jax.Array) -> jax.Array:
        """Images of scaled latents, by the autoencoder's parameters; pure."""
        return jnp.asarray(self.vae.apply({"params": vae}, latents, method="decode"))

    @functools.cached_property
    def tokenizer(self) -> ClipTokenizer:
        """The folder's."""
        return ClipTokenizer(self.pretrained / "tokenizer")

    def prompts(self) -> list[Prompt]:
        """What evaluation draws, of evaluation.prompts; none where that is not set."""
        path = self.settings["evaluation"]["prompts"]
        return read_prompts(Path(path).expanduser()) if path else []

    def conditions(self, count: int) -> np.ndarray:
        """Token ids of so many captions of the data, at even distances: int32 [count, L]."""
        rows = [i * len(self.source) // count for i in range(count)]
        return np.stack([self.source[row]["ids"] for row in rows])

    def param_shapes(self) -> Params:
        """The UNet's, from its sizes."""
        return float32_shapes("unet", self.model)

    def init_params(self) -> Params:
        """The folder's UNet, in float32."""
        return self._weights("unet")

    def frozen_shapes(self) -> Params:
        """The text encoder's, from its sizes."""
        return {"text_encoder": float32_shapes("text_encoder", self.text_encoder)}

    def frozen(self) -> Params:
        """The text encoder."""
        return {"text_encoder": self._weights("text_encoder")}

    @functools.cached_property
    def drawing(self) -> Params:
        """What the generator reads beside the UNet: text encoder and autoencoder, placed."""
        return self.placement.gather(self.frozen() | {"vae": self._weights("vae")})

    def preview(self, params: Params) -> np.ndarray:
        """Guided samples of the data's captions."""
        ids = self.conditions(self.generator.batch_size)
        return self.generator(params, ids, guided=True, frozen=self.drawing)

    def batches(self, start_step: int) -> Any:
        """This host's batches from a step on, for ever."""
        batches = data.latent_batches_by_step(
            self.source,
            batch_size=self.settings["dataset"]["batch_size"],
            seed=self.seed,
            host=parallel.host(),
            num_hosts=parallel.num_hosts(),
        )
        return data.read_ahead(batches, start_step)

    def told(self) -> str:
        """What changes between the folder's process and the run's; empty where nothing does."""
        theirs, _ = diffusers_io.read_scheduler(self.pretrained)
        old, new = (process.noise_schedule.alpha for process in (theirs, self.process))
        if theirs.prediction == self.process.prediction and np.array_equal(old, new):
            return ""
        return (
            f"{self.pretrained} was trained for {_in_words(theirs)}, and is fine-tuned here for "
            f"{_in_words(self.process)}: its samples are wrong until it has learnt that."
        )

    def export(self, params: Params, out: Path) -> None:
        """Write the folder with this UNet and the run's process. Raises: UsageError."""
        sampler, folder = self.settings["sampler"], diffusers_io.read(self.pretrained)
        # Leading levels alone have an offset; for others the folder's own stays, which none reads.
        leading = sampler["spacing"] == "leading"
        offset = sampler["steps_offset"] if leading else folder.sampler.steps_offset
        settings = SamplerSettings(sampler["spacing"], offset, sampler["final_level"])
        diffusers_io.write(folder, out, params, self.process, settings)

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        return diffusers_io.digests(self.pretrained)

    def _weights(self, name: str) -> Params:
        """A network of the folder, in float32."""
        params = diffusers_io.read_network(self.pretrained, name).params
        return jax.tree.map(lambda x: x.astype(np.float32, copy=False), params)


def float32_shapes(name: str, model: Any) -> Params:
    """Shapes of a network's parameters as they are kept while training."""
    shapes = diffusers_io.parameter_shapes(name, model)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes)


def build_latents(config: Config) -> LatentRun:
    """Make a run on latents. Raises: UsageError for the first setting that is wrong."""
    if not config.dataset.latents:
        raise UsageError(
            "config.pretrained needs config.dataset.latents, a folder of python -m "
            "zsnr_jax.data.encode: set both, or neither."
        )
    pretrained = Path(config.pretrained).expanduser()
    diffusers_io.read_scheduler(pretrained)
    info = LatentInfo.read(Path(config.dataset.latents).expanduser())
    if config.dataset.image_size not in (0, info.image_size):
        raise UsageError(
            f"dataset.image_size={config.dataset.image_size}, and dataset.latents="
            f"{config.dataset.latents} are of {info.image_size} pixels: set it to 0, or encode "
            "them anew."
        )
    if config.evaluation.prompts:
        read_prompts(Path(config.evaluation.prompts).expanduser())  # broken: said before training
    judges = (config.evaluation[name] for name in ("inception", "fid_statistics", "clip"))
    if not all(Path(path).expanduser().exists() for path in judges if path):
        scores.load(config.evaluation)  # says how to get what is missing, before training
    ids = np.asarray(info.empty_ids, np.int32)
    read = functools.partial(diffusers_io.read_model, pretrained)
    run = _make(config, pretrained, read, info.image_size, ids)
    _ = run.source  # refused now, where it is of other networks
    return run


def plan_latents(config: Config) -> LatentRun:
    """A run whose shapes are known and whose weights and data need not be there, for --mode=plan.

    Its networks are those of config.pretrained where that is a folder, and SD 2.1's elsewhere.
    """
    pretrained = Path(config.pretrained).expanduser()
    if not config.dataset.image_size:
        raise UsageError(
            "--mode=plan reads no latents, and has to be told how large pictures are: set "
            "dataset.image_size."
        )
    if pretrained.is_dir():
        read = functools.partial(diffusers_io.read_model, pretrained)
    else:
        read = lambda name, **options: diffusers_io.make_model(  # noqa: E731
            name, architectures.SD21[name], **options
        )
    return _make(config, pretrained, read, config.dataset.image_size, None)


def _make(
    config: Config,
    pretrained: Path,
    read: Callable[..., Any],
    image_size: int,
    empty_ids: np.ndarray | None,
) -> LatentRun:
    """Args: read: a network by its name, for a dtype; empty_ids: None where they do not matter."""
    _require_no_image_settings(config)
    parts = common.common_parts(config)
    dtype = common.require_dtype(config.model.dtype)
    unet = read("unet", dtype=dtype, remat=config.model.remat)
    # Decoded in float32 always: what is measured are its pictures.
    vae, text_encoder = read("vae", dtype=jnp.float32), read("text_encoder", dtype=dtype)
    ids = empty_ids
    if ids is None:
        ids = np.zeros(text_encoder.max_position_embeddings, np.int32)
    return LatentRun(
        **parts,
        model=unet,
        objective=build_objective(config, parts["process"], unet, vae, text_encoder, ids),
        pretrained=pretrained,
        vae=vae,
        text_encoder=text_encoder,
        image_size=image_size,
        empty_ids=ids,
    )


def build_objective(
    config: Config,
    process: DiffusionProcess,
    unet: UNet2DCondition,
    vae: AutoencoderKL,
    text_encoder: TextEncoder,
    empty_ids: np.ndarray,
) -> Objective:
    """What the UNet learns: latents drawn from their moments, and captions, some of them hidden."""

    def network(
        params: Params, x_t: jax.Array, timestep: jax.Array, context: Any, dropout_keys: Any = None
    ) -> jax.Array:
        del dropout_keys  # Stable Diffusion's UNet has no dropout
        return jnp.asarray(unet.apply({"params": params}, x_t, timestep, context))

    return Objective(
        network=network,
        process=process,
        null_condition=empty_ids,
        clean=lambda batch, keys: sample_latents(batch["moments"], keys, vae.scaling_factor),
        condition="ids",
        encode=lambda frozen, ids: jnp.asarray(
            text_encoder.apply({"params": frozen["text_encoder"]}, ids)
        ),
        weight=common.build_weight(config),
        label_dropout=config.loss.label_dropout,
        offset_noise=config.loss.offset_noise,
    )


def _require_no_image_settings(config: Config) -> None:
    """Refuse settings of the runs on images, which would be passed over."""
    if config.sampler.start != "noise":
        raise UsageError("sampler.start=signal_leak is of runs on images: set it to noise.")
    if config.sampler.negative_label is not None:
        raise UsageError(
            "sampler.negative_label is of runs on images: give negative prompts, in "
            "evaluation.prompts."
        )
    if config.dataset.flip:
        raise UsageError("dataset.flip cannot mirror latents: set it to False.")


def _require_same_folder(
    source: LatentSource, pretrained: Path, latent_shape: tuple[int, int, int]
) -> None:
    """Refuse latents of another autoencoder, or ids of another tokenizer."""
    for name, theirs, digest in (
        ("autoencoder", source.info.vae_sha256, vae_digests(pretrained)),
        ("tokenizer", source.info.tokenizer_sha256, tokenizer_digests(pretrained)),
    ):
        if theirs != digest:
            raise UsageError(
                f"{source!r} was encoded with another {name} than that of {pretrained}: encode it "
                "with that folder, into another --out."
            )
    height, width, channels = source.info.moments_shape
    if (height, width, channels // 2) != latent_shape:
        raise UsageError(
            f"{source!r} has latents of {height} x {width} x {channels // 2}, and the networks "
            f"have {latent_shape}: encode it with {pretrained}."
        )


def _in_words(process: DiffusionProcess) -> str:
    end = "with" if process.zero_terminal_snr else "without"
    schedule = f"the {process.schedule} schedule {end} zero terminal SNR"
    return f"{process.prediction}-prediction on {schedule}"
