"""Small files that claim to be large, given to their parsers with little memory to be had.

    python tests/bombs.py FOLDER     prints JSON: of each file, what was told, and what it took

It is a process of its own, since a limit of memory is one of all that a process holds.
"""

import io
import json
import resource
import struct
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zsnr_jax import claims, diffusers_io, files, prompts, safetensors_files
from zsnr_jax.data import captions, latents, tokenizer
from zsnr_jax.evaluation import fid

ROOM = 2**32  # bytes of addresses beside those that are taken when all is imported


def sparse(path: Path, head: bytes = b"", size: int = 2**40) -> Path:
    """A file of a terabyte, that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def png(width: int, height: int) -> bytes:
    """A PNG that has as many pixels as it says, all zero, and is short."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(min(height, 2000)))
    pixels = rows + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def webp(width: int, height: int) -> bytes:
    """A WebP that says so of its canvas."""
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    canvas += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas


def a_header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def a_tar(path: Path, head: bytes, size: int = 2**40 + 4096) -> Path:
    path.mkdir()
    sparse(path / "0.tar", head, size)
    return path


def read_all(folder: Path) -> str:
    """Whatever was skipped of the one shard of a source."""
    (shard,) = captions.open_captions(folder).shards
    entries = [entry for entry in shard.read() if isinstance(entry, captions.Skipped)]
    raise ValueError(entries[-1].reason)


def an_npz(path: Path, shape: tuple[int, ...], claimed: int | None = None) -> Path:
    """Statistics of which the mean is 4 GiB of zeros, or says that it has some shape."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        about = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, about)
        with archive.open("mean.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(claimed or 0):
                file.write(bytes(2**20))
    return path


def a_tokenizer(folder: Path, **sizes: int) -> Path:
    folder.mkdir()
    for name, content in {
        "vocab.json": "{}", "merges.txt": "", "special_tokens_map.json": "{}",
        "tokenizer_config.json": "{}",
    }.items():  # fmt: skip
        (folder / name).write_text(content)
        if name.split(".")[0] in sizes:
            sparse(folder / name, b"{", sizes[name.split(".")[0]])
    return folder


def a_model(folder: Path) -> Path:
    (folder / "unet").mkdir(parents=True)
    sparse(folder / "unet" / "config.json", b"{")
    return folder


def a_claim(folder: Path) -> Path:
    folder.mkdir()
    sparse(folder / "a.json", b"{")
    return folder


BOMBS: dict[str, Callable[[Path], Any]] = {
    "json of a terabyte": lambda at: files.read_json(sparse(at / "a.json"), "mend it"),
    "json of 100 MB of spaces": lambda at: files.read_json(
        sparse(at / "a.json", b" " * 100, 10**8), "mend it"
    ),
    "json of lists in lists": lambda at: files.read_json(
        _written(at / "a.json", b"[" * files.MAX_TEXT), "mend it"
    ),
    "rows of a terabyte": lambda at: files.read_rows(sparse(at / "metrics.jsonl")),
    "a row of lists in lists": lambda at: files.read_rows(
        _written(at / "metrics.jsonl", b"[" * 10**7 + b"\n{}\n")
    ),
    "prompts of a terabyte": lambda at: prompts.read_prompts(sparse(at / "p.txt")),
    "a header of 10 GB": lambda at: safetensors_files.load(
        sparse(at / "m.safetensors", (10 * 2**30).to_bytes(8, "little")).parent, "m"
    ),
    "a header of 90 MB": lambda at: safetensors_files.load(
        sparse(at / "m.safetensors", (90 * 2**20).to_bytes(8, "little") + b"{").parent, "m"
    ),
    "an index of a terabyte": lambda at: safetensors_files.load(
        sparse(at / "m.safetensors.index.json").parent, "m"
    ),
    "a config of a terabyte": lambda at: diffusers_io.read_model(a_model(at / "sd"), "unet"),
    "a vocabulary of a terabyte": lambda at: tokenizer.ClipTokenizer(
        a_tokenizer(at / "t", vocab=2**40)
    ),
    "merges of a terabyte": lambda at: tokenizer.ClipTokenizer(a_tokenizer(at / "t", merges=2**40)),
    "a PNG of 10^10 pixels": lambda at: captions.decode_image(png(100_000, 100_000), 8),
    "a PNG of 2^26 pixels and a row": lambda at: captions.decode_image(png(8192, 8193), 8),
    "a WebP of 2^28 pixels": lambda at: captions.decode_image(webp(16383, 16383), 8),
    "a caption of a terabyte": lambda at: read_all(_beside(at)),
    "a member of a terabyte": lambda at: read_all(a_tar(at / "t", a_header("a.jpg", 2**40, b"0"))),
    "a long name of a terabyte": lambda at: read_all(a_tar(at / "t", a_header("a", 2**40, b"L"))),
    "a long name of 2 GB": lambda at: read_all(a_tar(at / "t", a_header("a", 2**31, b"L"))),
    "settings of 2 GB": lambda at: read_all(a_tar(at / "t", a_header("a", 2**31, b"x"))),
    "settings of a terabyte": lambda at: read_all(a_tar(at / "t", a_header("a", 2**40, b"x"))),
    "an npz of 4 GB in 4 MB": lambda at: fid.load(an_npz(at / "r.npz", (2**29,), 2**8)),
    "an npz that says 10^15": lambda at: fid.load(an_npz(at / "r.npz", (10**15,))),
    "an npz of a terabyte": lambda at: fid.load(sparse(at / "r.npz", b"PK\3\4")),
    "latents of a terabyte": lambda at: latents.LatentInfo.read(
        sparse(at / "dataset.json", b"{").parent
    ),
    "a shard's JSON of a terabyte": lambda at: latents.ShardInfo.read(
        sparse(at / "latents-00000.json", b"{").parent, 0
    ),
    "a claim of a terabyte": lambda at: claims.load(a_claim(at / "claims")),
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _beside(folder: Path) -> Path:
    (folder / "a.jpg").write_bytes(b"1")
    return sparse(folder / "a.txt").parent


def run(folder: Path) -> dict[str, Any]:
    """Of each bomb: the kind of error, its text, bytes of memory, and seconds."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    taken = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    found = {}
    for i, (name, parse) in enumerate(BOMBS.items()):
        at = folder / str(i)
        at.mkdir()
        before, start = _peak(), time.perf_counter()
        try:
            parse(at)
            error = None
        except Exception as caught:
            error = caught
        seconds = time.perf_counter() - start
        found[name] = type(error).__name__, str(error), _peak() - before, seconds
    return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    warnings.simplefilter("error")  # PIL only warns of some
    print(json.dumps(run(Path(sys.argv[1]))))
