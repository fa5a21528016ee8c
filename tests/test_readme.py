"""The README's commands are commands, its snippet runs, and its numbers are those on file."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_configs import recipe

from zsnr_jax.config import to_json
from zsnr_jax.files import flatten

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "configs").glob("*.py"))]
README = (ROOT / "README.md").read_text()


def _commands(text: str) -> list[list[str]]:
    """All `python -m module ...` commands of a text, in words."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"python -m ((?:zsnr_jax|experiments)\.\w+ [^\n`&]+)", joined)
    return [shlex.split(command) for command in found]


ALL = [command for page in PAGES for command in _commands(page.read_text())]


def test_there_are_commands() -> None:
    assert len(ALL) >= 6


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_a_command_names_what_there_is(command: list[str]) -> None:
    module, *arguments = command
    assert callable(importlib.import_module(module).main)
    if module != "zsnr_jax.main" or arguments == ["--help"]:
        return
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    file, _, variants = flags.pop("config").partition(":")
    assert (ROOT / file).exists()
    settings = flatten(to_json(recipe(Path(file).stem, variants)))
    for flag in flags:
        assert flag in ("workdir", "mode") or flag.removeprefix("config.") in settings


def test_links_and_pictures_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_snippets_run_and_say_what_the_text_says(capsys: pytest.CaptureFixture) -> None:
    printed = []
    for snippet in re.findall(r"```python\n(.+?)```", README, re.DOTALL):
        names: dict = {}
        exec(snippet, names)
        printed.append(capsys.readouterr().out)
        if "x_0" in names:
            assert np.all(names["x_0"] == 0.5)  # the network says that all data are 0.5
    first, table, eps, euler, guided = printed
    assert first == guided == ""
    assert table.startswith("1/alpha at T: inf") and table.count("inf") == 1
    assert eps.startswith("eps-prediction cannot be used with zero terminal SNR, since")
    assert euler == "True\n"


def test_the_map_names_every_module() -> None:
    for path in (ROOT / "zsnr_jax").iterdir():
        if path.name not in ("__init__.py", "__pycache__", "errors.py", "randomness.py"):
            assert f"`{path.name}" in README or f"/{path.name}" in README, path.name


def test_the_numbers_are_those_on_file() -> None:
    found = json.loads((ROOT / "experiments/results/brightness_recipes.json").read_text())
    for name in ("fixed", "flawed"):
        cell = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**found[name]["std_ratio"])
        assert cell in README
        assert f"{found[name]['ideal_std_ratio']:.3f}" in README


def _ours(name: str) -> dict[str, Any]:
    rows = json.loads((ROOT / f"experiments/results/{name}.json").read_text())["rows"]
    return {row["what"]: row["ours"] for row in rows}


def test_the_claims_table_has_the_experiments_numbers() -> None:
    figure4, figure5, figure6 = (
        _ours(name)
        for name in ("figure4_sample_steps", "figure5_terminal_step", "figure6_guidance_rescale")
    )
    at_5, at_25 = (figure4[f"trailing's spread over linspace's, S = {S}"] for S in (5, 25))
    means = [figure4[f"{spacing}, S = 25: mean, spread"][0] for spacing in ("leading", "trailing")]
    beyond = [
        100 * figure6[f"ideal, phi = {phi}: x0_hat at all levels, the same"][0]
        for phi in ("0", "0.75", "1")
    ]
    variance = figure5["variance at T, original schedule, all and by label"][0]
    law, patch = _ours("resolution_law"), _ours("solvers_at_zero")
    spreads = [law[f"exact, {size} x {size}: mean, spread"][1] for size in (16, 32, 64)]
    first_step = [
        patch[f"{name}: the same with 2^-24"]
        for name in ("DDIM, Euler", "DDPM, Euler ancestral", "Heun in sigma/alpha")
    ]
    from_0 = patch["Heun: error of the first step from 0, rms"]
    for sentence in (
        "spread at 16, 32, 64 pixels: {:.2f}, {:.2f}, {:.2f};".format(*spreads),
        "off by {:.0e} (Euler, 2M), {:.0e} (ancestral, SDE), {:.1f} (Heun".format(*first_step),
        f"from 0 itself {from_0:.0e} |",
        f"spread {at_5:.2f} times linspace's at S = 5, {at_25:.2f} times at 25",
        "leading recovers {:.2f} of the mean at 25, trailing {:.2f}".format(*means),
        f"its variance is {variance:.2f} of the data's",
        "{:.0f} % at phi = 0, {:.0f} % at 0.75, {:.1g} % at 1".format(*beyond),
    ):
        assert sentence in README, sentence


def test_nothing_waits_to_be_filled_in() -> None:
    for path in [*PAGES, *(ROOT / "zsnr_jax").rglob("*.py")]:
        assert not re.search(r"<<<|PENDING|TODO|FIXME", path.read_text()), path


def test_the_ideal_table_in_the_datasets_documentation_is_that_on_file() -> None:
    found = json.loads((ROOT / "experiments/results/ideal_brightness.json").read_text())
    text = (ROOT / "zsnr_jax/data/brightness.py").read_text()
    for recipes in found["sizes"].values():
        for measured in recipes.values():
            assert f"{measured['std_ratio']['value']:.3f}" in text
