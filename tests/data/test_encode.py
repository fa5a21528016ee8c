"""From pictures and captions to latents and ids: what is written, skipped, resumed and refused."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import clip_folder
import jax
import numpy as np
import pytest
import sd_folder
from PIL import Image
from test_captions import encoded, write_tar

from zsnr_jax import diffusers_io, safetensors_files
from zsnr_jax.data import encode, latents
from zsnr_jax.data.captions import open_captions
from zsnr_jax.data.encode import Encoder
from zsnr_jax.data.latents import LatentSource, open_latents
from zsnr_jax.errors import UsageError

ROOT = Path(__file__).parents[2]
SIZE = 16
LONG = "a b c d e " * 20  # 100 tokens and the two around them, of which 77 have room
SAMPLES = {  # of each tar; None is a broken picture
    "00000": ["a cat", "the dog", "in the rain", "a painting", *(f"dog {i}" for i in range(8))],
    "00001": ["a cat", None, "", LONG, "a dog"],
    "00002": ["the old garden", "they're in"],
}
GOOD = [("00000", i) for i in range(12)] + [("00001", i) for i in (0, 3, 4)]
GOOD += [("00002", i) for i in range(2)]  # the third sample is cut off


def picture(shard: str, place: int) -> np.ndarray:
    rng = np.random.default_rng([int(shard), place])
    return rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def write_source(folder: Path) -> Path:
    for shard, texts in SAMPLES.items():
        members = []
        for place, caption in enumerate(texts):
            png = encoded(Image.fromarray(picture(shard, place)))
            content = png[:200] if caption is None else png
            members += [(f"{shard}{place}.png", content)]
            members += [(f"{shard}{place}.txt", (caption or "a" * (caption is None)).encode())]
        write_tar(folder / f"{shard}.tar", members)
    path = folder / "00002.tar"
    last = path.read_bytes().rstrip(b"\0")  # without its end mark, and then some of a member
    path.write_bytes(last.ljust(-(-len(last) // 512) * 512, b"\0") + b"000023.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return sd_folder.write(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def encoder(pretrained) -> Encoder:
    """Compiles once, in batches of 4."""
    return Encoder(pretrained, SIZE, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures in a source of the name "pictures"."""
    return write_source(tmp_path_factory.mktemp("source") / "pictures")


@pytest.fixture(scope="module")
def out(encoder, folder, tmp_path_factory) -> Path:
    """The source, encoded; not to be changed."""
    out = tmp_path_factory.mktemp("out") / "new" / "latents"
    encode.encode(encoder, open_captions(folder), out)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def assert_same_examples(found: LatentSource, expected: LatentSource, atol: float) -> None:
    assert len(found) == len(expected)
    for row in range(len(expected)):
        assert found.key(row) == expected.key(row)
        np.testing.assert_array_equal(found[row]["ids"], expected[row]["ids"])
        np.testing.assert_allclose(found[row]["moments"], expected[row]["moments"], atol=atol)


def test_moments_are_the_autoencoders_and_in_the_order_of_the_source(out, pretrained):
    vae = diffusers_io.read_network(pretrained, "vae")
    images = np.stack([picture(*place) for place in GOOD]).astype(np.float64) / 127.5 - 1
    run = jax.jit(lambda params, x: vae.model.apply({"params": params}, x, method="encode"))
    expected = np.asarray(run(vae.params, images.astype(np.float32)))
    source = open_latents(out)
    assert [source.key(row) for row in range(len(source))] == [f"{s}{i}" for s, i in GOOD]
    found = np.stack([source[row]["moments"] for row in range(len(source))])
    assert found.shape == (17, 8, 8, 8) and np.ptp(expected, axis=0).max() > 0.05
    np.testing.assert_allclose(found, expected, rtol=2**-11, atol=2e-6)


def ids(text: str | None) -> np.ndarray:
    """A caption's ids by the book: start, at most 75 tokens, end, padding."""
    vocabulary, merges = clip_folder.train()
    tokens = clip_folder.encode(text or "", vocabulary, merges)[:75]
    start, end = vocabulary[clip_folder.START], vocabulary[clip_folder.END]
    return np.array([start, *tokens, end] + [vocabulary["!"]] * (75 - len(tokens)), np.int32)


def test_ids_are_the_captions(out):
    source = open_latents(out)
    for row, (shard, place) in enumerate(GOOD):
        np.testing.assert_array_equal(source[row]["ids"], ids(SAMPLES[shard][place]))
    assert source.info.empty_ids == tuple(ids(""))


def test_the_folder_says_what_it_holds(out, folder, pretrained):
    info = open_latents(out).info
    assert (info.source, info.num_shards, info.image_size) == ("pictures", 3, SIZE)
    assert info.moments_shape == (8, 8, 8) and info.num_tokens == 77
    assert info.scaling_factor == 0.18215
    assert info.vae_sha256 == latents.vae_digests(pretrained) and len(info.vae_sha256) == 1
    assert {"vocab.json", "merges.txt"} < set(info.tokenizer_sha256)
    assert json.loads((out / "latents-00000.json").read_text())["skipped"] == []
    rows = b"".join(ids(SAMPLES["00001"][i]).tobytes() + b"00001%d" % i for i in (0, 3, 4))
    assert json.loads((out / "latents-00001.json").read_text()) == {
        "source": "00001.tar",
        "num_examples": 3,
        "num_bytes": (out / "latents-00001.arrayrecord").stat().st_size,
        "sha256": hashlib.sha256(rows).hexdigest(),
        "captions_cut": 1,
        "skipped": [
            "000011: cannot be decoded: image file is truncated",
            "000012: empty caption",
        ],
    }
    (lost,) = json.loads((out / "latents-00002.json").read_text())["skipped"]
    assert lost.startswith("00002.tar: cut short or broken")
    assert not list(out.glob("*.partial"))


def test_what_is_missing_is_done_again_and_nothing_else(out, encoder, folder, tmp_path):
    for name, content in contents(out).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "latents-00001.json").unlink()  # written last: a kill leaves none
    (tmp_path / "latents-00001.arrayrecord").write_bytes(b"half")
    (tmp_path / "latents-00001.partial").write_bytes(b"half")
    with pytest.raises(UsageError, match="shard 2 of 3 .* is not encoded yet"):
        open_latents(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    done = encode.encode(encoder, open_captions(folder), tmp_path)
    assert [shard.num_examples for shard in done.values()] == [12, 3, 2]
    assert contents(tmp_path) == contents(out)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    kept = {name for name in after if after[name] == before.get(name)}
    assert set(after) - kept == {"latents-00001.arrayrecord", "latents-00001.json"}


def test_a_shard_broken_off_is_not_taken_for_done(encoder, folder, tmp_path):
    def broken_off():
        yield from open_captions(folder).shards[0].read()
        raise KeyboardInterrupt

    source = open_captions(folder)
    shard = source.shards[0]._replace(read=broken_off)
    with pytest.raises(KeyboardInterrupt):
        encode.encode(encoder, source._replace(shards=(shard, *source.shards[1:])), tmp_path)
    assert not (tmp_path / "latents-00000.json").exists()
    assert not (tmp_path / "latents-00000.arrayrecord").exists()


def test_two_hosts_make_what_one_makes(out, encoder, folder, tmp_path):
    source = open_captions(folder)
    assert list(encode.encode(encoder, source, tmp_path, 1, 2)) == [1]
    assert len(list(tmp_path.glob("*.arrayrecord"))) == 1
    assert list(encode.encode(encoder, source, tmp_path, 0, 2)) == [0, 2]
    assert contents(tmp_path) == contents(out)


def test_what_float16_cannot_hold_is_skipped(encoder, folder, tmp_path):
    large = copy.copy(encoder)
    params = jax.tree.map(np.asarray, encoder._params)
    bias = params["quant_conv"]["bias"].copy()
    bias[0] = 1e5
    large._params = params | {"quant_conv": params["quant_conv"] | {"bias": bias}}
    done = encode.encode(large, open_captions(folder), tmp_path)
    assert [shard.num_examples for shard in done.values()] == [0, 0, 0]
    assert done[0].skipped[4] == "000004: its moments are not finite in float16"
    with pytest.raises(UsageError, match="holds no example"):
        open_latents(tmp_path)


def test_the_command_on_four_devices_in_other_batches(out, folder, pretrained, tmp_path):
    arguments = [f"--pretrained={pretrained}", f"--source={folder}", f"--out={tmp_path}"]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    # 6 becomes 8: as many for each device
    command = [sys.executable, "-m", "zsnr_jax.data.encode", *arguments, f"--image_size={SIZE}"]
    result = subprocess.run(
        [*command, "--batch_size=6"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        f"{tmp_path}: encoded 17 pictures in 3 shards, skipped 3 (listed in latents-00001.json, "
        "latents-00002.json), captions cut at 77 tokens: 1.\n"
    )
    assert_same_examples(open_latents(tmp_path), open_latents(out), atol=1e-3)
    assert open_latents(tmp_path).sha256 == open_latents(out).sha256


def test_the_command_refuses_in_one_sentence(folder, pretrained, tmp_path):
    arguments = [f"--pretrained={pretrained}", f"--source={folder}", f"--out={tmp_path}"]
    with pytest.raises(UsageError, match="image_size is 15"):
        encode.main([*arguments, "--image_size=15"])
    with pytest.raises(UsageError, match="there is no folder .*gone"):
        encode.main([*arguments, f"--source={tmp_path / 'gone'}"])
    with pytest.raises(
        UsageError, match="there is no .*gone.vae.config.json|tokenizer_config.json"
    ):
        encode.main([*arguments, f"--pretrained={tmp_path / 'gone'}"])


def test_bfloat16_is_close(out, folder, pretrained, tmp_path):
    encoder = Encoder(pretrained, SIZE, 4, "bfloat16")
    encode.encode(encoder, open_captions(folder), tmp_path)
    half, full = open_latents(tmp_path), open_latents(out)
    assert half.info.compute_dtype == "bfloat16" and half.sha256 != full.sha256
    assert_same_examples(half, full, atol=0.1)
    assert not np.array_equal(half[0]["moments"], full[0]["moments"])


@pytest.mark.parametrize("host, num_hosts", [(2, 2), (-1, 2), (0, 0)])
def test_a_host_out_of_range_is_refused(host, num_hosts, encoder, folder, tmp_path):
    with pytest.raises(UsageError, match=f"host {host} of {num_hosts}: host must be in"):
        encode.encode(encoder, open_captions(folder), tmp_path / "out", host, num_hosts)
    assert not (tmp_path / "out").exists()


def test_other_settings_than_those_of_the_folder_are_refused(
    out, encoder, folder, pretrained, tmp_path
):
    source = open_captions(folder)
    other = sd_folder.write(tmp_path / "other")
    changed = sd_folder.weights("vae") | {"quant_conv.bias": np.ones(8, np.float32)}
    safetensors_files.save(other / "vae", "diffusion_pytorch_model", changed)
    words = sd_folder.write(tmp_path / "words")
    vocabulary = words / "tokenizer" / "vocab.json"
    vocabulary.write_text(vocabulary.read_text() + "\n")
    before = contents(out)
    for made, given, message in (
        (Encoder(pretrained, 32), source, "image_size=16 where this command has 32"),
        (Encoder(pretrained, SIZE, dtype="bfloat16"), source, "compute_dtype='float32' where"),
        (
            Encoder(other, SIZE),
            source,
            r"vae_sha256={diffusion_pytorch_model.safetensors: \w{12}..} where",
        ),
        (Encoder(words, SIZE), source, r"tokenizer_sha256={vocab.json: \w{12}..} where"),
        (encoder, source._replace(name="dogs"), "source='pictures' where this command has 'dogs'"),
        (encoder, source._replace(sha256="0" * 64), r"source_sha256=\w{12}.. where"),
    ):
        with pytest.raises(UsageError, match=f"holds latents with {message}") as error:
            encode.encode(made, given, out)
        assert "\n" not in str(error.value) and str(error.value).endswith("another --out.")
    assert contents(out) == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 15}, "image_size is 15: this VAE needs a multiple of 2, as 16"),
        ({"image_size": 0}, "image_size is 0: this VAE needs a multiple of 2, as 2"),
        ({"batch_size": 0}, "batch_size is 0: it must be 1 or more"),
        ({"dtype": "float16"}, "dtype is 'float16': choose one of float32, bfloat16"),
    ],
)
def test_what_the_vae_cannot_take_is_refused(options, message, pretrained):
    with pytest.raises(UsageError, match=message):
        Encoder(pretrained, **options)


def test_a_place_that_cannot_be_written_to_is_refused(encoder, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to .*: make room there, or choose"):
        encode.encode(encoder, open_captions(folder), tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "latents-00000.partial").symlink_to("/dev/full")
    with pytest.raises(UsageError, match="cannot be written to .*No space left on device.*"):
        encode.encode(encoder, open_captions(folder), tmp_path / "full")
    assert not (tmp_path / "full" / "latents-00000.json").exists()
