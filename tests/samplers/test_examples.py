"""The samplers' README: every example runs on its model, and says something true of a solver."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from zsnr_jax import samplers

PAGE = (Path(samplers.__file__).parent / "README.md").read_text()
MODEL, *EXAMPLES = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def model():
    names: dict = {}
    exec(MODEL, names)
    return names


def solver(example: str) -> str:
    (name,) = set(re.findall(rf"samplers\.({'|'.join(samplers.SAMPLERS)})\(", example))
    return name


def test_every_solver_has_one_short_example():
    assert sorted(map(solver, EXAMPLES)) == sorted(samplers.SAMPLERS)
    assert all(len(example.splitlines()) <= 10 for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=solver)
def test_the_example_runs_and_its_numbers_are_finite(example, model):
    names = dict(model)
    exec(example, names)
    made = {name: value for name, value in names.items() if name not in model}
    results = [leaf for leaf in jax.tree.leaves(made) if isinstance(leaf, jax.Array)]
    assert results and all(np.all(np.isfinite(leaf)) for leaf in results if leaf.dtype == "float32")
    if "halves" in names:
        np.testing.assert_allclose(np.concatenate(names["halves"]), names["whole"], atol=1e-5)
    if "variants" in names:
        assert np.all(np.std(names["variants"], axis=0) > 0)
    if "gradient" in names:
        assert np.all(names["gradient"] != 0)
