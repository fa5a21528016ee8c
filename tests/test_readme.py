"""The README's commands are commands, its snippet runs, and its numbers are those on file."""

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from test_configs import recipe

from experiments import readme
from experiments.benchmarks import collect
from zsnr_jax.config import to_json
from zsnr_jax.files import flatten

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "experiments" / "benchmarks" / "README.md"
PAGES = [ROOT / "README.md", BENCHMARKS, *sorted((ROOT / "configs").glob("*.py"))]
README = (ROOT / "README.md").read_text()


def _commands(text: str) -> list[list[str]]:
    """All `python -m module ...` commands of a text, in words."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"python -m ((?:zsnr_jax|experiments)\.[\w.]+ [^\n`&|\"]+)", joined)
    return [shlex.split(command) for command in found]


ALL = [command for page in PAGES for command in _commands(page.read_text())]


def test_there_are_commands() -> None:
    assert len(ALL) >= 6


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_a_command_names_what_there_is(command: list[str]) -> None:
    module, *arguments = command
    imported = importlib.import_module(module)
    if hasattr(imported, "__path__"):  # a package that is a command
        imported = importlib.import_module(f"{module}.__main__")
    assert hasattr(imported, "main") or hasattr(imported, "EXPERIMENT")
    if module != "zsnr_jax.main" or arguments == ["--help"]:
        return
    arguments = [argument for argument in arguments if argument != "--multihost"]
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    file, _, variants = flags.pop("config").partition(":")
    assert (ROOT / file).exists()
    settings = flatten(to_json(recipe(Path(file).stem, variants)))
    for flag in flags:
        assert flag in ("workdir", "mode") or flag.removeprefix("config.") in settings


def test_links_and_pictures_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for target in re.findall(r"\]\(([^)]+)\)", BENCHMARKS.read_text()):
        assert (BENCHMARKS.parent / target).exists(), target


def test_every_benchmark_is_told_of() -> None:
    told = re.findall(r"^\| `(\w+)` \|", BENCHMARKS.read_text(), re.MULTILINE)
    assert sorted(told) == sorted(collect.READERS)


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
        seeds = [run["std_ratio"]["value"] for run in found[name]["runs"]]
        assert f"from {min(seeds):.2f} to {max(seeds):.2f}" in " ".join(README.split())


def test_the_table_of_claims_is_the_experiments() -> None:
    table = README.split(readme.BEGIN)[1].split(readme.END)[0]
    assert table == readme.table(), "run python -m experiments.readme"


def test_nothing_waits_to_be_filled_in() -> None:
    sources = [path for name in ("zsnr_jax", "experiments") for path in (ROOT / name).rglob("*.py")]
    for path in [*PAGES, ROOT / "CHANGELOG.md", *sources]:
        assert not re.search(r"<<<|PENDING|TODO|FIXME", path.read_text()), path


def test_the_ideal_table_in_the_datasets_documentation_is_that_on_file() -> None:
    found = json.loads((ROOT / "experiments/results/ideal_brightness.json").read_text())
    text = (ROOT / "zsnr_jax/data/brightness.py").read_text()
    for recipes in found["sizes"].values():
        for measured in recipes.values():
            assert f"{measured['std_ratio']['value']:.3f}" in text
