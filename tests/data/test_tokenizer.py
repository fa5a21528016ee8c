"""CLIP's tokenizer on a small vocabulary, and all that can be wrong with its folder."""

import json
import pickle
import re

import clip_folder
import numpy as np
import pytest
from clip_folder import END, START
from hypothesis import given
from hypothesis import strategies as st

from zsnr_jax.data.tokenizer import ClipTokenizer
from zsnr_jax.errors import UsageError

VOCABULARY, MERGES = clip_folder.train()
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126))
WORDS = st.sampled_from([*" ".join(clip_folder.CAPTIONS).split(" "), "'ll", "'ve", "'m", "'d"])
TEXTS = st.lists(ASCII | WORDS).map("".join).filter(lambda text: "<|" not in text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_folder.write(tmp_path_factory.mktemp("sd2") / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ClipTokenizer(folder)


@pytest.fixture(scope="module")
def padded_by_end(tmp_path_factory):
    """As Stable Diffusion 1.x has it."""
    return ClipTokenizer(clip_folder.write(tmp_path_factory.mktemp("sd1"), pad=END))


def caption_ids(tokenizer, text):
    """The ids of the caption itself, which starts after the start and ends before the end."""
    row = list(tokenizer([text]).ids[0])
    assert row[0] == VOCABULARY[START] == tokenizer.start_id
    return row[1 : row.index(tokenizer.end_id)]


def test_a_row_by_hand(tokenizer):
    rows = tokenizer(["a cat", ""])
    names = [START, "a</w>", "cat</w>", END, *["!"] * 73], [START, END, *["!"] * 75]
    np.testing.assert_array_equal(rows.ids, [[VOCABULARY[name] for name in row] for row in names])
    assert rows.ids.dtype == rows.cut.dtype == np.int32
    assert list(rows.cut) == [0, 0]
    assert VOCABULARY["!"] == 0
    assert tokenizer.vocab_size == len(VOCABULARY)


def test_no_captions_are_no_rows(tokenizer):
    assert tokenizer([]).ids.shape == (0, 77)


@given(TEXTS)
def test_ascii_is_encoded_by_the_book(padded_by_end, text):
    expected = clip_folder.encode(text, VOCABULARY, MERGES)
    assert caption_ids(padded_by_end, text) == expected[:75]


def test_an_exclamation_mark_is_padding_where_that_pads(tokenizer, padded_by_end):
    cat = VOCABULARY["cat</w>"]
    assert caption_ids(tokenizer, "cat!! !") == [cat, 0, 0, 0]
    assert caption_ids(padded_by_end, "cat!! !") == [cat, VOCABULARY["!!</w>"], VOCABULARY["!</w>"]]
    assert padded_by_end(["cat"]).ids[0, -1] == VOCABULARY[END]


def test_case_white_space_and_composition_do_not_count(tokenizer):
    plain = caption_ids(tokenizer, "the caf\u00e9 in the garden")
    same = [
        "The CAF\u00c9 in THE garden",
        " the\t caf\u00e9\n in\u2003the garden ",
        "the cafe\u0301 in the garden",
    ]
    assert [caption_ids(tokenizer, text) for text in same] == [plain] * 3


def test_other_signs_are_spelt_in_bytes(tokenizer):
    signs = clip_folder.byte_signs()
    *first, last = (signs[byte] for byte in "\U0001f600".encode())
    expected = [VOCABULARY[token] for token in (*first, f"{last}</w>")]
    assert caption_ids(tokenizer, "\U0001f600") == expected


@pytest.mark.parametrize("words, cut", [(74, 0), (75, 0), (76, 1), (200, 125)])
def test_what_finds_no_room_is_cut_and_counted(tokenizer, words, cut):
    rows = tokenizer(["cat", "dog " * words])
    assert list(rows.cut) == [0, cut]
    dogs = min(words, 75)
    dog, end = VOCABULARY["dog</w>"], VOCABULARY[END]
    expected = [VOCABULARY[START], *[dog] * dogs, end, *[0] * (75 - dogs)]
    assert list(rows.ids[1]) == expected


@pytest.mark.parametrize("pad", ["!", END])
@pytest.mark.parametrize("form", clip_folder.FORMS)
def test_every_form_of_the_folder_is_read_alike(tmp_path, tokenizer, padded_by_end, form, pad):
    texts = ["A cat!", f"the{END}dog", "x " * 99, "caf\u00e9"]
    rows = ClipTokenizer(clip_folder.write(tmp_path, pad, form))(texts)
    expected = (tokenizer if pad == "!" else padded_by_end)(texts)
    np.testing.assert_array_equal(rows.ids, expected.ids)
    np.testing.assert_array_equal(rows.cut, expected.cut)


def test_merges_may_be_written_as_pairs_in_one_string(tmp_path, tokenizer):
    clip_folder.write(tmp_path, form="whole")
    model = {"vocab": VOCABULARY, "merges": [" ".join(pair) for pair in MERGES]}
    change(tmp_path, "tokenizer.json", model=model)
    texts = list(clip_folder.CAPTIONS)
    np.testing.assert_array_equal(ClipTokenizer(tmp_path)(texts).ids, tokenizer(texts).ids)


def test_the_folder_says_how_long_a_row_is(tmp_path):
    change(clip_folder.write(tmp_path), "tokenizer_config.json", model_max_length=5)
    rows = ClipTokenizer(str(tmp_path))(["a cat", "the old dog's garden"])
    assert rows.ids.shape == (2, 5)
    assert list(rows.cut) == [0, 2]
    assert list(rows.ids[:, -1]) == [0, VOCABULARY[END]]


def test_it_travels_to_another_process(tokenizer):
    texts = ["a cat", "the dog"]
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(texts).ids, tokenizer(texts).ids)


@pytest.mark.parametrize("captions", ["a cat", [None], ["\ud83d"], [b"a cat"]])
def test_what_is_no_list_of_strings_is_refused(tokenizer, captions):
    with pytest.raises(UsageError, match="give a list of strings"):
        tokenizer(captions)


# What can be wrong with a folder.

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"


def change(folder, name, **settings):
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    clip_folder.write_json(folder / name, content | settings)


def without(folder, name):
    (folder / name).unlink()


def holding(folder, name, content):
    (folder / name).write_bytes(content)


BROKEN = {
    "no folder": (lambda f: (f / CONFIG).rename(f / "x"), rf"{CONFIG} is missing"),
    "no map": (lambda f: without(f, SPECIAL), rf"{SPECIAL} is missing"),
    "no vocabulary": (lambda f: without(f, "vocab.json"), r"vocab\.json is missing"),
    "no merges": (lambda f: without(f, "merges.txt"), r"merges\.txt is missing"),
    "half a config": (lambda f: holding(f, CONFIG, b'{"pad'), rf"{CONFIG} cannot be read"),
    "a config in Latin-1": (lambda f: holding(f, CONFIG, b'{"\xe9": 1}'), rf"{CONFIG} cannot be"),
    "a list for a map": (lambda f: holding(f, SPECIAL, b"[]"), rf"{SPECIAL} holds no JSON object"),
    "half a vocabulary": (lambda f: holding(f, "vocab.json", b'{"a": 1'), "broken file .*vocab"),
    "a vocabulary of lists": (lambda f: holding(f, "vocab.json", b'{"a": []}'), "gives no number"),
    "merges of three": (lambda f: holding(f, "merges.txt", b"a b c\n"), r"broken file .*Merges"),
    "merges of others": (
        lambda f: holding(f, "merges.txt", b"xyz zyx\n" * 99),
        "out of vocabulary",
    ),
    "merges in binary": (lambda f: holding(f, "merges.txt", b"\xff\x00"), "broken file"),
    "no merge": (lambda f: holding(f, "merges.txt", b""), f"0 merges only, for {len(VOCABULARY)} "),
    "a pad without a number": (
        lambda f: change(f, SPECIAL, pad_token="<pad>"),
        r"no number to the special tokens \['<pad>'\]",
    ),
    "an odd pad": (lambda f: change(f, SPECIAL, pad_token=3), "broken file"),
    "another tokenizer": (
        lambda f: change(f, CONFIG, tokenizer_class="T5Tokenizer"),
        "tokenizer_class 'T5Tokenizer', not 'CLIPTokenizer'",
    ),
    "no length": (lambda f: change(f, CONFIG, model_max_length=10**30), "model_max_length 1000"),
    "a length in words": (lambda f: change(f, CONFIG, model_max_length="long"), "broken file"),
    "a learnt token": (
        lambda f: clip_folder.write_json(f / "added_tokens.json", {"<my-cat>": 545}),
        r"adds the tokens \['<my-cat>'\]",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_refused_in_a_sentence(tmp_path, fault):
    break_it, told = BROKEN[fault]
    break_it(clip_folder.write(tmp_path / "tokenizer"))
    with pytest.raises(UsageError, match=told) as refusal:
        ClipTokenizer(tmp_path / "tokenizer")
    assert str(tmp_path) in str(refusal.value)
    assert re.fullmatch(r"[^\n]+ give the whole tokenizer/ folder of [^\n]+\.", str(refusal.value))


@pytest.mark.parametrize("form", ["decoder", "whole"])
def test_a_learnt_token_is_refused_in_every_form(tmp_path, form):
    clip_folder.write(tmp_path, form=form)
    learnt = {"id": 600, "content": "<my-cat>", "normalized": True, "special": False}
    if form == "decoder":
        change(tmp_path, CONFIG, added_tokens_decoder={"600": learnt})
    else:
        change(tmp_path, "tokenizer.json", added_tokens=[learnt])
    with pytest.raises(UsageError, match="adds the tokens"):
        ClipTokenizer(tmp_path)


def test_a_broken_whole_is_refused(tmp_path):
    change(clip_folder.write(tmp_path, form="whole"), "tokenizer.json", model={"merges": []})
    with pytest.raises(UsageError, match="broken file .'vocab'"):
        ClipTokenizer(tmp_path)
