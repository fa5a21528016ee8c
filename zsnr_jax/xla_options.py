"""What XLA is told about compiling for CPUs, where that is faster than what it does by itself.

XLA takes YNNPACK's kernels for products, sums and convolutions. Its 3x3 convolutions of 64 and
96 channels, and the gradients of all, take up to twice as long as Eigen's; the others do not. So
here it is products and sums alone. `python -m experiments.benchmarks.layers` measures convolutions
both ways, and `python -m experiments.benchmarks.main_job --other=FOLDER` whole versions.
"""

import os
import platform

import jax
import jaxlib.version

_MEASURED = "0.10."  # versions of jaxlib; others may not know the flag, and end the process for it
_KERNELS = "--xla_cpu_experimental_ynn_fusion_type"
_KINDS = ("DOT", "INDIVIDUAL_DOT", "REDUCE")


def tune_for_cpus() -> bool:
    """Tell XLA, by XLA_FLAGS; before the first computation of the process, which reads them.

    What the user has set there comes first. Returns: whether anything was told.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    known = jaxlib.version.__version__.startswith(_MEASURED) and platform.machine() in (
        "x86_64",
        "AMD64",
    )
    names_a_file = flags and not flags.startswith("-")  # which has the flags, as XLA reads it
    if not known or names_a_file or _KERNELS in flags:
        return False
    kinds = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in _KINDS)
    os.environ["XLA_FLAGS"] = f"{flags} {_KERNELS}={kinds}".strip()
    return True


def of_a_program_run_once() -> dict[str, str | int | float | bool]:
    """Options by which XLA takes less time to compile a program for CPUs, which may run slower.

    Fresh weights of `configs/brightness.py:adamw` take 3.5 s in place of 5.4 (2 cores of an AMD
    EPYC), and are the same but for the last bit of a few at most.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
