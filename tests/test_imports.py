"""Imports point one way, and importing us touches no device."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CORE = [
    "zsnr_jax.errors",
    "zsnr_jax.schedules",
    "zsnr_jax.timesteps",
    "zsnr_jax.predictions",
    "zsnr_jax.process",
    "zsnr_jax.guidance",
    "zsnr_jax.apg",
    "zsnr_jax.losses",
    "zsnr_jax.offset_noise",
    "zsnr_jax.signal_leak",
    "zsnr_jax.randomness",
    "zsnr_jax.samplers",
]
# A module, or a package and all in it -> what of ours it may import. A longer name goes first.
OURS = {
    **dict.fromkeys(CORE, CORE),
    "zsnr_jax.models": ["zsnr_jax.models", "zsnr_jax.errors"],
    "zsnr_jax.torch_weights": ["zsnr_jax.errors"],
    "zsnr_jax.safetensors_files": ["zsnr_jax.errors", "zsnr_jax.files"],
    "zsnr_jax.scheduler_config": CORE,
    "zsnr_jax.diffusers_io": [
        *(*CORE, "zsnr_jax.models", "zsnr_jax.torch_weights"),
        *("zsnr_jax.safetensors_files", "zsnr_jax.scheduler_config", "zsnr_jax.files"),
    ],
    "zsnr_jax.data": ["zsnr_jax.data", "zsnr_jax.errors", "zsnr_jax.files"],
    "zsnr_jax.data.encode": [
        *("zsnr_jax.data", "zsnr_jax.errors"),
        *("zsnr_jax.diffusers_io", "zsnr_jax.parallel", "zsnr_jax.files"),
    ],
    "zsnr_jax.evaluation": [
        *(*CORE, "zsnr_jax.models", "zsnr_jax.data", "zsnr_jax.evaluation"),
        *("zsnr_jax.torch_weights", "zsnr_jax.safetensors_files", "zsnr_jax.preemption"),
        "zsnr_jax.files",
    ],
    "zsnr_jax.preemption": ["zsnr_jax.errors"],
    "zsnr_jax.digests": [],
    "zsnr_jax.checkpoints": [
        *("zsnr_jax.digests", "zsnr_jax.errors", "zsnr_jax.files", "zsnr_jax.parallel"),
        "zsnr_jax.train.state",
    ],
    "zsnr_jax.train.step": [*CORE, "zsnr_jax.train.state", "zsnr_jax.train.optimizer"],
    "zsnr_jax.files": ["zsnr_jax.errors"],
    "zsnr_jax.chips": ["zsnr_jax.errors"],
    "zsnr_jax.hlo": [],
    "zsnr_jax.plan": ["zsnr_jax.chips", "zsnr_jax.hlo"],
    "zsnr_jax.prompts": ["zsnr_jax.errors", "zsnr_jax.files"],
    "zsnr_jax.architectures": [],
    "zsnr_jax.plotting": [],
    "zsnr_jax.page": ["zsnr_jax.errors", "zsnr_jax.files"],
    "zsnr_jax.claims": ["zsnr_jax.page", "zsnr_jax.errors", "zsnr_jax.files"],
    "zsnr_jax.report": [
        *("zsnr_jax.files", "zsnr_jax.plotting", "zsnr_jax.errors"),
        *("zsnr_jax.page", "zsnr_jax.claims"),
    ],
    "configs": ["zsnr_jax.config"],
}
# ... and which packages of others, beside the standard library.
OTHERS = {
    **dict.fromkeys(CORE, ["jax", "numpy", "einops"]),
    "zsnr_jax.models": ["jax", "numpy", "einops", "flax"],
}
NO_JAX = [
    *("zsnr_jax.data", "zsnr_jax.plotting", "zsnr_jax.page", "zsnr_jax.claims", "zsnr_jax.report")
]
SHELLS = ["zsnr_jax.data.encode"]  # commands in these that use JAX: no other module imports them
# clu.metric_writers imports TensorFlow, and jax._src is not an interface.
NOWHERE = ["jax._src", "clu", "tensorflow"]
# ... but that nothing public tells which hosts still answer.
DESPITE = {"zsnr_jax.parallel": ["jax._src", "jax._src.distributed"]}


def source_files():
    folders = ("zsnr_jax", "configs", "experiments", "notebooks")
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module_name(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str) -> set[str]:
    """Every module a source names in an import, and every name it takes from one."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, packages) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def rule_for(module: str, rules):
    """The packages that a module may import by the most specific rule, or None if none holds."""
    layers = [layer for layer in rules if within(module, [layer])]
    return rules[max(layers, key=len)] if layers else None


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def breaches(module: str, source: str) -> list[str]:
    names = imported(source)
    ours = {name for name in names if within(name, ["zsnr_jax"])}
    others = {name for name in names - ours if name.split(".")[0] not in sys.stdlib_module_names}
    bad = {name for name in names if within(name, NOWHERE)} - {*DESPITE.get(module, ())}
    bad |= {name for name in ours if is_private(name.split(".")[-1])}
    if (allowed := rule_for(module, OURS)) is not None:
        bad |= {name for name in ours if not within(name, allowed)}
    if (allowed := rule_for(module, OTHERS)) is not None:
        bad |= {name for name in others if not within(name, allowed)}
    if within(module, NO_JAX) and module not in SHELLS:
        bad |= {name for name in names if within(name, ["jax", "flax", *SHELLS])}
    return sorted(bad)


@pytest.mark.parametrize("file", source_files(), ids=module_name)
def test_imports_point_one_way(file):
    assert breaches(module_name(file), file.read_text()) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("zsnr_jax.losses", "from zsnr_jax import models"),
        ("zsnr_jax.losses", "import flax"),
        ("zsnr_jax.samplers.ddim", "def f():\n    import optax"),
        ("zsnr_jax.samplers.ddim", "from zsnr_jax.samplers.base import _shortened"),
        ("zsnr_jax.models.unet", "from zsnr_jax.schedules import snr"),
        ("zsnr_jax.models.unet", "import optax"),
        ("zsnr_jax.data.pipeline", "from zsnr_jax import schedules"),
        ("zsnr_jax.data.pipeline", "import jax.numpy as jnp"),
        ("zsnr_jax.data.latents", "from zsnr_jax.data import encode"),
        ("zsnr_jax.data.latents", "from zsnr_jax import config"),
        ("zsnr_jax.data.encode", "from zsnr_jax.models import autoencoder"),
        ("zsnr_jax.evaluation.fid", "from zsnr_jax.train import step"),
        ("zsnr_jax.train.step", "from zsnr_jax.models import unet"),
        ("zsnr_jax.plotting", "from zsnr_jax.schedules import snr"),
        ("zsnr_jax.report", "import jax"),
        ("configs.digits", "from zsnr_jax import build"),
        ("zsnr_jax.metrics", "from clu import metric_writers"),
        ("zsnr_jax.train.loop", "from jax._src import core"),
        ("experiments.table", "import tensorflow as tf"),
        ("experiments.table", "from zsnr_jax.guidance import _variance"),
    ],
)
def test_the_rule_refuses(module, source):
    assert breaches(module, source) != []


@pytest.mark.parametrize(
    "module, source",
    [
        ("zsnr_jax.samplers.ddim", "import math\nfrom zsnr_jax import randomness"),
        ("zsnr_jax.data.digits", "import tensorflow_datasets as tfds"),
        ("zsnr_jax.data.encode", "import jax\nfrom zsnr_jax import diffusers_io, parallel"),
        ("zsnr_jax.train.loop", "import flax\nfrom zsnr_jax.models import unet"),
        ("configs.digits", "from ml_collections import ConfigDict\nfrom zsnr_jax import config"),
    ],
)
def test_the_rule_allows(module, source):
    assert breaches(module, source) == []


IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge._backends, f"a device was touched: {list(xla_bridge._backends)}"
for late in ("tensorflow", "sklearn", "scipy.stats", "matplotlib.pyplot"):
    assert late not in sys.modules, f"{late} was imported"
"""


def test_importing_every_module_touches_no_device_and_nothing_that_takes_long():
    modules = [name for name in map(module_name, source_files()) if name.startswith("zsnr_jax")]
    command = [sys.executable, "-c", IMPORT_ALL, *sorted({"zsnr_jax", *modules})]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
