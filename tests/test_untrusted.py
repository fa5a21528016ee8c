"""Files that someone made to do harm, or that broke: a sentence each, and nothing else happens.

Every parser of bytes from outside is given files that are nearly whole, and bytes of no sense; and
a few that would take all memory, in a process that is told how much it may have.

FUZZ_EXAMPLES=5000 pytest tests/test_untrusted.py     looks longer
"""

import contextlib
import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bombs
import clip_folder
import clip_model
import numpy as np
import pytest
import sd_folder
from absl import flags
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save as safetensors_bytes
from test_claims import RECORD
from test_report import _results as report_results
from test_scheduler_config import AUTHORS

from zsnr_jax import (
    claims,
    config,
    diffusers_io,
    files,
    main,
    page,
    prompts,
    report,
    safetensors_files,
    scheduler_config,
    schedules,
    torch_weights,
)
from zsnr_jax.build.common import build_weight, common_parts
from zsnr_jax.data import captions, latents, tokenizer
from zsnr_jax.errors import UsageError
from zsnr_jax.evaluation import fid
from zsnr_jax.evaluation.frechet import statistics
from zsnr_jax.models.clip import CLIP
from zsnr_jax.models.sd_unet import UNet2DCondition

ROOT = Path(__file__).parents[1]
few = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# What stands where a number, a word or a list should.
NASTY = [
    *(None, True, 0, -1, 3, 2**31, 2**63, 10**30, 10**38, 0.5, -1e300, 1e308),
    *("", "x", "\n\x1b[2J\x00", "\ud800", "../../x", "/etc/passwd", "x" * 300, "é" * 99),
    *([], [1], ["a", 2], [[]], {}, {"a": 1}, {"\n": [None]}, [0] * 99, [[1, 2], [3]]),
]
NUMBERS = [b"-1", b"0", b"1e999", b"NaN", b"9" * 30, b"9" * 5000, b"null", b'"a"', b"[[]]", b"1.5"]


@st.composite
def altered(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with a few bytes flipped, cut off, put in or doubled, or a number replaced."""
    content = whole
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "cut", "insert", "double", "number"]))
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(len(content), at + draw(st.integers(1, 40)))
        if kind == "flip":
            content = content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + draw(st.binary(max_size=9)) + content[at:]
        elif kind == "double":
            content = content[:end] + content[at:end] + content[end:]
        elif places := [found.span() for found in re.finditer(rb"\d+", content)]:
            start, stop = draw(st.sampled_from(places))
            content = content[:start] + draw(st.sampled_from(NUMBERS)) + content[stop:]
    return content


def broken(*whole: bytes) -> st.SearchStrategy[bytes]:
    """One of these files, altered; or no file of this kind at all."""
    return st.one_of(*(altered(content) for content in whole), st.binary(max_size=60))


def slots(tree: Any) -> list[tuple[Any, Any]]:
    """Each list and object within JSON, with each of its keys; of an object, a new one as well."""
    if not isinstance(tree, dict | list):
        return []
    keys = [*tree] if isinstance(tree, dict) else [*range(len(tree))]
    inner = [slot for key in keys for slot in slots(tree[key])]
    new = ["a key"] if isinstance(tree, dict) else []
    return [(tree, key) for key in [*keys, *new]] + inner


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """JSON with another value in one or two places."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 2))):
        if found := slots(tree):
            container, key = draw(st.sampled_from(found))
            container[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
    return tree


def broken_json(*trees: Any) -> st.SearchStrategy[bytes]:
    texts = [json.dumps(tree).encode() for tree in trees]
    trees_changed = [changed(tree).map(lambda found: json.dumps(found).encode()) for tree in trees]
    return st.one_of(*trees_changed, broken(*texts))


@contextlib.contextmanager
def told(*kinds: type[Exception]) -> Iterator[None]:
    """Nothing is raised but these, whose text is one line that can be printed, and no novel."""
    kinds = kinds or (UsageError,)
    try:
        yield
    except kinds as error:
        text = str(error)
        assert type(error) in kinds, type(error)
        assert text and "\n" not in text and text.isprintable() and len(text) < 1500, text


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("untrusted")


# Text and JSON.


@few
@given(content=broken_json({"a": [1, 2.5, {"b": None}], "c": "d"}))
@example(content=b"[" * 100_000)
@example(content=b'{"a":' * 500 + b"1" + b"}" * 500)
@example(content=b'{"a": 1, "a": 2}')
@example(content=b"1e400")
@example(content=b"-Infinity")
def test_json(place: Path, content: bytes) -> None:
    (place / "a.json").write_bytes(content)
    with told():
        found = files.read_json(place / "a.json", "mend it")
        assert json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "content, said",
    [
        (b'{"a": 1, "b": 2, "a": 1}', "it has the key 'a' twice"),
        (b"[NaN]", "it has a number that is not finite, 'NaN'"),
        (b"[1e999]", "it has a number that is not finite, '1e999'"),
        (b"[" * 33 + b"]" * 33, "its values are nested deeper than 32 levels"),
        (b"[" * 10**5, "its values are nested too deeply"),
        (b"9" * 65, "it has a number of 65 digits"),
        (b'"\xff"', "'utf-8' codec can't decode"),
        (b" " * (files.MAX_TEXT + 1), f"its {2**24 + 1} bytes are more than the {2**24}"),
    ],
)
def test_json_that_is_refused_says_why(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    message = f"{path} cannot be read ({said}"
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        files.read_json(path, "mend it")
    assert str(error.value).endswith("): mend it.")


def test_json_that_is_whole_is_read_as_it_is(tmp_path: Path) -> None:
    tree = {"a": [1, 2.5, -3e-7, None, True, "é\n"], "b": {"c": {}}, "d": 10**30}
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(tree).encode())
    assert files.read_json(tmp_path / "a.json", "") == tree
    (tmp_path / "deep.json").write_text("[" * 32 + "]" * 32)
    files.read_json(tmp_path / "deep.json", "")
    (tmp_path / "nan.json").write_text("[NaN]")
    assert np.isnan(files.read_json(tmp_path / "nan.json", "", finite=False)).all()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="it is no regular file"):
            files.read_json(path, "mend it")
        with pytest.raises(UsageError, match="no regular file"):
            safetensors_files.load(*_linked(tmp_path, path))
    (tmp_path / "pictures").mkdir()
    for name in ("a.jpg", "a.txt"):
        os.mkfifo(tmp_path / "pictures" / name)
    (shard,) = captions.open_captions(tmp_path / "pictures").shards
    assert list(shard.read()) == [
        captions.Skipped("a.jpg", "cannot be read: it is no regular file")
    ]
    (tmp_path / "tars").mkdir()
    os.mkfifo(tmp_path / "tars" / "0.tar")
    (shard,) = captions.open_captions(tmp_path / "tars").shards
    (entry,) = shard.read()
    assert isinstance(entry, captions.Skipped) and "no regular file" in entry.reason


def _linked(folder: Path, target: Path) -> tuple[Path, str]:
    (folder / "m.safetensors").unlink(missing_ok=True)
    (folder / "m.safetensors").symlink_to(target)
    return folder, "m"


ROWS = [{"step": 5, "loss": 0.25, "loss_by_level": [0.1, None]}, {"step": 10, "loss": None}]


@few
@given(
    content=broken("".join(json.dumps(row) + "\n" for row in ROWS).encode()) | broken_json(ROWS[0])
)
@example(content=b'{"step": "a"}\n{"step": 1}\n{"step": 2}\n')
@example(content=b'{"step": 1, "loss": [[1]]}\n{}\n')
@example(content=b"[" * 10**5 + b"\n\n")
def test_rows_of_metrics(place: Path, content: bytes) -> None:
    (place / "metrics.jsonl").write_bytes(content)
    with told():
        rows = files.read_rows(place / "metrics.jsonl")
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})


@few
@given(
    content=broken(b"a cat\n\n a dog\n", b'{"prompt": "a", "negative": "b"}\n{"prompt": "c"}\n'),
    name=st.sampled_from(["p.txt", "p.jsonl"]),
)
@example(content=b'{"prompt": "\\ud800"}', name="p.jsonl")
@example(content=b'{"prompt":' * 10**4, name="p.jsonl")
def test_prompts(place: Path, content: bytes, name: str) -> None:
    (place / name).write_bytes(content)
    with told():
        for prompt in prompts.read_prompts(place / name):
            assert prompt.text.strip() and prompt.text.encode() is not None
            assert prompt.negative.encode() is not None


# Folders of models.

TENSORS = {"a.weight": np.ones([2, 3], np.float32), "a.bias": np.zeros(2, np.float16)}
WEIGHTS = safetensors_bytes(TENSORS)


@few
@given(content=broken(WEIGHTS))
@example(content=(10 * 2**30).to_bytes(8, "little") + b"{}")
@example(content=(2).to_bytes(8, "little") + b"{}")
@example(content=(2**64 - 1).to_bytes(8, "little"))
def test_safetensors(place: Path, content: bytes) -> None:
    (place / "model.safetensors").write_bytes(content)
    with told():
        found = safetensors_files.load(place, "model")
        assert sum(x.nbytes for x in found.values()) <= len(content)
        torch_weights.from_torch(
            found, {"a": {"kernel": np.ones([3, 2]), "bias": np.ones(2)}}, "it"
        )


def _header(**entry: Any) -> bytes:
    text = json.dumps(
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}
    ).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F4"}, {"dtype": "F8_E8M0", "shape": [4]}, {"dtype": "NO"}, {"dtype": "C64"},
        {"shape": [2**62, 2**62]}, {"shape": [2**62, 0], "data_offsets": [0, 0]}, {"shape": [-1]},
        {"data_offsets": [0, 2**40]}, {"data_offsets": [4, 0]}, {"data_offsets": [2**63, 2**64]},
        {"shape": [1] * 99},
    ],
)  # fmt: skip
def test_safetensors_whose_header_lies(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "m.safetensors").write_bytes(_header(**entry))
    with told():
        safetensors_files.load(tmp_path, "m")


def test_a_header_that_is_far_too_long_is_not_parsed(tmp_path: Path) -> None:
    text = b"{}" + b" " * 2**24  # whole, but for its length
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UsageError, match=f"it claims a header of {2**24 + 2} bytes"):
        safetensors_files.load(tmp_path, "m")


@few
@given(content=broken_json({"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.s"}}))
def test_an_index_of_safetensors(place: Path, content: bytes) -> None:
    (place / "m.safetensors.index.json").write_bytes(content)
    with told():
        for path in safetensors_files.paths(place, "m"):
            assert path.parent == place and path.name not in ("", ".", "..")


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..", "", "a\\x.safetensors",
     "C:x.safetensors", "x.bin", "x\n.safetensors", "x\0.safetensors", 3, None, ["x"]],
)  # fmt: skip
def test_an_index_names_files_beside_it(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "x.safetensors").write_bytes(WEIGHTS)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UsageError, match="no safetensors file beside it|cannot be read") as error:
        safetensors_files.load(folder, "m")
    assert str(error.value).isprintable()


def test_a_link_is_followed(tmp_path: Path) -> None:
    """The hub's cache has a link for each file, out of the folder."""
    (tmp_path / "blob").write_bytes(WEIGHTS)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "m.safetensors").symlink_to(tmp_path / "blob")
    assert safetensors_files.load(tmp_path / "snapshot", "m").keys() == TENSORS.keys()


def test_weights_are_floats() -> None:
    like = {"a": {"bias": np.ones(2)}}
    with pytest.raises(UsageError, match="not of floats a.bias int64: give"):
        torch_weights.from_torch({"a.bias": np.ones(2, np.int64)}, like, "it")


@few
@given(settings_=changed(AUTHORS))
@example(settings_=AUTHORS | {"num_train_timesteps": 10**12})
@example(settings_=AUTHORS | {"rescale_betas_zero_snr": "false"})
@example(settings_=AUTHORS | {"beta_schedule": ["linear"]})
def test_settings_of_a_scheduler(settings_: dict[str, Any]) -> None:
    with told():
        process, sampler = scheduler_config.read(settings_, "it")
        assert 2 <= process.num_steps <= 10**6 and sampler.final_level in (0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"set_alpha_to_one": "false"}, {"rescale_betas_zero_snr": 1}, {"steps_offset": -1},
        {"steps_offset": 10**30}, {"beta_start": -0.1}, {"beta_end": True}, {"num_train_timesteps":
        2 * 10**6}, {"num_train_timesteps": 1e3},
    ],
)  # fmt: skip
def test_settings_of_a_scheduler_that_are_refused(change: dict[str, Any]) -> None:
    key, value = next(iter(change.items()))
    with pytest.raises(UsageError, match=f"^it has {key}={value!r}"):
        scheduler_config.read(AUTHORS | change, "it")


def test_a_schedule_of_absurd_length_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 1000000"):
        schedules.make_schedule("linear", 2 * 10**9)


def test_names_that_cannot_be_printed_are_escaped() -> None:
    with pytest.raises(UsageError) as error:
        UNet2DCondition.from_config({"\n\x1b": 1})
    assert str(error.value).isprintable()
    with pytest.raises(UsageError) as error:
        torch_weights.from_torch({"\n\x1b": np.ones(2)}, {"a": {"bias": np.ones(2)}}, "it")
    assert str(error.value).isprintable()


NETWORK_SETTINGS = {
    "unet": sd_folder.UNET, "vae": sd_folder.AUTOENCODER, "text_encoder": sd_folder.TEXT_ENCODER,
}  # fmt: skip


@few
@given(data=st.data(), name=st.sampled_from(list(NETWORK_SETTINGS)))
def test_settings_of_networks(place: Path, data: st.DataObject, name: str) -> None:
    (place / name).mkdir(exist_ok=True)
    content = data.draw(broken_json(NETWORK_SETTINGS[name]))
    (place / name / "config.json").write_bytes(content)
    with told():
        diffusers_io.read_model(place, name)


@pytest.mark.parametrize(
    "name, change",
    [
        ("unet", {"block_out_channels": [32] * 40}),
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"norm_num_groups": 7}),
        ("unet", {"cross_attention_dim": 10**12}),
        ("vae", {"norm_num_groups": 5}),
        ("vae", {"block_out_channels": 32}),
        ("text_encoder", {"num_hidden_layers": 10**9}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"hidden_size": 1e3}),
    ],
)
def test_sizes_that_make_no_network(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        model = diffusers_io.make_model(name, NETWORK_SETTINGS[name] | change)
        diffusers_io.parameter_shapes(name, model)
    assert str(error.value).isprintable()


@few
@given(settings_=changed(clip_model.CONFIG))
@example(settings_=clip_model.CONFIG | {"vision": 3, "text": 4, "end_id": []})
def test_settings_of_clip(settings_: dict[str, Any]) -> None:
    with told():
        CLIP.from_config(settings_)


@few
@given(content=broken_json({"_class_name": "StableDiffusionPipeline"}, {"_class_name": "Other"}))
def test_the_index_of_a_folder(place: Path, content: bytes) -> None:
    (place / "scheduler").mkdir(exist_ok=True)
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(AUTHORS))
    (place / "model_index.json").write_bytes(content)
    with told():
        diffusers_io.read_scheduler(place)


@pytest.fixture(scope="module")
def tokenizers(place: Path) -> dict[str, Path]:
    return {form: clip_folder.write(place / form, form=form) for form in clip_folder.FORMS}


@few
@given(data=st.data(), form=st.sampled_from(clip_folder.FORMS))
def test_files_of_a_tokenizer(
    place: Path, tokenizers: dict[str, Path], data: st.DataObject, form: str
) -> None:
    folder = place / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tokenizers[form], folder)
    path = folder / data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    whole = path.read_bytes()
    content = broken(whole) if path.suffix == ".txt" else broken_json(json.loads(whole))
    path.write_bytes(data.draw(content))
    with told():
        rows = tokenizer.ClipTokenizer(folder)(["a cat", "é!"])
        assert rows.ids.min() >= 0


def test_numbers_of_a_tokenizer_that_are_refused(tmp_path: Path) -> None:
    for form, name, change in (
        ("map", "tokenizer_config.json", {"model_max_length": 76.5}),
        ("map", "vocab.json", {clip_folder.END: 2**31}),
    ):
        folder = clip_folder.write(tmp_path / name, form=form)
        tree = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(tree | change))
        with pytest.raises(UsageError, match="76.5|2147483648"):
            tokenizer.ClipTokenizer(folder)


# Text-image sets.


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


PICTURES = [encoded("PNG"), encoded("JPEG"), encoded("WEBP"), encoded("WEBP", lossless=True)]


@few
@given(content=broken(*PICTURES))
def test_pictures(content: bytes) -> None:
    with told(captions.BadImageError):
        assert captions.decode_image(content, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "ICO", "PPM", "EPS", "PDF"])
def test_formats_that_are_not_named_are_not_opened(kind: str) -> None:
    with pytest.raises(captions.BadImageError, match="not a JPEG, PNG or WebP picture"):
        captions.decode_image(encoded(kind), 8)


def a_tar(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


MEMBERS = ("a.png", PICTURES[0]), ("a.txt", b"a cat"), ("b" * 120 + ".txt", b"x"), ("é.jpg", b"1")
TARS = [a_tar(*MEMBERS, form=form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]


def read_tar(place: Path, content: bytes) -> list[captions.Item | captions.Skipped]:
    folder = place / "tars"
    folder.mkdir(exist_ok=True)
    (folder / "0.tar").write_bytes(content)
    (shard,) = captions.open_captions(folder).shards
    return list(shard.read())


@few
@given(data=st.data(), whole=st.sampled_from(TARS))
def test_tars(place: Path, data: st.DataObject, whole: bytes) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):  # in a header, of which the sum is put right
        start = 512 * data.draw(st.integers(0, 12))
        at = start + data.draw(st.sampled_from([*range(124, 136), 156, 0, 257, *range(345, 350)]))
        content[at] = data.draw(st.integers(0, 255))
        total = sum(content[start : start + 148]) + sum(content[start + 156 : start + 512]) + 256
        content[start + 148 : start + 156] = b"%06o\0 " % total
    for broken_tar in (bytes(content), data.draw(broken(whole))):
        before = set(place.rglob("*"))
        for entry in read_tar(place, broken_tar):
            if isinstance(entry, captions.Skipped):
                assert "\n" not in entry.reason and entry.reason.isprintable()
        assert set(place.rglob("*")) <= before | {place / "tars", place / "tars" / "0.tar"}


def a_member(name: str, size: int, kind: bytes = b"0", content: bytes = b"") -> bytes:
    """A member of a tar that claims a size. A negative one is in base 256."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    header = info.tobuf(tarfile.GNU_FORMAT)
    return header + content + bytes(-len(content) % 512)


SAMPLE = a_member("k.jpg", 1, content=b"1") + a_member("k.txt", 5, content=b"a cat")
LOST = "what follows is lost"


@pytest.mark.parametrize(
    "content",
    [
        a_member("a.jpg", 2**40),
        a_member("a.txt", 2**40),
        a_member("a.json", 2**40),
        a_member("a", 2**40, b"L"),
        a_member("a", 2**40, b"x"),
        a_member("a", 2**40, b"g"),
        a_member("a", -512),
        a_member("a", -1024, b"x"),
        a_member("a.jpg", -5, b"0"),
        a_member("a", 2**80),
        a_member("a", 512, b"S", b"1"),
        b"".join(a_member("a", 9, b"x", b"9 a=bcde\n") for _ in range(2000)),
        a_member("a", 2**15, b"x", b"1" * 2**15) * 9,
        a_member("a", 20, b"x", b"20 GNU.sparse.map=1\n"),
    ],
    ids=lambda content: "tar",
)
def test_a_tar_that_lies(tmp_path: Path, content: bytes) -> None:
    item = captions.Item("k", b"1", "a cat")
    entries = read_tar(tmp_path, SAMPLE + content + bytes(1024))
    assert entries[0] == item
    last = entries[-1]
    assert isinstance(last, captions.Skipped) and last.reason.endswith(LOST), entries


def test_digits_that_would_be_brooded_over_are_refused(tmp_path: Path) -> None:
    """The search of Python 3.11.7 for a charset takes the square of their number."""
    entries = read_tar(tmp_path, a_member("a", 2**15, b"x", b"1" * 2**15) + bytes(1024))
    assert isinstance(entries[0], captions.Skipped) and "of 256 digits" in entries[0].reason


def test_what_is_no_plain_member_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"{i}.txt")
            info.type, info.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(info)
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
        for name in ("../../up", "/etc/root"):
            for ending, content in (("jpg", b"1"), ("txt", b"a cat")):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    entries = read_tar(tmp_path, file.getvalue())
    assert entries[:5] == [captions.Skipped(str(i), "no caption") for i in range(5)]
    assert entries[5:] == [captions.Item(k, b"1", "a cat") for k in ("../../up", "/etc/root")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.txt", "tars"]


def test_members_and_files_that_are_too_large_are_skipped(tmp_path: Path) -> None:
    long = b"x" * (captions.MAX_CAPTION_BYTES + 1)
    tar = a_tar(("a.jpg", b"1"), ("a.txt", long), ("b.jpg", b"1"), ("b.txt", b"a cat"))
    assert read_tar(tmp_path, tar) == [
        captions.Skipped("a", "its txt is too large"), captions.Item("b", b"1", "a cat")
    ]  # fmt: skip
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jpg").write_bytes(b"1")
    (folder / "a.txt").write_bytes(long)
    (folder / "b.txt").write_text("a cat")
    with (folder / "b.jpg").open("r+b") as file:
        file.truncate(captions.MAX_PICTURE_BYTES + 1)
    (shard,) = captions.open_captions(folder).shards
    entries = list(shard.read())
    assert all(isinstance(entry, captions.Skipped) for entry in entries), entries
    assert all("more than the" in entry.reason for entry in entries)  # pyright: ignore


# Latents.

INFO = latents.LatentInfo(
    version=1, source="cats", source_sha256="0" * 64, num_shards=1, image_size=16, fit="any",
    moments_shape=(2, 2, 2), moments_dtype="float16", moments_layout="any", scaling_factor=0.5,
    num_tokens=3, empty_ids=(1, 2, 2), compute_dtype="float32", vae_sha256={"a": "1" * 64},
    tokenizer_sha256={"b": "2" * 64},
)  # fmt: skip
ROW = latents.pack(np.ones([2, 2, 2]), np.array([1, 5, 2]), "key")


@few
@given(content=broken_json(json.loads(INFO.to_json())))
def test_the_settings_of_latents(place: Path, content: bytes) -> None:
    (place / "dataset.json").write_bytes(content)
    with told():
        info = latents.LatentInfo.read(place)
        assert all(size >= 1 for size in info.moments_shape) and len(info.empty_ids) >= 1
        assert len(info.to_json()) > 0


@few
@given(content=broken_json(json.loads(latents.ShardInfo("a", 1, 2, "x", 0, ("k: bad",)).to_json())))
def test_the_state_of_a_shard(place: Path, content: bytes) -> None:
    (place / "latents-00000.json").write_bytes(content)
    with told():
        shard = latents.ShardInfo.read(place, 0)
        assert shard is not None and 0 <= shard.num_examples < 2**31


@pytest.mark.parametrize(
    "change",
    [
        {"moments_shape": [2, 2]}, {"moments_shape": [0, 1, 2]}, {"moments_shape": [2**20] * 3},
        {"num_tokens": 4}, {"empty_ids": ["a", "b", "c"]}, {"scaling_factor": 0}, {"source": 3},
        {"moments_dtype": "float32"}, {"vae_sha256": {"a": 1}}, {"num_shards": 0.5},
    ],
)  # fmt: skip
def test_settings_of_latents_that_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(json.loads(INFO.to_json()) | change))
    with pytest.raises(UsageError, match="cannot be read"):
        latents.LatentInfo.read(tmp_path)


@pytest.mark.parametrize("change", [{"num_examples": "1]"}, {"skipped": [1]}, {"sha256": None}])
def test_a_shard_that_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    tree = json.loads(latents.ShardInfo("a", 1, 2, "x", 0, ()).to_json())
    (tmp_path / "latents-00000.json").write_text(json.dumps(tree | change))
    with pytest.raises(UsageError, match="cannot be read"):
        latents.ShardInfo.read(tmp_path, 0)


@few
@given(record=broken(ROW))
@example(record=b"")
@example(record=ROW[:-4])
@example(record=ROW + b"x" * 2**21)
@example(record=b"\x00\x7c" + ROW[2:])  # infinite
@example(record=ROW[:16] + b"\xff\xff\xff\xff" + ROW[20:])  # -1
def test_records(record: bytes) -> None:
    try:
        example_, key = latents.unpack(record, INFO)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(example_["moments"]).all() and example_["ids"].min() >= 0
        assert len(record) == 16 + 12 + len(key.encode())


def test_records_that_are_refused() -> None:
    for record in (
        ROW[:27],
        b"",
        ROW + b"x" * 2**21,
        b"\x00\x7c" + ROW[2:],
        ROW[:16] + b"\xff" * 12,
    ):
        with pytest.raises(ValueError):
            latents.unpack(record, INFO)


@pytest.fixture(scope="module")
def encoded_set(place: Path) -> Path:
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = place / "set"
    folder.mkdir()
    path = folder / "latents-00000.arrayrecord"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(3):
        writer.write(ROW)
    writer.close()
    (folder / "dataset.json").write_text(INFO.to_json())
    return folder


@few
@given(data=st.data())
def test_array_records(encoded_set: Path, place: Path, data: st.DataObject) -> None:
    folder = place / "copied"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(encoded_set, folder)
    path = folder / "latents-00000.arrayrecord"
    whole = path.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    path.write_bytes(content[:cut])
    shard = latents.ShardInfo(
        "a", data.draw(st.sampled_from([3, 0, 1, 4, 2**31 - 1])), cut, "x", 0, ()
    )
    path.with_suffix(".json").write_text(shard.to_json())
    with told():
        source = latents.open_latents(folder)
        for row in range(min(len(source), 4)):
            assert source[row]["moments"].shape == (2, 2, 2)


# Statistics for FID.


def an_npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    whole = {
        "mean": np.zeros(3), "cov": np.eye(3), "n": 9, "variant": "pytorch-fid", "sha256": "ab",
        "image_size": 256,
    }  # fmt: skip
    stored: Any = {k: np.asarray(x) for k, x in (whole | arrays).items()}
    np.savez(file, **stored)
    return file.getvalue()


@few
@given(content=broken(an_npz()))
def test_statistics(place: Path, content: bytes) -> None:
    (place / "real.npz").write_bytes(content)
    with told():
        found = fid.load(place / "real.npz")
        assert found.statistics.cov.shape == (3, 3) and found.variant.isprintable()


class Harm:
    """A pickle of it would make a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm_was_done"),)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mean": np.array([Harm()], object)},
        {"n": np.array(Harm(), object)},
        {"mean": np.zeros(4)},
        {"mean": np.zeros([3, 1])},
        {"mean": np.zeros(3, "c16")},
        {"mean": np.full(3, np.nan)},
        {"cov": np.zeros([3, 2])},
        {"n": 1},
        {"n": 2.5},
        {"variant": 3},
        {"variant": "a\nb"},
        {"image_size": -1},
        {"mean": np.zeros(4096), "cov": np.zeros([1, 1])},
        {"sha256": "x" * 1000},
    ],
)
def test_statistics_of_another_kind(tmp_path: Path, arrays: dict[str, Any], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real.npz").write_bytes(an_npz(**arrays))
    with pytest.raises(UsageError, match="holds no statistics of ours") as error:
        fid.load(tmp_path / "real.npz")
    assert str(error.value).isprintable()
    assert not (tmp_path / "harm_was_done").exists()


def test_statistics_of_other_features_are_told() -> None:
    reference = fid.Reference(statistics(np.eye(3)), "v", "s", 8)
    with pytest.raises(UsageError, match="of 3 features, and the samples' of 4"):
        dict(fid.evaluate(np.eye(4), "v", "s", reference))


# Pages.


@pytest.fixture(scope="module")
def workdir(place: Path) -> Path:
    (place / "run" / "samples").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(place / "run" / "samples" / "samples.png")
    return place / "run"


RESULTS = {k: x for k, x in report_results().items() if k != "histogram"}


@few
@given(content=broken_json(RESULTS))
def test_results(workdir: Path, content: bytes) -> None:
    (workdir / "results.json").write_bytes(content)
    with told():
        text = report.write_report(workdir).read_text()
        assert "\x1b" not in text and "<script" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"histogram": {"edges": [0, 1], "data": ["a"]}},
        {"histogram": {"edges": [1, 2]}},
        {"histogram": []},
        {"metrics": {"brightness/std_ratio": {"value": "a", "low": [], "high": 1}}},
        {"metrics": {"brightness/std_ratio": [1]}},
        {"dataset": []},
        {"seconds": {"train": "long"}},
    ],
)
def test_results_of_another_kind(workdir: Path, changes: dict[str, Any]) -> None:
    (workdir / "results.json").write_text(json.dumps(RESULTS | changes))
    for draw in (
        lambda: report.write_report(workdir),
        lambda: report.write_comparison([workdir, workdir], workdir / "page.html"),
    ):
        with told():
            draw()


@few
@given(content=broken(PICTURES[0]))
def test_pictures_of_a_page(workdir: Path, content: bytes) -> None:
    (workdir / "results.json").write_text(json.dumps(RESULTS))
    path = workdir / "samples" / "data.png"
    path.write_bytes(content)
    try:
        with told():
            report.write_report(workdir)
    finally:
        path.unlink()


def test_pictures_of_a_page_are_png_of_a_sane_size(tmp_path: Path) -> None:
    for content, said in (
        (encoded("JPEG"), "it has another format"),
        (bombs.png(50_000, 50_000), "exceeds limit"),
    ):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UsageError, match=f"is no readable PNG .*{said}.*: mend it"):
            page.picture(tmp_path / "a.png", "mend it")


def test_text_of_a_page_shows_no_control_characters() -> None:
    assert page.text("a\x1b[2J\ud800\n<b>é\xa0") == "a\ufffd[2J\ufffd\n&lt;b&gt;é\xa0"


@few
@given(content=broken_json(RECORD))
def test_claims(place: Path, content: bytes) -> None:
    folder = place / "claims"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "a_claim.png")
    (folder / "a_claim.json").write_bytes(content)
    with told():
        claims.write(folder, folder / "page.html")


def test_a_claim_shows_its_own_picture_only(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    folder.mkdir()
    for path in (tmp_path / "secret.png", folder / "a_claim.png"):
        Image.new("RGB", (4, 4)).save(path)
    (folder / "a_claim.json").write_text(json.dumps(RECORD | {"name": "../secret"}))
    with pytest.raises(UsageError, match="is of the claim '../secret'"):
        claims.write(folder, folder / "page.html")


# Settings.


@few
@given(saved=changed(config.to_json(config.default_config())) | st.sampled_from(NASTY))
def test_settings_that_a_run_saved(saved: Any) -> None:
    current = config.to_json(config.default_config())
    with told():
        config.require_same_run(saved, current, "it")


LEAVES = files.flatten(config.default_config().to_dict())
INTEGERS = st.sampled_from([0, 1, 2, 3, 50, 1000, -1, 10**6, 2**31, 2**63, -(10**30)])
OF_KIND: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: INTEGERS,
    float: st.floats() | st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e300]),
    str: st.sampled_from(
        ["", "ddim", "heun", "karras", "leading", "uniform_logsnr", "cosine", "linear", "constant",
         "eps", "x0", "projected", "dpmpp_2m_sde", "signal_leak", "\n\x1b", "x" * 300]
    ) | st.text(max_size=9),
    tuple: st.lists(INTEGERS | st.booleans() | st.text(max_size=3), max_size=4).map(tuple),
}  # fmt: skip


@st.composite
def overridden(draw: st.DrawFn) -> ConfigDict:
    """The default settings, with some of another value of the same kind, as flags can set them."""
    changed_config = config.default_config().lock()
    for name in draw(st.lists(st.sampled_from(sorted(LEAVES)), min_size=1, max_size=3)):
        kind = type(LEAVES[name])
        kind = kind if kind in OF_KIND else (int if "label" in name else float)
        at = changed_config
        *parents, leaf = name.split(".")
        for parent in parents:
            at = at[parent]
        at[leaf] = draw(OF_KIND[kind])
    return changed_config


@few
@given(chosen=overridden())
@pytest.mark.filterwarnings("ignore")
def test_overrides_of_settings(chosen: ConfigDict) -> None:
    with told():
        config.validate(chosen)
        common_parts(chosen)
        build_weight(chosen)


@pytest.mark.parametrize(
    "name, value",
    [
        ("model.channels", ("a",)), ("sampler.guidance_interval", ("a", 1)),
        ("model.attention", (1,)), ("parallel.mesh", (1.5,)), ("sampler.steps_offset", -(10**30)),
        ("schedule.num_steps", 10**12), ("optimizer.learning_rate", 1e300), ("loss.gamma", 1e20),
    ],
)  # fmt: skip
def test_overrides_that_are_refused(name: str, value: Any) -> None:
    chosen = config.default_config()
    section, leaf = name.split(".")
    chosen[section][leaf] = value
    with pytest.raises(UsageError, match=f"^{name} must be "):
        config.validate(chosen)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    name = st.sampled_from([f"config.{name}" for name in LEAVES] + ["config.no", "mode", "no", ""])
    value = st.sampled_from(["1", "-1", "1e999", "(1,", "None", "[]", "ddim", "a\nb", ""])
    value |= st.text(st.characters(exclude_categories=["C", "Z"]), max_size=9)
    flag = st.tuples(name, value).map(lambda pair: f"--{pair[0]}={pair[1]}")
    return ["main", *draw(st.lists(flag | value.filter(lambda v: "flagfile" not in v), max_size=3))]


@few
@given(argv=command_lines(), whole=st.booleans())
def test_command_lines(argv: list[str], whole: bool) -> None:
    given_ = [f"--config={ROOT}/configs/brightness.py:smoke", "--workdir=/nowhere"] if whole else []
    try:
        with told():
            main.parse_flags([*argv[:1], *given_, *argv[1:]])
    finally:
        flags.FLAGS.unparse_flags()


# What would take all memory.


def test_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "bombs.py", tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 20
    for name, (kind, text, taken, seconds) in found.items():
        kinds = (
            ("ValueError", "BadImageError") if " pixels" in name else ("UsageError", "ValueError")
        )
        assert kind in kinds, (name, kind, text)
        assert text.isprintable() and len(text) < 1000, (name, text)
        assert taken < 300 * 2**20, f"{name}: {taken / 2**20:.0f} MiB ({text})"
        assert seconds < 10, f"{name}: {seconds:.1f} s"
