"""Compiled programs: kept by default, found again, and never a reason to fail."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import jax, jax.numpy as jnp
from zsnr_jax import compile_cache
compile_cache._WORTH_KEEPING = 0
print(compile_cache.keep_programs())
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
jax.jit(lambda x: jnp.sin(x) + 1)(2.0).block_until_ready()
print(len(hits))
"""


def _start(home: Path, program: str = PROGRAM, **environment: str) -> tuple[str, int]:
    """What a process that compiles something says: the folder, and how often it was there."""
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, check=True,
        env=kept | {"HOME": str(home)} | environment,
    )  # fmt: skip
    folder, hits = done.stdout.split()
    return folder, int(hits)


def test_a_second_process_need_not_compile(tmp_path: Path) -> None:
    folder, hits = _start(tmp_path)
    assert Path(folder).is_relative_to(tmp_path / ".cache" / "zsnr_jax") and hits == 0
    assert _start(tmp_path) == (folder, 1)
    assert _start(tmp_path, XDG_CACHE_HOME=str(tmp_path / "other"))[1] == 0


def test_the_users_own_settings_come_first(tmp_path: Path) -> None:
    chosen = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen")}
    assert _start(tmp_path, **chosen)[0] == "None"
    assert _start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[0] == "None"
    assert not (tmp_path / ".cache").exists()


def test_single_settings_of_the_users_stay(tmp_path: Path) -> None:
    settings = {
        "JAX_COMPILATION_CACHE_MAX_SIZE": "1000000",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "30",
    }
    asked = "print(jax.config.jax_compilation_cache_max_size)"
    assert (
        _start(tmp_path, program=PROGRAM.replace("print(len(hits))", asked), **settings)[1] == 1e6
    )
    assert _start(tmp_path, **settings) == _start(tmp_path, **settings)  # nothing took 30 s
    assert _start(tmp_path, **settings)[1] == 0


def test_no_home_is_no_error(tmp_path: Path) -> None:
    """As in a container whose user has no entry in passwd."""
    nobody = "import pathlib\ndef home():\n    raise RuntimeError\npathlib.Path.home = home\n"
    assert _start(tmp_path, program=nobody + PROGRAM) == ("None", 0)


def test_a_home_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file where the folder should be")
    assert _start(tmp_path) == ("None", 0)
