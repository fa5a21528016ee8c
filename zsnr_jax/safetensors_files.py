"""One network's weights in a diffusers folder: a safetensors file, or several with an index.

    unet/diffusion_pytorch_model.safetensors
    vae/diffusion_pytorch_model.safetensors
    text_encoder/model.safetensors               or model.safetensors.index.json, of many files

Pickles (.bin, .ckpt, .pth) can run any code when they are read, and are never read here.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from safetensors.numpy import load_file, save_file

from zsnr_jax import files
from zsnr_jax.errors import UsageError

_PICKLES = (".bin", ".ckpt", ".pth", ".pt")
_MAX_HEADER = 2**24  # bytes; that of Stable Diffusion's UNet has 100 000


def load(folder: Path, stem: str) -> dict[str, np.ndarray]:
    """All tensors of FOLDER/STEM.safetensors, or of the files its index names; dtypes are kept.

    Raises: UsageError where there is none, a file is cut off or broken, or only a pickle is there.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in paths(folder, stem):
        tensors |= _load_file(path)
    return tensors


def paths(folder: Path, stem: str) -> list[Path]:
    """The files that `load` reads. Raises: UsageError where there is none."""
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if single.exists():
        return [single]
    if not index.exists():
        raise UsageError(_why_none(folder, stem))
    with files.readable(index, "copy it again"):
        names = sorted(set(files.read_json(index, "copy it again")["weight_map"].values()))
        for name in names:
            _require_beside(index, name)
    return [folder / name for name in names]


def sha256(file: Path) -> str:
    """The hexadecimal digest of a file's bytes."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def save(folder: Path, stem: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Write FOLDER/STEM.safetensors, making the folder if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(whole, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def _require_beside(index: Path, name: str) -> None:
    """Refuse a name that would lead out of the index's folder.

    A link of a good name may: in the hub's cache, all files are links.
    """
    named = {PurePosixPath(name).name, PureWindowsPath(name).name}
    if named != {name} or not name.endswith(".safetensors") or not name.isprintable():
        raise UsageError(
            f"{index} names {files.shown(name)}, which is no safetensors file beside it: take the "
            "folder from its source again, and mistrust this one."
        )


def _load_file(path: Path) -> dict[str, np.ndarray]:
    try:
        _require_short_header(path)
        return load_file(path)
    except FileNotFoundError:
        raise UsageError(f"there is no {path}, which its index names: copy it as well.") from None
    except Exception as error:  # of dtypes that NumPy lacks, the library raises all kinds
        said = f"{path} is broken or cut off ({files.reason(error)})"
        raise UsageError(f"{said}: copy or download it again.") from error


def _require_short_header(path: Path) -> None:
    """Refuse a header that would take much memory to parse. The library checks all else in it."""
    if not path.exists():
        raise FileNotFoundError
    if not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"it claims a header of {length} bytes")


def _why_none(folder: Path, stem: str) -> str:
    pickles = [path.name for path in sorted(folder.glob("*")) if path.suffix in _PICKLES]
    others = [path.name for path in sorted(folder.glob(f"{stem}.*.safetensors"))]
    if not folder.is_dir():
        return f"there is no folder {folder}: give a whole diffusers-format folder."
    if others:
        return f"{folder} holds {others[0]} only: rename or link it to {stem}.safetensors."
    if pickles:
        return (
            f"{folder} holds {pickles[0]}, a pickle, which could run any code and is not read: "
            f"convert it to {stem}.safetensors."
        )
    return f"there is no {folder / stem}.safetensors: give a whole diffusers-format folder."
