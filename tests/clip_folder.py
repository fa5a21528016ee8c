"""Small tokenizer/ folders in CLIP's format, and byte-pair encoding by the book, as an oracle."""

import json
import re
from collections import Counter
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
CAPTIONS = (
    "a photo of a cat!! they're in the garden, aren't they?",
    "the photo of the dog: it's 12 years old...",
    "a painting of the old garden in the rain!!",
)
FORMS = ("map", "decoder", "whole")  # how transformers wrote it before 4.34, before 5, and since

Merges = list[tuple[str, str]]


def byte_signs() -> dict[int, str]:
    """The printable sign that stands for each byte in a vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def split(text: str) -> list[str]:
    """The words of an ASCII text, as CLIP cuts them."""
    contractions = "'s|'t|'re|'ve|'m|'ll|'d"
    return re.findall(rf"{contractions}|[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())


def spell(word: str) -> tuple[str, ...]:
    """A word in single bytes, the last marked as such."""
    signs = [byte_signs()[byte] for byte in word.encode()]
    return (*signs[:-1], f"{signs[-1]}</w>")


def merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Join the pair wherever it stands in the word, from the left."""
    joined, i = [], 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        joined.append("".join(word[i : i + step]))
        i += step
    return tuple(joined)


def train(num_merges: int = 40) -> tuple[dict[str, int], Merges]:
    """Vocabulary and merges of CAPTIONS: each merge joins the pair that occurs most."""
    words = Counter(spell(word) for caption in CAPTIONS for word in split(caption))
    merges: Merges = []
    for _ in range(num_merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        words = Counter({merge(word, merges[-1]): count for word, count in words.items()})
    signs = list(byte_signs().values())
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *map("".join, merges), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def encode(text: str, vocabulary: dict[str, int], merges: Merges) -> list[int]:
    """The ids of an ASCII text: in each word every merge in turn, wherever it applies."""
    ids = []
    for word in map(spell, split(text)):
        for pair in merges:
            word = merge(word, pair)
        ids += [vocabulary[token] for token in word]
    return ids


def write(folder: Path, pad: str = "!", form: str = "map") -> Path:
    """Write a folder: of Stable Diffusion 2.x, or of 1.x where `pad` is END."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = train()
    roles = {"bos_token": START, "eos_token": END, "unk_token": END}
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    listed = {
        str(vocabulary[token]): {"content": token, **flags, "special": True}
        for token in dict.fromkeys((*roles.values(), pad))
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    config |= {**roles, "pad_token": END if form == "map" else pad}
    if form == "map":
        special = {role: {"content": token, **flags} for role, token in roles.items()}
        write_json(folder / "special_tokens_map.json", {**special, "pad_token": pad})
    elif form == "decoder":
        config["added_tokens_decoder"] = listed
    else:
        added = [{"id": int(i), **token} for i, token in listed.items()]
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        write_json(folder / "tokenizer.json", {"added_tokens": added, "model": model})
    if form != "whole":
        write_json(folder / "vocab.json", vocabulary)
        lines = ["#version: 0.2", *map(" ".join, merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)
    return folder


def write_json(file: Path, content: object) -> None:
    """Write JSON with its letters as they are, as CLIP's files have them."""
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
