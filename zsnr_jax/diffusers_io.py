"""Import and export of Stable Diffusion 1.x and 2.x folders in diffusers' format.

    model_index.json   scheduler/scheduler_config.json   tokenizer/   feature_extractor/
    unet/, vae/        config.json, diffusion_pytorch_model.safetensors
    text_encoder/      config.json, model.safetensors

Each network is built from its config.json, and each of its parameters filled exactly once. What is
written back has the names, shapes and dtypes that were read, and every other file of the folder as
it was, but for the scheduler, which tells the process that the network now belongs to.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zsnr_jax import files, safetensors_files, scheduler_config, torch_weights
from zsnr_jax.errors import UsageError
from zsnr_jax.models.autoencoder import AutoencoderKL
from zsnr_jax.models.sd_unet import UNet2DCondition
from zsnr_jax.models.text_encoder import TextEncoder
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.scheduler_config import SamplerSettings

DIFFUSERS_VERSION = "0.42.1"  # whose names are written


class _Kind(NamedTuple):
    """A network of a folder: its class, the stem of its weight file, and inputs to shape it by."""

    model: Any
    stem: str
    inputs: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]


def _shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


_KINDS = {
    "unet": _Kind(
        UNet2DCondition,
        "diffusion_pytorch_model",
        lambda unet: (
            _shape(1, *[2 ** len(unet.block_out_channels)] * 2, unet.in_channels),
            _shape(1, dtype=jnp.int32),
            _shape(1, 1, unet.cross_attention_dim),
        ),
    ),
    "vae": _Kind(
        AutoencoderKL,
        "diffusion_pytorch_model",
        lambda vae: (_shape(1, *[2 ** len(vae.block_out_channels)] * 2, vae.in_channels),),
    ),
    "text_encoder": _Kind(TextEncoder, "model", lambda _: (_shape(1, 1, dtype=jnp.int32),)),
}  # fmt: skip

NETWORKS = tuple(_KINDS)  # of a folder

# transformers 5 leaves this out of names where it saves a text encoder that it has made itself.
_TEXT_PREFIX = "text_model."
# Names of the autoencoder's attention before diffusers 0.15, and since.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_BUFFER = "embeddings.position_ids"  # of the text encoder: 0, 1, ..; no parameter, in older folders


class Network(NamedTuple):
    """A network as a folder has it."""

    model: nn.Module
    params: dict[str, Any]  # Flax's, without the outer "params"; NumPy, of the file's dtypes
    old_names: dict[str, str]  # name in the file -> torch's name now, where they differ
    buffers: dict[str, np.ndarray]  # tensors that are no parameters


class Folder(NamedTuple):
    """A Stable Diffusion folder, read and checked."""

    path: Path
    unet: Network
    vae: Network
    text_encoder: Network
    process: DiffusionProcess
    sampler: SamplerSettings


def read(path: Path, **options: Any) -> Folder:
    """Read a folder.

    Args: options: dtype (of computation) and remat, for all networks.
    Raises: UsageError, one sentence, for what is missing, broken, or not implemented.
    """
    process, sampler = read_scheduler(path)
    networks = {name: read_network(path, name, **options) for name in NETWORKS}
    return Folder(path, process=process, sampler=sampler, **networks)


def read_scheduler(path: Path) -> tuple[DiffusionProcess, SamplerSettings]:
    """Read what a folder's networks were made for. Raises: UsageError, as of `read`."""
    index = _json(path / "model_index.json")
    if index.get("_class_name") != "StableDiffusionPipeline":
        name = files.shown(index.get("_class_name")).strip("'")
        raise UsageError(f"{path} holds a {name}: give the folder of a StableDiffusionPipeline.")
    scheduler = path / "scheduler" / "scheduler_config.json"
    return scheduler_config.read(_json(scheduler), str(scheduler))


def read_model(path: Path, name: str, **options: Any) -> Any:
    """Read the sizes of one network of a folder. Args and errors as of `read_network`."""
    path = path / name / "config.json"
    config = _json(path)
    try:
        return make_model(name, config, **options)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def make_model(name: str, config: Mapping[str, Any], **options: Any) -> Any:
    """A network of a config.json: the Flax module of unet, vae or text_encoder, without weights."""
    return _KINDS[name].model.from_config(config, **options)


def parameter_shapes(name: str, model: nn.Module) -> dict[str, Any]:
    """Shapes of a network's parameters, without the outer "params".

    Raises: UsageError where its sizes do not go together.
    """
    with files.readable(f"the config.json of the {name}", "give a whole copy of the folder"):
        return jax.eval_shape(model.init, jax.random.key(0), *_KINDS[name].inputs(model))["params"]


def weight_stem(name: str) -> str:
    """How the weight files of a network begin."""
    return _KINDS[name].stem


def read_network(path: Path, name: str, **options: Any) -> Network:
    """Read one network of a folder: unet, vae or text_encoder. Args and errors as of `read`."""
    folder, model = path / name, read_model(path, name, **options)
    tensors = safetensors_files.load(folder, _KINDS[name].stem)
    old_names = {key: new for key in tensors if (new := _present_name(name, key)) != key}
    buffers = {key: x for key, x in tensors.items() if key.endswith(_BUFFER)}
    present = {old_names.get(key, key): x for key, x in tensors.items() if key not in buffers}
    params = torch_weights.from_torch(present, parameter_shapes(name, model), str(folder))
    return Network(model, params, old_names, buffers)


def digests(path: Path) -> dict[str, str]:
    """The sha256 of each weight file that is read of a folder, by its place in it."""
    read = (safetensors_files.paths(path / name, kind.stem) for name, kind in _KINDS.items())
    return {
        str(file.relative_to(path)): safetensors_files.sha256(file)
        for files in read
        for file in files
    }


def write(
    folder: Folder,
    out: Path,
    unet_params: Mapping[str, Any],
    process: DiffusionProcess,
    sampler: SamplerSettings,
) -> None:
    """Write a folder with another UNet, and a scheduler that tells its process.

    Args: out: made, and must not exist.  unet_params: like `folder.unet.params`, and written in the
      dtypes of that.
    Raises: UsageError where `out` exists, or diffusers has no name for the levels.
    """
    config = scheduler_config.write(process, sampler, DIFFUSERS_VERSION)
    if out.exists():
        raise UsageError(f"{out} exists: export into a folder that does not.")
    part = out.with_name(f".{out.name}.part")  # renamed when whole: a kill leaves no half folder
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder.path, part, ignore=lambda at, _: _stale(folder.path, Path(at)))
    (part / "scheduler" / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n")
    index = _json(part / "model_index.json")
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (part / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    write_network(folder.unet, part / "unet", _KINDS["unet"].stem, unet_params)
    part.rename(out)


def write_network(network: Network, out: Path, stem: str, params: Mapping[str, Any]) -> None:
    """Write a network's weights under the names, and in the dtypes, that were read."""
    as_read = jax.tree.map(
        lambda x, read: np.asarray(x).astype(read.dtype, copy=False), params, network.params
    )
    old = {new: key for key, new in network.old_names.items()}
    tensors = {old.get(name, name): x for name, x in torch_weights.to_torch(as_read).items()}
    safetensors_files.save(out, stem, tensors | network.buffers)


def _stale(source: Path, at: Path) -> list[str]:
    """What a copy of the folder goes without: old weights of the UNet, alone or in one file."""
    patterns = {source / "unet": [f"{_KINDS['unet'].stem}*"], source: ["*.ckpt", "*.safetensors"]}
    return [path.name for pattern in patterns.get(at, []) for path in at.glob(pattern)]


def _present_name(network: str, key: str) -> str:
    if network == "text_encoder":
        return key if key.startswith(_TEXT_PREFIX) else _TEXT_PREFIX + key
    parts = key.split(".")
    if network != "vae" or "attentions" not in parts:
        return key
    return ".".join(_RENAMED.get(part, part) for part in parts)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = files.read_json(path, "copy it again")
    except FileNotFoundError:
        raise UsageError(
            f"there is no {path}: give a whole Stable Diffusion folder in diffusers' format."
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} does not hold settings: copy it again.")
    return found
