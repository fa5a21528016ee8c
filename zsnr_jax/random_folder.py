"""A Stable Diffusion folder of random weights, to try everything on that needs one.

    python -m zsnr_jax.random_folder --out=DIR [--size=tiny|sd21] [--seed=0]

It has the files and the settings of Stable Diffusion 2.1-base: eps-prediction on the original
schedule. The tokenizer of the tiny one is learnt from the captions of `zsnr_jax.data.scenes`; that
of sd21 is the same, so that only its networks are of the real size.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import AddedToken, pre_tokenizers, trainers

from zsnr_jax import architectures, diffusers_io, safetensors_files, torch_weights
from zsnr_jax.data import scenes
from zsnr_jax.data.tokenizer import byte_pair_encoding
from zsnr_jax.errors import UsageError

SIZES = {"tiny": architectures.TINY, "sd21": architectures.SD21}
_START, _END, _PAD = "<|startoftext|>", "<|endoftext|>", "!"
_NUM_MERGES = 400
# Source: scheduler_config.json of stabilityai/stable-diffusion-2-1-base.
_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers_io.DIFFUSERS_VERSION,
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_folder(out: Path, size: str = "tiny", seed: int = 0) -> None:
    """Write a folder. Raises: UsageError where `out` exists, or the size is unknown."""
    if size not in SIZES:
        raise UsageError(f"--size {size!r} is unknown: choose {' or '.join(SIZES)}.")
    if out.exists():
        raise UsageError(f"{out} exists: choose an --out that does not.")
    write_tokenizer(out / "tokenizer")
    for i, (name, config) in enumerate(SIZES[size].items()):
        tensors = torch_weights.to_torch(random_params(name, config, seed * len(SIZES) + i))
        safetensors_files.save(out / name, diffusers_io.weight_stem(name), tensors)
        _write_json(out / name / "config.json", config)
    _write_json(out / "scheduler" / "scheduler_config.json", _SCHEDULER)
    _write_json(out / "model_index.json", _INDEX)


def random_params(name: str, config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Flax parameters of a network, float32: norms the identity, no bias, and of the rest no zeros.

    Kernels keep the variance of what they take (LeCun's normal).
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind in ("scale", "bias"):
            return np.full(x.shape, kind == "scale", np.float32)
        std = 0.02 if kind == "embedding" else (x.size / x.shape[-1]) ** -0.5
        return std * rng.standard_normal(x.shape, np.float32)

    shapes = diffusers_io.parameter_shapes(name, diffusers_io.make_model(name, config))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_tokenizer(out: Path) -> None:
    """Write a tokenizer/ folder in CLIP's format, with merges learnt from the scenes' captions."""
    tokens = {role: AddedToken(_END, normalized=True) for role in ("eos_token", "unk_token")} | {
        "bos_token": AddedToken(_START, normalized=True),
        "pad_token": AddedToken(_PAD),
    }
    signs = sorted(
        pre_tokenizers.ByteLevel.alphabet(), key=lambda sign: (sign != _PAD, sign)
    )  # "!" is 0, as in CLIP
    single = [*signs, *(f"{sign}</w>" for sign in signs)]
    vocabulary = {token: i for i, token in enumerate([*single, _START, _END])}
    learner = byte_pair_encoding(
        vocabulary, [], {r: t for r, t in tokens.items() if t.content != _PAD}
    )
    trainer: Any = trainers.BpeTrainer(
        vocab_size=len(single) + _NUM_MERGES, initial_alphabet=signs, end_of_word_suffix="</w>",
        special_tokens=single,  # numbers them, by which ties are decided: else chance does
        show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator(scenes.CAPTIONS, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    joined = dict.fromkeys([*single, *("".join(pair) for pair in merges), _START, _END])
    roles = {role: token.content for role, token in tokens.items()}
    _write_json(out / "vocab.json", {token: i for i, token in enumerate(joined)})
    _write_json(out / "special_tokens_map.json", roles)
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "do_lower_case": True,
            **roles,
        },
    )
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m zsnr_jax.random_folder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder; must not exist")
    parser.add_argument("--size", default="tiny", help="tiny or sd21")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args(argv)
    try:
        write_folder(options.out, options.size, options.seed)
    except UsageError as error:
        sys.exit(f"error: {error}")
    print(f"A {options.size} Stable Diffusion folder of random weights: {options.out}")


if __name__ == "__main__":
    main()
