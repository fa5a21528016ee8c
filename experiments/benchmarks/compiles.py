"""What a run compiles, and whether anything is compiled twice.

  python -m experiments.benchmarks.compiles [--out=FILE.json]

`configs/brightness.py:smoke` with nothing kept from before, and again with what that one kept. Told
by JAX's own events: programs, seconds of tracing, lowering and compiling, and of each name how
often. Twice is the same name for the same shapes; the same program is one that XLA would be given
again word for word, for the same devices.
"""

import argparse
import collections
import contextlib
import json
import logging
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import apart, options
from experiments.benchmarks.turns import about
from zsnr_jax import files

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).with_suffix(".json")
_PHASES = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
_CACHE = "/jax/compilation_cache/"
# What JAX says in its log of each program; it has no event with the shapes, nor with the key.
_LOWERED = re.compile(r"Compiling (?P<name>\S+) with global shapes and types (?P<shapes>.*?)\. Arg")
_KEYED = re.compile(
    r"(?i)persistent compilation cache (?:hit|miss) for '.*' with key '(?P<key>.+)'"
)


class Counter(logging.Handler):
    """Counts from where it is started on, in this process."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.spans: dict[str, list[tuple[float, float]]] = {x: [] for x in _PHASES.values()}
        self.cache: collections.Counter[str] = collections.Counter()
        self.lowered: list[tuple[str, str]] = []  # name and shapes
        self.keys: list[str] = []

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Listen; nothing is printed of what is heard."""
        logger, monitoring = logging.getLogger("jax"), jax.monitoring
        level, handlers = logger.level, logger.handlers
        logger.handlers = [self]
        logger.setLevel(logging.DEBUG)
        monitoring.register_event_time_span_listener(self._on_span)
        monitoring.register_event_listener(self._on_event)
        try:
            yield
        finally:
            monitoring.unregister_event_time_span_listener(self._on_span)
            monitoring.unregister_event_listener(self._on_event)
            logger.handlers = handlers
            logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a line of JAX's log."""
        text = record.getMessage()
        if found := _LOWERED.match(text):
            self.lowered.append((found["name"], found["shapes"]))
        elif found := _KEYED.match(text):
            self.keys.append(found["key"])

    def summary(self) -> dict[str, Any]:
        """What was heard, as JSON has it."""
        names = collections.Counter(name for name, _ in self.lowered)
        return {
            "programs": len(self.spans["compiling"]),
            "different_programs": len({*self.keys}),
            "seconds": {name: covered(spans) for name, spans in self.spans.items()},
            "cache": dict(self.cache),
            "names": dict(names.most_common()),
            "twice": [
                {"name": name, "times": times, "shapes": shapes}
                for (name, shapes), times in repeated(self.lowered)
            ],
            "same_program": [{"key": key, "times": times} for key, times in repeated(self.keys)],
        }

    def _on_span(self, event: str, start: float, end: float, **_: Any) -> None:
        if event in _PHASES:
            self.spans[_PHASES[event]].append((start, end))

    def _on_event(self, event: str, **_: Any) -> None:
        if event.startswith(_CACHE):
            self.cache[event.removeprefix(_CACHE)] += 1


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds within any of the spans: what is traced within a trace counts once."""
    seconds, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return seconds


def repeated(things: Sequence[Any]) -> list[tuple[Any, int]]:
    """Those that are there more than once, and how often, the most frequent first."""
    return [(x, times) for x, times in collections.Counter(things).most_common() if times > 1]


def main() -> None:
    """Measure, print, and write the JSON beside this file."""
    parser = options.parser(__doc__, RESULT)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    chosen, rest = parser.parse_known_args()
    if chosen.serve:
        return _serve(chosen.serve, rest)
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: _count_run(Path(folder), name) for name in ("cold", "warm")}
    print("\n".join(line for name, run in runs.items() for line in _lines(name, run)))
    found = {**about("python -m experiments.benchmarks.compiles"), "runs": runs}
    files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")
    return None


def _serve(out: Path, arguments: list[str]) -> None:
    """Run `zsnr_jax.main` in this process, and write down what it compiled."""
    counter = Counter()
    sys.argv = ["zsnr_jax.main", *arguments]
    with counter.counting(), contextlib.suppress(SystemExit):
        runpy.run_module("zsnr_jax.main", run_name="__main__", alter_sys=True)
    out.write_text(json.dumps(counter.summary()))


def _count_run(folder: Path, name: str) -> dict[str, Any]:
    """Of one run, with the programs kept in the folder."""
    out = folder / f"{name}.json"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.compiles", f"--serve={out}",
         "--config=configs/brightness.py:smoke", f"--workdir={folder / name}"],
        cwd=ROOT, env=apart.environment(folder), text=True, capture_output=True,
    )  # fmt: skip
    if not (folder / name / "results.json").exists():
        raise SystemExit(f"error: the run failed: {done.stderr.strip()[-300:]}")
    return json.loads(out.read_text())


def _lines(name: str, run: dict[str, Any]) -> list[str]:
    """The table of a run, as it is printed."""
    took = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in run["seconds"].items())
    hits, misses = (run["cache"].get(f"cache_{x}", 0) for x in ("hits", "misses"))
    often = [f"{times} {x}" for x, times in run["names"].items() if times > 1]
    twice = [f"{x['times']} {x['name']} of {x['shapes'][:80]}" for x in run["twice"]]
    return [
        f"{name}: {run['programs']} programs; {took}; {hits} found in the cache, {misses} put in",
        f"  of one name: {', '.join(often) or 'none'}",
        f"  of one name and the same shapes: {'; '.join(twice) or 'none'}",
        f"  the same program: {', '.join(x['key'] for x in run['same_program']) or 'none'}",
    ]


if __name__ == "__main__":
    main()
