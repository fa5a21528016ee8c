"""The tokenizer and the text encoder beside transformers', live: the same ids, the same states."""
# pyright: reportMissingImports=false

import dataclasses
import functools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import clip_folder
import safetensors.numpy
import torch
import transformers
from clip_folder import END, START
from hypothesis import given
from hypothesis import strategies as st
from parity import full_width_text
from parity.full_width import flax_params
from parity.text_configs import SIZES, TEXT_1, TEXT_2

from zsnr_jax import torch_weights
from zsnr_jax.data.tokenizer import ClipTokenizer
from zsnr_jax.models.text_encoder import TextEncoder

# The tokenizer.

PADS = ("!", END)
FORMS = ("map", "decoder", "whole", "saved")  # the last: as the transformers at hand saves it
STRINGS = [
    *("", " ", "a photo of a cat", "A PHOTO of a Cat", "  the   old\n\tgarden\u2003\u00a0!  "),
    *("the cat, the dog; (rain)... #1 @ 50% -- ok?!", "!!! ! !!", "cat!", "!cat", "'!'", "_a_b_"),
    *("they're I've he'd we'll I'm it's don't 'tis rock'n'roll 's 'S", "THEY'RE", "''ll"),
    *("it\u2019s \u201cso\u201d", "&amp;<b>", "a\u200bb", "a\x00b\x07", "\ufeffcat", "so\u00adft"),
    *("12 1234567890 3.14 1st", "\u00bd \u00b2 \u2460 \u0664\u0662 \u96f6"),
    *("caf\u00e9", "cafe\u0301", "a\u0323\u0301", "\ufb01ne", "\uff26\uff35\uff2c\uff2c \uff01"),
    *("Stra\u00dfe \u1e9e", "\u0130stanbul \u0131", "\u03a3\u0391\u03a3 \u03bf\u03b4\u03cc\u03c2"),
    *("\u65e5\u672c\u306e\u732b", "\ud55c\uad6d\uc5b4", "\u0645\u0631\u062d", "\u0939\u093f\u0928"),
    *("\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7 \u2764\ufe0f"),
    *(f"a{START}b{END}c", f"{END}{END.upper()} {START.upper()}", "<|endoftext", "<|x|>"),
    *("x" * 500, "cat " * 74, "cat " * 75, "cat " * 76, "cat " * 200, "1" * 90, "! " * 90),
]
PIECES = [*STRINGS, *" ".join(clip_folder.CAPTIONS).split(" "), " ", "'ll", "\u00a0", "\u0301"]
TEXTS = st.lists(st.text(max_size=9) | st.sampled_from(PIECES), max_size=9).map("".join)


@functools.cache
def tokenizers(pad, form):
    """Ours and transformers', of the same folder."""
    with tempfile.TemporaryDirectory() as folder:
        written = clip_folder.write(Path(folder, "a"), pad, "map" if form == "saved" else form)
        theirs = transformers.CLIPTokenizer.from_pretrained(written)
        if form == "saved":
            theirs.save_pretrained(written := Path(folder, "b"))
            theirs = transformers.CLIPTokenizer.from_pretrained(written)
        return ClipTokenizer(written), theirs


def compare(pad, form, texts):
    ours, theirs = tokenizers(pad, form)
    rows, size = ours(texts), {"padding": "max_length", "max_length": 77, "truncation": True}
    np.testing.assert_array_equal(rows.ids, theirs(texts, **size).input_ids)
    lengths = [len(ids) for ids in theirs(texts).input_ids]
    assert list(rows.cut) == [max(0, length - 77) for length in lengths]


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("form", FORMS)
def test_ids_are_the_same(pad, form):
    compare(pad, form, STRINGS)


@pytest.mark.parametrize("pad", PADS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_ids_are_the_same_of_any_text(pad, texts):
    compare(pad, "map", texts)


@pytest.mark.parametrize("form", FORMS)
def test_special_tokens_are_the_same(form):
    for pad in PADS:
        ours, theirs = tokenizers(pad, form)
        assert ours.vocab_size == len(theirs)
        assert (ours.start_id, ours.end_id, ours.pad_id, ours.length) == (
            *(theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id),
            theirs.model_max_length,
        )


# The network.

TOLERANCE = 1e-5  # relative to the largest output; measured: 9e-7 at most
SMALL = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CONFIGS = {"2.x": TEXT_2 | SMALL, "1.x": TEXT_1 | SMALL | {"layer_norm_eps": 1e-3}}


@pytest.mark.parametrize("scale", [1.0, 0.01])
@pytest.mark.parametrize("version", CONFIGS)
def test_the_states_are_the_same(version, scale):
    assert full_width_text.text(CONFIGS[version], scale).error < TOLERANCE


def test_the_states_of_a_short_row_are_the_same():
    assert full_width_text.text(CONFIGS["2.x"], length=7).error < TOLERANCE


def weights_and_params(config):
    weights = full_width_text.tensors(full_width_text.random_torch(config))
    ids = full_width_text.input_ids(config)
    return weights, flax_params(TextEncoder.from_config(config), weights, ids)["params"]


def test_weights_come_back_as_they_were():
    weights, params = weights_and_params(CONFIGS["2.x"])
    back = torch_weights.to_torch(params)
    assert back.keys() == weights.keys()
    for name, x in weights.items():
        assert (back[name].shape, back[name].dtype) == (x.shape, x.dtype), name
        assert back[name].tobytes() == x.tobytes(), name


def test_transformers_reads_our_names(tmp_path):
    config = CONFIGS["2.x"]
    _, params = weights_and_params(config)
    safetensors.numpy.save_file(
        torch_weights.to_torch(params), tmp_path / "model.safetensors", {"format": "pt"}
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    read, report = transformers.CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    first = full_width_text.random_torch(config)
    for name, x in first.state_dict().items():
        assert torch.equal(read.state_dict()[name], x), name


@pytest.mark.parametrize("version", SIZES)
def test_transformers_counts_as_many_parameters(version):
    config, size = SIZES[version]
    with torch.device("meta"):
        network = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    assert sum(math.prod(x.shape) for x in network.parameters()) == size


def test_a_config_written_by_transformers_is_read_as_its_own(tmp_path):
    full_width_text.random_torch(CONFIGS["1.x"]).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert TextEncoder.from_config(written) == TextEncoder.from_config(CONFIGS["1.x"])


def test_absent_keys_mean_what_they_do_in_transformers():
    default = transformers.CLIPTextConfig()
    fields = {field.name: field.default for field in dataclasses.fields(TextEncoder)}
    shared = [name for name in fields if hasattr(default, name) and name != "dtype"]
    assert len(shared) == 8
    assert {name: fields[name] for name in shared} == {n: getattr(default, n) for n in shared}
