"""The small embedded sets, prepared once per test run in a folder of their own."""

import pathlib

import pytest

from zsnr_jax.data import Source, open_source


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="session")
def shapes(data_dir: pathlib.Path) -> Source:
    """1024 pictures of 16x16."""
    return open_source("brightness/16", "test", data_dir)


@pytest.fixture(scope="session")
def digits(data_dir: pathlib.Path) -> Source:
    """297 digits of 16x16."""
    return open_source("digits", "test", data_dir)
