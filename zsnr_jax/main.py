"""Train, evaluate or sample: python -m zsnr_jax.main --config=configs/FILE.py[:variant] ...

  --mode=train   train, or go on training, then evaluate (the default)
  --mode=eval    measure the samples of the newest checkpoint; write results.json and report.html
  --mode=sample  draw samples of the newest checkpoint as PNG grids and samples.npz
  --mode=plan    compile for config.plan.topology, a TPU say, and tell what a step costs there
  --mode=import  make checkpoint 0 of config.pretrained; training does it by itself
  --mode=export  write the newest checkpoint as a folder for diffusers

Every setting can be given on the command line, as in --config.sampler.num_steps=25. A run that was
stopped goes on when its command is repeated.
"""

import contextlib
import errno
import inspect
import io
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from zsnr_jax import preemption
from zsnr_jax.errors import Preempted, UsageError

MODES = ("train", "eval", "sample", "plan", "import", "export")

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: configs/FILE.py[:variant].")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of this run; made if missing.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the hosts of a TPU pod or a SLURM job.")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Read the flags; what the user got wrong in them comes back as one sentence."""
    try:
        rest = flags.FLAGS(list(argv))
        missing = [flag.name for flag in (_CONFIG, _WORKDIR) if flag.value is None]
        _ = _CONFIG.value and _CONFIG.value.seed  # a file that is not there is noticed only here
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        raise UsageError(f"{_sentence(error)} (see --help)") from error
    if len(rest) > 1:
        raise UsageError(f"{rest[1]!r} is not a flag: write --name=value (see --help).")
    if missing:
        raise UsageError(f"--{missing[0]} is missing (see --help).")
    return rest


def main(argv: Sequence[str]) -> None:
    """Dispatch on --mode. Imports come late, so that --help is quick."""
    preemption.listen()
    sys.stdout, sys.stderr = _Unfailing(sys.stdout), _Unfailing(sys.stderr)
    _quieten_orbax()
    from zsnr_jax import host_memory

    if host_memory.only_cpus():
        host_memory.keep_freed_memory()
    from zsnr_jax import compile_cache, modes, parallel, xla_options

    xla_options.tune_for_cpus()
    compile_cache.keep_programs()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if _MULTIHOST.value:
        parallel.start_hosts(_CONFIG.value.parallel.heartbeat)
        compile_cache.keep_none_between_cpus()
        preemption.listen_on_all_hosts()
    command = shlex.join(["python", "-m", "zsnr_jax.main", *sys.argv[1:]])
    run_mode = {
        "train": modes.train,
        "eval": modes.evaluate,
        "sample": modes.sample,
        "plan": modes.plan,
        "import": modes.import_weights,
        "export": modes.export,
    }[_MODE.value]
    with parallel.hosts_may_be_lost():
        run_mode(_CONFIG.value, Path(str(_WORKDIR.value)), command)


def _sentence(error: Exception) -> str:
    """What went wrong with a flag, on one line, whoever noticed it."""
    text = str(error)
    if isinstance(error, OSError):
        file = getattr(flags.FLAGS["config"], "config_filename", "the config")
        return f"{file} cannot be read: --config names a file as configs/brightness.py"
    words = re.findall(r"['\"\\]+(\w+)\\*['\"]", text)
    if isinstance(error, AttributeError | KeyError) and words:
        key, *hint = words
        return f"the config has no setting {key!r}" + (f", is it {hint[0]!r}?" if hint else "")
    if "Traceback" in text:  # raised by the config file itself: its last line says what and why
        text = text.strip().splitlines()[-1].removeprefix("zsnr_jax.errors.UsageError: ")
    return " ".join(text.split())


class _Unfailing(io.TextIOBase):
    """A stream that goes without what cannot be written.

    Where it goes to a file on a disk that is full, the run must not die of its own progress bar.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def _quieten_orbax() -> None:
    """Leave it to the errors that Orbax raises to say what went wrong, in a sentence.

    It also tells of every file and every thread, and when it gives up on one array of a checkpoint,
    the others' reads and writes complain, as they end, of a task and a loop that are gone.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable


def _unraisable(told: Any) -> None:
    """Print an error that nobody can catch, unless it is of a task or a loop that is gone."""
    if not (inspect.iscoroutine(told.object) or str(told.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(told)


def _last_words(error: Exception) -> tuple[str, int]:
    """What is printed of an error, in one sentence, and the code to exit with."""
    if isinstance(error, Preempted):
        return f"stopped by {error}. Repeat the command to go on.", error.exit_code
    if isinstance(error, UsageError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError) and error.errno in _OF_DISKS:
        where = f" of {error.filename}" if error.filename else ""
        return (
            f"error: the disk{where} refuses to be written to ({error.strerror}): make room, or "
            "choose another --workdir, and repeat the command.",
            UsageError.exit_code,
        )
    raise error


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse_flags)
    except (UsageError, Preempted, OSError) as error:
        told, code = _last_words(error)
        sys.stdout.flush()
        print(told, file=sys.stderr, flush=True)
        if isinstance(error, Preempted):
            sys.exit(code)  # hosts that end together say good-bye to each other
        os._exit(code)  # reads that Orbax gave up on would have their threads complain after this
