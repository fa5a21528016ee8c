"""The folder of random weights: whole, the same for the same seed, and of the real sizes."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from parity import sd_configs, text_configs
from test_scheduler_config import BASE

from zsnr_jax import architectures, diffusers_io, random_folder
from zsnr_jax.data import scenes
from zsnr_jax.data.tokenizer import ClipTokenizer
from zsnr_jax.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny folder of seed 1, by the command line."""
    out = tmp_path_factory.mktemp("random") / "tiny"
    random_folder.main([f"--out={out}", "--seed=1"])
    return out


@pytest.fixture(scope="module")
def read(folder: Path) -> diffusers_io.Folder:
    """The same, read: each parameter was there, once, of the right shape."""
    return diffusers_io.read(folder)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_it_is_a_folder_of_stable_diffusion_for_eps_prediction(folder: Path, read) -> None:
    assert (read.process.prediction, read.process.zero_terminal_snr) == ("eps", False)
    assert (read.process.schedule, read.process.num_steps) == ("scaled_linear", 1000)
    assert tuple(read.sampler) == ("leading", 1, 1)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert len(index[name]) == 2 and (folder / name).is_dir()


def test_its_scheduler_is_that_of_2_1_base(folder: Path) -> None:
    ours = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert {key: ours[key] for key in ours.keys() & BASE.keys()} == {
        key: BASE[key] for key in ours.keys() & BASE.keys()
    }
    assert len(ours.keys() & BASE.keys()) >= 10


def test_weights_are_random_and_norms_the_identity(read) -> None:
    for name in diffusers_io.NETWORKS:
        for path, x in jax.tree_util.tree_leaves_with_path(getattr(read, name).params):
            kind = path[-1].key
            assert x.dtype == np.float32, path
            if kind in ("scale", "bias"):
                assert np.all(x == (kind == "scale")), path
                continue
            # To 5 standard errors.
            assert np.std(x) == pytest.approx(deviation(path, x), rel=5 / np.sqrt(2 * x.size)), path
            assert abs(np.mean(x)) < 5 * deviation(path, x) / np.sqrt(x.size), path


def test_networks_are_of_different_streams(read) -> None:
    firsts = set()
    for name in diffusers_io.NETWORKS:
        leaves = jax.tree_util.tree_leaves_with_path(getattr(read, name).params)
        path, x = next(leaf for leaf in leaves if leaf[0][-1].key not in ("scale", "bias"))
        firsts.add(round(float(np.ravel(x)[0] / deviation(path, x)), 3))
    assert len(firsts) == 3


def deviation(path, x: np.ndarray) -> float:
    """Of a weight: by its fan-in, and of CLIP's tables 0.02."""
    return 0.02 if path[-1].key == "embedding" else (x.size / x.shape[-1]) ** -0.5


def test_its_tokenizer_reads_captions_as_the_text_encoder_takes_them(folder: Path, read) -> None:
    tokenizer, text = ClipTokenizer(folder / "tokenizer"), read.text_encoder.model
    tokens = tokenizer(scenes.CAPTIONS)
    assert tokens.ids.shape == (len(scenes.CAPTIONS), 77) and not tokens.cut.any()
    assert tokens.ids.max() < tokenizer.vocab_size <= text.vocab_size
    assert tokenizer.pad_id == 0  # as in Stable Diffusion 2
    lengths = np.argmax(tokens.ids == tokenizer.end_id, axis=1) - 1
    words = [len(caption.replace(",", " ,").split()) for caption in scenes.CAPTIONS]
    # Merges were learnt: most words are one token, where bytes would be five.
    assert np.sum(lengths) < 1.5 * np.sum(words)
    assert len(np.unique(tokens.ids, axis=0)) == len(set(scenes.CAPTIONS))


def test_a_seed_tells_all_of_it_and_another_moves_every_weight(
    folder: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        random_folder.write_folder(tmp_path / str(seed), seed=seed)
    first = contents(folder)
    assert contents(tmp_path / "1") == first
    other = contents(tmp_path / "0")
    assert other.keys() == first.keys()
    moved = {name for name in first if first[name] != other[name]}
    assert moved == {name for name in first if name.endswith(".safetensors")}
    assert len(moved) == 3


def test_a_folder_that_exists_is_left_alone(folder: Path, capsys) -> None:
    before = contents(folder)
    with pytest.raises(SystemExit) as exit:
        random_folder.main([f"--out={folder}"])
    assert exit.value.code == f"error: {folder} exists: choose an --out that does not."
    assert contents(folder) == before


def test_an_unknown_size_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--size 'sd15' is unknown: choose tiny or sd21."):
        random_folder.write_folder(tmp_path / "out", "sd15")
    assert not (tmp_path / "out").exists()


def test_the_real_autoencoder_has_as_many_parameters_as_its_file() -> None:
    """The others: tests/test_planning.py."""
    model = diffusers_io.make_model("vae", architectures.SD21["vae"])
    shapes = diffusers_io.parameter_shapes("vae", model)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 83_653_863


FILES = {
    "unet": sd_configs.UNET_2, "vae": sd_configs.VAE, "text_encoder": text_configs.TEXT_2
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_settings_are_those_of_the_files(name: str) -> None:
    ours, theirs = architectures.SD21[name], FILES[name]
    both = ours.keys() & theirs.keys()
    assert {key: ours[key] for key in both} == {key: theirs[key] for key in both}
    assert ours.keys() <= theirs.keys() and len(both) >= 10
