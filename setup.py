"""Packaging. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "zsnr_jax" / "__init__.py").read_text())[1]

TEST = [
    "hypothesis",
    "ipykernel",
    "jupytext",
    "nbclient",
    "nbconvert",
    "nbformat",
    "pyright",
    "pytest",
    "pytest-xdist",
    "ruff",
]

setup(
    name="zsnr_jax",
    version=VERSION,
    description="Zero-terminal-SNR diffusion in JAX and Flax: arXiv 2305.08891, exact.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["zsnr_jax", "zsnr_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "array_record",
        "einops",
        "filelock",  # JAX needs it to bound the folder of compiled programs
        "flax>=0.12",
        "grain>=0.2.17",  # before it, threads swallowed errors
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10",
        "matplotlib",
        "ml_collections",
        "numpy",
        "optax",
        "orbax-checkpoint>=0.12",
        "pillow",
        "safetensors",
        "scikit-learn",  # the digits
        "scipy",
        "tensorboardX",
        "tensorflow-datasets>=4.9.9",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        "test": TEST,
        "tfds": ["tensorflow"],  # to prepare TFDS's own sets; reading them needs none
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "parity": ["torch==2.13.0", "diffusers==0.42.*", "transformers>=5"],  # as tests/golden
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
