"""CLIP's tokenizer, from the tokenizer/ folder of a Stable Diffusion model. No JAX.

Text is composed (Unicode's NFC) and its letters made small. It is cut into words, contractions,
single digits and runs of other signs, without the white space between, and each of these is put
together from bytes by the folder's merges: byte-pair encoding, where "</w>" ends a word.

Ids are those of transformers 5. Where ftfy was installed, the CLIPTokenizer of 4.x undid curly
quotes, ligatures and HTML entities first; elsewhere it took Chinese writing apart and left control
characters out. In all of them the padding token within a caption is padding: with the folder of
Stable Diffusion 2.x "!" is 0, where OpenCLIP, which its networks learnt with, has 256 ("!</w>").
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from zsnr_jax import files
from zsnr_jax.errors import UsageError

_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_WHOLE = "tokenizer.json"  # where transformers 5 keeps what was in the last three
_ADDED = "added_tokens.json"  # where early versions kept tokens of textual inversion
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
_ROLES = {  # and the tokens that have them where no file says so
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_REMEDY = "give the whole tokenizer/ folder of a Stable Diffusion model"
_BYTES = 2 * 256  # tokens that no merge makes: each byte, within a word and at its end


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Captions as numbers: `ids` int32 [B, length]; `cut` int32 [B], tokens that found no room."""

    ids: np.ndarray
    cut: np.ndarray


class ClipTokenizer:
    """Turn captions into rows of ids: start, the caption, end, padding.

    start_id, end_id, pad_id: these tokens.  length: of a row.  vocab_size: above all ids; a text
    encoder has as many.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Read vocab.json, merges.txt, special_tokens_map.json and tokenizer_config.json.

        Or tokenizer.json and tokenizer_config.json, which is what transformers 5 writes.
        Raises: UsageError that names the file that is missing, broken or of another tokenizer.
        """
        place = Path(folder).expanduser()
        try:
            config = _read_config(place)
            special = _special_tokens(place, config)
            vocabulary, merges = _read_vocabulary(place)
            _check(place, vocabulary, merges, special)
            self._tokenizer = byte_pair_encoding(vocabulary, merges, special)
        except UsageError:
            raise
        except Exception as error:  # the readers' own, and what odd JSON brings about
            _refuse(place, f"holds a broken file ({files.reason(error)})", error)
        self.length = config.get("model_max_length", 77)
        self.vocab_size = 1 + max(vocabulary.values())
        self.start_id, self.end_id, self.pad_id = (
            vocabulary[special[role].content] for role in ("bos_token", "eos_token", "pad_token")
        )

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Encode captions. One that is too long loses its last tokens, and keeps the end token."""
        try:
            encoded = self._tokenizer.encode_batch(captions, add_special_tokens=False)
        except TypeError as error:
            raise UsageError(
                f"captions cannot be encoded ({error}): give a list of strings, none of which "
                "holds half of a surrogate pair."
            ) from error
        ids = np.full([len(encoded), self.length], self.pad_id, np.int32)
        cut = np.zeros(len(encoded), np.int32)
        for row, encoding in enumerate(encoded):
            kept = encoding.ids[: self.length - 2]
            ids[row, : len(kept) + 2] = [self.start_id, *kept, self.end_id]
            cut[row] = len(encoding.ids) - len(kept)
        return Tokens(ids, cut)


def byte_pair_encoding(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: Mapping[str, AddedToken]
) -> Tokenizer:
    """CLIP's way of cutting a text, with these merges. Args: special: the token of each role."""
    unknown = special["unk_token"].content
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, end_of_word_suffix="</w>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens(list(special.values()))
    return tokenizer


def _read_config(place: Path) -> dict[str, Any]:
    config = _read_json(place / _CONFIG)
    kind, length = config.get("tokenizer_class", _CLASSES[0]), config.get("model_max_length", 77)
    if kind not in _CLASSES:
        _refuse(place / _CONFIG, f"has tokenizer_class {files.shown(kind)}, not {_CLASSES[0]!r}")
    if not 2 < length <= 1024 or not isinstance(length, int):
        _refuse(place / _CONFIG, f"has model_max_length {files.shown(length)}, not 77")
    return config


def _special_tokens(place: Path, config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """The token of each role, with whether it is sought in a text as given or as normalised."""
    named, whole = dict(config), (place / _WHOLE).exists()
    added = list(config.get("added_tokens_decoder", {}).values())
    if not added:
        added = _read_json(place / _WHOLE)["added_tokens"] if whole else []
        if (place / _SPECIAL).exists() or not whole:
            # It outweighs the config, which in Stable Diffusion 2.x still has the padding of 1.x.
            named |= _read_json(place / _SPECIAL)
    known = {token["content"]: token for token in added}
    tokens = {}
    for role, default in _ROLES.items():
        token = named.get(role) or default
        if isinstance(token, str):
            token = known.get(token, {"content": token})
        tokens[role] = AddedToken(token["content"], normalized=token.get("normalized", False))
    others = {*known, *_read_json(place / _ADDED)} if (place / _ADDED).exists() else {*known}
    if others := others - {token.content for token in tokens.values()}:
        added = files.shown(sorted(others))
        _refuse(place, f"adds the tokens {added} to CLIP's own, which is not implemented")
    return tokens


def _read_vocabulary(place: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The number of each token, and the pairs to merge, the first first."""
    if (place / _VOCABULARY).exists() or not (place / _WHOLE).exists():
        for file in (place / _VOCABULARY, place / _MERGES):
            if not file.exists():
                _refuse(file, "is missing")
            files.read_bytes(file, files.MAX_TEXT)  # a limit that the next reader does not know
        return models.BPE.read_file(str(place / _VOCABULARY), str(place / _MERGES))
    model = _read_json(place / _WHOLE)["model"]
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return model["vocab"], [(left, right) for left, right in pairs]


def _check(
    place: Path,
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special: Mapping[str, AddedToken],
) -> None:
    """Refuse special tokens without a number, and merges cut short, which would go unnoticed."""
    contents = {token.content for token in special.values()}
    if absent := contents - vocabulary.keys():
        _refuse(place, f"gives no number to the special tokens {files.shown(sorted(absent))}")
    if max(vocabulary.values()) >= 2**31:
        _refuse(place, f"numbers a token {max(vocabulary.values())}, where ids are of 32 bits")
    if len(vocabulary) > len(merges) + _BYTES + len(contents):
        _refuse(place, f"has {len(merges)} merges only, for {len(vocabulary)} tokens")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = files.read_json(file, _REMEDY)
    except FileNotFoundError:
        _refuse(file, "is missing")
    if not isinstance(content, dict):
        _refuse(file, "holds no JSON object")
    return content


def _refuse(file: Path, fault: str, cause: Exception | None = None) -> NoReturn:
    raise UsageError(f"{file} {fault}: {_REMEDY}.") from cause
