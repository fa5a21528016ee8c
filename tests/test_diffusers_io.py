"""Folders in diffusers' format: in and out again, and every way they can be unfit."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import sd_folder
from test_scheduler_config import AUTHORS

from zsnr_jax import diffusers_io, safetensors_files
from zsnr_jax.errors import UsageError
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.scheduler_config import SamplerSettings

STEM = "diffusion_pytorch_model"
FIXED = DiffusionProcess(), SamplerSettings("trailing", steps_offset=1, final_level=0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sd_folder.write(tmp_path / "source")


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_folder_comes_back_but_for_its_scheduler(source, tmp_path):
    folder = diffusers_io.read(source)
    assert folder.process == DiffusionProcess("scaled_linear", 1000, False, "eps", 0.00085, 0.012)
    assert folder.sampler == SamplerSettings("leading", 1, 1)
    # Training keeps parameters in float32; what was float16 is written so.
    params = jax.tree.map(lambda x: x.astype(np.float32), folder.unet.params)
    diffusers_io.write(folder, tmp_path / "out", params, *FIXED)
    before, after = files(source), files(tmp_path / "out")
    assert before.keys() == after.keys()
    weights = f"unet/{STEM}.safetensors"
    changed = {name for name in before if before[name] != after[name]}
    assert changed - {weights} == {"scheduler/scheduler_config.json", "model_index.json"}
    expected = sd_folder.weights("unet")
    found = safetensors_files.load(tmp_path / "out" / "unet", STEM)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape), name
        assert found[name].tobytes() == x.tobytes(), name
    scheduler = json.loads(after["scheduler/scheduler_config.json"])
    assert scheduler == AUTHORS | {"_diffusers_version": diffusers_io.DIFFUSERS_VERSION}
    index = json.loads(after["model_index.json"])
    assert index == sd_folder.INDEX | {"scheduler": ["diffusers", "DDIMScheduler"]}


@pytest.mark.parametrize("name", sd_folder.NETWORKS)
def test_every_tensor_of_each_network_comes_back(name, source, tmp_path):
    network = diffusers_io.read_network(source, name)
    diffusers_io.write_network(network, tmp_path, "again", network.params)
    found, expected = safetensors_files.load(tmp_path, "again"), sd_folder.weights(name)
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        assert found[key].dtype == x.dtype and found[key].tobytes() == x.tobytes(), key


def test_old_names_of_the_autoencoders_attention_are_read_and_written_back(source, tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = sd_folder.weights("vae")
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): x for key, x in tensors.items()}
    assert tensors.keys() != sd_folder.weights("vae").keys()
    new = diffusers_io.read_network(source, "vae")
    safetensors_files.save(source / "vae", STEM, tensors)
    network = diffusers_io.read_network(source, "vae")
    same = jax.tree.map(np.array_equal, network.params, new.params)
    assert all(jax.tree.leaves(same))
    diffusers_io.write_network(network, tmp_path, "again", network.params)
    assert safetensors_files.load(tmp_path, "again").keys() == tensors.keys()


def test_a_text_encoder_whose_names_lack_their_prefix(source, tmp_path):
    tensors = sd_folder.weights("text_encoder")
    short = {key.removeprefix("text_model."): x for key, x in tensors.items()}
    whole = diffusers_io.read_network(source, "text_encoder")
    safetensors_files.save(source / "text_encoder", "model", short)
    network = diffusers_io.read_network(source, "text_encoder")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, network.params, whole.params)))
    diffusers_io.write_network(network, tmp_path, "again", network.params)
    assert safetensors_files.load(tmp_path, "again").keys() == short.keys()


def break_file(name):
    def change(source):
        path = source / name
        path.write_bytes(path.read_bytes()[:-3])

    return change


def change_tensors(**tensors):
    def change(source):
        found = safetensors_files.load(source / "unet", STEM) | tensors
        kept = {key: x for key, x in found.items() if x is not None}
        safetensors_files.save(source / "unet", STEM, kept)

    return change


def change_json(name, **settings):
    def change(source):
        path = source / name
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (change_tensors(**{"conv_out.bias": None}), "missing conv_out.bias"),
        (change_tensors(new=np.zeros(2)), "extra new"),
        (change_tensors(**{"conv_out.bias": np.zeros(5)}), r"misshapen conv_out.bias \[5\] for"),
        (break_file(f"vae/{STEM}.safetensors"), "is broken or cut off"),
        (break_file("unet/config.json"), "config.json cannot be read"),
        (change_json("unet/config.json", act_fn="gelu"), "unet/config.json: .*act_fn"),
        (change_json("scheduler/scheduler_config.json", _class_name="X"), "is of a X"),
        (change_json("model_index.json", _class_name="FluxPipeline"), "holds a FluxPipeline"),
        (lambda source: (source / "model_index.json").unlink(), "there is no .*model_index.json"),
    ],
)
def test_an_unfit_folder_is_refused_in_one_sentence(change, message, source):
    change(source)
    with pytest.raises(UsageError, match=message) as caught:
        diffusers_io.read(source)
    assert "\n" not in str(caught.value)


def test_nothing_is_written_over(source):
    with pytest.raises(UsageError, match="exists: export into a folder that does not"):
        diffusers_io.write(diffusers_io.read(source), source, {}, *FIXED)
