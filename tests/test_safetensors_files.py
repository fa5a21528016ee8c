"""Weight files of a folder: one, many with an index, and every way they can be unfit."""

import json

import ml_dtypes
import numpy as np
import pytest

from zsnr_jax import safetensors_files
from zsnr_jax.errors import UsageError

TENSORS = {
    "conv.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
    "conv.bias": np.array([0.1, -2.0], np.float16),
    "proj.weight": np.array([[1.5, -3.25]], ml_dtypes.bfloat16),
    "position_ids": np.arange(4, dtype=np.int64)[None],
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        assert found[name].tobytes() == x.tobytes(), name


def test_one_file_keeps_names_dtypes_shapes_and_bytes(tmp_path):
    safetensors_files.save(tmp_path / "unet", "model", TENSORS)
    same(safetensors_files.load(tmp_path / "unet", "model"), TENSORS)


def test_a_transposed_view_is_written_as_it_reads(tmp_path):
    turned = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    safetensors_files.save(tmp_path, "model", turned)
    np.testing.assert_array_equal(safetensors_files.load(tmp_path, "model")["w"], turned["w"])


def test_many_files_with_an_index(tmp_path):
    parts = dict(list(TENSORS.items())[:2]), dict(list(TENSORS.items())[2:])
    places = {}
    for i, part in enumerate(parts):
        safetensors_files.save(tmp_path, f"model-{i}", part)
        places |= dict.fromkeys(part, f"model-{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    same(safetensors_files.load(tmp_path, "model"), TENSORS)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UsageError, match="no .*model-1.safetensors, which its index names"):
        safetensors_files.load(tmp_path, "model")
    index.write_text("[]")
    with pytest.raises(UsageError, match="index.json cannot be read"):
        safetensors_files.load(tmp_path, "model")


def test_a_file_that_is_cut_off_or_no_safetensors_is_refused(tmp_path):
    safetensors_files.save(tmp_path, "model", TENSORS)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for broken in (whole[:-5], whole[:20], b"", b"x" * 100):
        path.write_bytes(broken)
        with pytest.raises(UsageError, match="is broken or cut off") as caught:
            safetensors_files.load(tmp_path, "model")
        assert "\n" not in str(caught.value)


def test_what_else_a_folder_may_hold(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        safetensors_files.load(tmp_path / "unet", "model")
    with pytest.raises(UsageError, match="no .*model.safetensors"):
        safetensors_files.load(tmp_path, "model")
    (tmp_path / "model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UsageError, match="model.bin, a pickle, .* not read"):
        safetensors_files.load(tmp_path, "model")
    (tmp_path / "model.fp16.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="model.fp16.safetensors only: rename"):
        safetensors_files.load(tmp_path, "model")
