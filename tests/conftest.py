"""What all tests share: JAX refuses silent broadcasting, and hypothesis is given time.

Where `CI` is set, hypothesis draws the same examples on every run.
"""

import os
import tempfile

import jax
from hypothesis import settings

# Read when JAX starts, here and in subprocesses: compiling is most of what tests spend time on.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
# So that what one test has compiled, the commands that others start need not compile again.
_COMPILED = os.path.join(tempfile.gettempdir(), "zsnr_jax_tests", "compiled")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _COMPILED)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Read when TFDS is imported: embedded sets are prepared there, and not in the user's own folder.
os.environ.setdefault("TFDS_DATA_DIR", os.path.join(tempfile.gettempdir(), "zsnr_jax_tests"))

jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
