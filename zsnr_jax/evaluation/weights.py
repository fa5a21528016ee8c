"""The networks that judge samples, from local files of weights: Inception-v3 and CLIP.

Nothing is downloaded, and no pickle is read: it could run any code.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsnr_jax import files, safetensors_files, torch_weights
from zsnr_jax.data.tokenizer import ClipTokenizer
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation.networks import VARIANTS, Clip, Inception
from zsnr_jax.models import clip
from zsnr_jax.models.clip import CLIP
from zsnr_jax.models.inception import SIZE, InceptionV3

INCEPTION_PICKLE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_FILE = "inception-2015-12-05.safetensors"
_INCEPTION_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
_CONVERT = (
    "import torch; from safetensors.torch import save_file; "
    f'w = torch.load("{INCEPTION_PICKLE}", weights_only=True); '
    f'save_file({{k: x.contiguous() for k, x in w.items()}}, "{INCEPTION_FILE}")'
)
HOW_TO_GET_INCEPTION = (
    f"download {_INCEPTION_URL}/{INCEPTION_PICKLE}, and convert it once by python -c '{_CONVERT}'"
)
_COUNTERS = "num_batches_tracked"  # of batch norms that are trained; no parameter
_BUFFERS = ("position_ids", "logit_scale")  # of CLIP: 0, 1, ..; and what only its training needs


def load_inception(
    path: str | os.PathLike[str], variant: str = VARIANTS[0], batch_size: int = 64
) -> Inception:
    """Load the network of FID from a safetensors file with the names of pytorch-fid's weights.

    Args: variant: how images are resized: see `networks.Inception`.
    Raises: UsageError, which tells how to make the file where there is none.
    """
    file = Path(path).expanduser()
    if variant not in VARIANTS:
        known = " or ".join(map(repr, VARIANTS))
        raise UsageError(f"FID variant {variant!r} is unknown: give {known}.")
    if file.suffix != ".safetensors" or not file.is_file():
        raise UsageError(
            f"{file} is no safetensors file of Inception weights: {HOW_TO_GET_INCEPTION}"
        )
    tensors = safetensors_files.load(file.parent, file.stem)
    tensors = {name: x for name, x in tensors.items() if not name.endswith(_COUNTERS)}
    inputs = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8)
    params = _params(InceptionV3().init, (inputs,), tensors, file)
    return Inception(params, variant, safetensors_files.sha256(file), batch_size)


def load_clip(folder: str | os.PathLike[str], batch_size: int = 64) -> Clip:
    """Load CLIP from a folder in transformers' format, as that of openai/clip-vit-large-patch14.

    It holds config.json, model.safetensors, and the tokenizer's files.
    Raises: UsageError for what is missing, broken or not implemented.
    """
    place = Path(folder).expanduser()
    config, file = _read_config(place), place / "model.safetensors"
    try:
        model = CLIP.from_config(config)
    except UsageError as error:
        raise UsageError(f"{place / 'config.json'}: {error}") from error
    _require_pixels(place / "preprocessor_config.json")
    tokenizer = ClipTokenizer(place)
    if (tokenizer.vocab_size, tokenizer.end_id) != (model.text.vocab_size, model.end_id):
        raise UsageError(
            f"the tokenizer of {place} knows {tokenizer.vocab_size} tokens and ends with "
            f"{tokenizer.end_id}, and its config.json says {model.text.vocab_size} and "
            f"{model.end_id}: copy the whole folder again."
        )
    tensors = safetensors_files.load(place, "model")
    tensors = {name: x for name, x in tensors.items() if not name.endswith(_BUFFERS)}
    side = model.vision.image_size
    inputs = (
        jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((1, tokenizer.length), jnp.int32),
    )
    params = _params(model.init, inputs, tensors, file)
    sha256 = safetensors_files.sha256(file)
    return Clip(model, params, tokenizer, _name(place), sha256, batch_size)


def _params(
    init: Callable[..., Any], inputs: tuple[Any, ...], tensors: Mapping[str, Any], file: Path
) -> Any:
    with files.readable(file.with_name("config.json"), "copy the whole folder again"):
        shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
    params = torch_weights.from_torch(tensors, shapes, str(file))
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


def _read_config(place: Path) -> dict[str, Any]:
    missing = [name for name in ("config.json", "model.safetensors") if not (place / name).exists()]
    if missing:
        raise UsageError(
            f"there is no {place / missing[0]}: give the folder of a CLIP in transformers' format, "
            "with config.json, model.safetensors and the tokenizer's files, as that of "
            "openai/clip-vit-large-patch14."
        )
    return _read_json(place / "config.json")


def _require_pixels(file: Path) -> None:
    """Refuse a CLIP whose images are normalised in another way than OpenAI's."""
    config = _read_json(file) if file.exists() else {}
    for key, ours in {"image_mean": clip.MEAN, "image_std": clip.STD}.items():
        theirs = config.get(key, ours)
        with files.readable(file, "copy it again"):
            same = np.shape(theirs) == np.shape(ours) and np.allclose(theirs, ours, atol=1e-5)
        if not same:
            raise UsageError(
                f"{file} has {key}={files.shown(theirs)}, which is not implemented: give a CLIP "
                f"with {list(ours)}."
            )


def _read_json(file: Path) -> dict[str, Any]:
    content = files.read_json(file, "copy it again")
    if not isinstance(content, dict):
        raise UsageError(f"{file} does not hold settings: copy it again.")
    return content


def _name(place: Path) -> str:
    """The model's name: the folder's, or the repository's in a cache of Hugging Face's hub."""
    place = place.resolve()
    if place.parent.name == "snapshots":  # models--OWNER--NAME/snapshots/REVISION
        return place.parents[1].name.split("--")[-1]
    return place.name
