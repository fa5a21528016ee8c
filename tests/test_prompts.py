"""Prompts from files, and those that come with the configs."""

import re
from pathlib import Path

import pytest

from zsnr_jax.data import scenes
from zsnr_jax.errors import UsageError
from zsnr_jax.prompts import Prompt, read_prompts

CONFIGS = Path(__file__).parents[1] / "configs"
# arXiv 2305.08891, figure 3.
FIGURE_3 = [
    "Close-up portrait of a man wearing suit posing in a dark studio, rim lighting, teal hue, "
    "octane, unreal",
    "A lion in galaxies, spirals, nebulae, stars, smoke, iridescent, intricate detail, octane "
    "render, 8k",
    "A dark town square lit only by a few torchlights",
    "A starry sky",
    "A bald eagle against a white background",
    "Monochrome line-art logo on a white background",
    "Blonde female model, white shirt, white pants, white background, studio",
    "Solid black background",
]


def test_each_line_of_text_is_a_prompt_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes('  a red disc \r\n\n \t\n{"prompt": "no JSON here"}\né, 夜\n'.encode())
    assert read_prompts(file) == [
        Prompt("a red disc", ""), Prompt('{"prompt": "no JSON here"}', ""), Prompt("é, 夜", "")
    ]  # fmt: skip


def test_a_line_of_json_may_have_a_negative_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": " night ", "negative": " grey "}\n\n{"prompt": "day", "seed": 3}\n',
        encoding="utf-8",
    )
    assert read_prompts(file) == [Prompt("night", "grey"), Prompt("day", "")]


BROKEN = {
    "no JSON": "a red disc",
    "cut short": '{"prompt": "a red disc"',
    "no prompt": '{"text": "a red disc"}',
    "a list": '["a red disc"]',
    "a number": "3",
    "nothing": "null",
    "empty": '{"prompt": " "}',
    "no text": '{"prompt": 3}',
    "negative no text": '{"prompt": "a", "negative": null}',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_told_by_its_number(line: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=f"^line 3 of {re.escape(str(file))} .*: mend it") as told:
        read_prompts(file)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_file_without_prompts_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(" \n\n", encoding="utf-8")
    with pytest.raises(UsageError, match=f"{name} holds no prompt: write one on each line"):
        read_prompts(tmp_path / name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "prompts.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "nowhere.txt", tmp_path, binary):
        with pytest.raises(UsageError, match=re.escape(f"evaluation.prompts={path} cannot be ")):
            read_prompts(path)


def test_the_papers_prompts_come_with_the_configs() -> None:
    prompts = read_prompts(CONFIGS / "figure3_prompts.jsonl")
    assert [prompt.text for prompt in prompts] == FIGURE_3
    assert all(prompt.negative for prompt in prompts)  # as the paper draws them


def test_the_prompts_of_the_scenes_are_captions_of_theirs() -> None:
    prompts = read_prompts(CONFIGS / "scenes_prompts.txt")
    assert len({prompt.text for prompt in prompts}) == 8
    assert {prompt.text for prompt in prompts} <= set(scenes.CAPTIONS)
