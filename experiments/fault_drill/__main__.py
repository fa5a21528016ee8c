"""Break a run in every way that is known to happen, and see that it ends as if nothing had.

  python -m experiments.fault_drill --minutes=10 [--seed=0] [--faults=30] [--out=FILE]

A run is started; killed, asked to end, starved of disk, robbed of a host or of a file; and started
again by the same command, until it is done. Then its parameters, its log, its results and its
pictures have to be those of a run that nothing was done to, to the bit. It begins again with other
faults until the time is up, or so many faults are done; and adds a part to the report.

Nothing is lost: each launch goes on from the newest checkpoint that was finished and not touched.
Nothing changes in silence: what was touched is noticed, or does not matter to the bit.
"""

import argparse
import collections
import datetime
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.fault_drill import faults
from experiments.fault_drill.run import Host, Run, wait_for

REPORT = Path(__file__).parent / "report.json"
_DISK = 64_000_000  # bytes of the small file system
_TWO_HOSTS = 0.25  # share of launches by two processes
_EARLY = 0.15  # share of faults that do not wait until the run makes progress
_PATIENCE = 300  # seconds in which a launch has to make progress, on a slow machine


class Drill:
    """One part of the report."""

    def __init__(self, seed: int, workdir: Path, disk: Path) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.launches = self.lives = self.went_back = 0
        self._workdir, self._disk = workdir, disk
        self.reference = Run(workdir / "reference", workdir / "compiled")

    def prepare(self) -> None:
        """Run it once with nothing done to it."""
        host = self.reference.launch(1)[0]
        if not wait_for(lambda: not host.runs, 10 * _PATIENCE) or host.process.returncode:
            raise SystemExit(f"error: the undisturbed run failed: {host.said[-2000:]}")

    def live(self, done: Any) -> None:
        """One run from its start to its end, undisturbed once `done` says that it is enough."""
        run = Run(self._disk / f"life{self.lives}", self._workdir / "compiled")
        ended = False
        while not ended:
            if not done():
                self._damage_files(run)
            ended = self._launch(run, disturb=not done())
        self.lives += 1
        self.wrong += [f"it ended with another {x}" for x in run.differences(self.reference)]
        shutil.rmtree(run.folder)

    def _damage_files(self, run: Run) -> None:
        """Damage the newest checkpoint, while there is one to go back to."""
        while len(run.whole()) > 1 and self.rng.random() < 0.8:
            self._count(*self.rng.choice(faults.TO_FILES)(run, self.rng))

    def _launch(self, run: Run, disturb: bool) -> bool:
        """Start the run, do something to it, and see what it did. Returns: whether it is done."""
        newest = max(run.whole(), default=0)
        hosts = run.launch(2 if self.rng.random() < _TWO_HOSTS else 1)
        self.launches += 1
        if disturb:
            self._disturb(run, hosts)
        elif not wait_for(lambda: not any(host.runs for host in hosts), 10 * _PATIENCE):
            raise SystemExit("error: a launch that nothing was done to does not end")
        self._judge(run, hosts, newest)
        return hosts[0].process.returncode == 0

    def _disturb(self, run: Run, hosts: list[Host]) -> None:
        """One fault or two, at a random moment."""
        self._wait(run, hosts)
        if len(hosts) == 1 and self.rng.random() < 0.25 and hosts[0].runs:
            self._count(*faults.fill_disk(run, hosts, self.rng))
        kinds = [faults.kill, faults.ask_to_end] + [faults.lose_host] * (len(hosts) > 1)
        if any(host.runs for host in hosts):
            self._count(*self.rng.choice(kinds)(run, hosts, self.rng))

    def _wait(self, run: Run, hosts: list[Host]) -> None:
        """Until a random moment: as a rule some time after the run has made progress."""
        if self.rng.random() < _EARLY:
            time.sleep(self.rng.uniform(0, 10))
            return
        before = _progress(run)
        moved = lambda: _progress(run) != before or not all(h.runs for h in hosts)  # noqa: E731
        if not wait_for(moved, _PATIENCE):
            self.wrong.append("a launch made no progress")
        time.sleep(self.rng.uniform(0, 2))

    def _judge(self, run: Run, hosts: list[Host], newest: int) -> None:
        """What a launch went on from, what it said, and what it left."""
        start = run.went_on_from(hosts[0])
        if start is not None and start < newest:
            self.wrong.append(f"it went on from step {start}, and step {newest} was whole")
        self.went_back += "Going back to step" in hosts[0].said
        for host in hosts:
            if "Traceback" in host.said and host.process.returncode not in (-9, -6, 75):
                self.wrong.append(f"a traceback: {host.said[-600:]}")
        kept = {int(p.name.split("-")[0]) for p in run.folder.glob("damaged/*")}
        gone = run.damaged - kept - set(run.steps())
        if start is not None and any(step > start for step in gone):
            self.wrong.append(f"of damaged checkpoints {sorted(gone)} nothing is left")
        run.damaged &= set(run.steps())
        self.wrong += run.look()

    def _count(self, kind: str, wrong: list[str]) -> None:
        self.counts[kind] += 1
        self.wrong += [f"{kind}: {what}" for what in wrong]

    def part(self, seconds: float) -> dict[str, Any]:
        """What the report says of it."""
        return {
            "seed": self.seed,
            "date": datetime.date.today().isoformat(),
            "minutes": round(seconds / 60, 1),
            "machine": _machine(),
            "versions": {name: version(name) for name in ("jax", "flax", "orbax-checkpoint")},
            "faults": dict(sorted(self.counts.items())),
            "launches": self.launches,
            "runs_ended": self.lives,
            "went_back_to_an_older_checkpoint": self.went_back,
            "wrong": self.wrong,
        }


def main() -> None:
    """Run a drill, print its table and add it to the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on")
    parser.add_argument("--faults", type=int, default=sys.maxsize, help="... or until so many")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--out", type=Path, default=REPORT, help="the report to add to")
    parser.add_argument("--workdir", type=Path, help="instead of a temporary folder; it is emptied")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fault_drill_") as temporary:
        workdir = (chosen.workdir or Path(temporary)).absolute()
        shutil.rmtree(workdir, ignore_errors=True)
        with faults.small_disk(workdir / "disk", _DISK):
            part = _drill(chosen, workdir)
    report = json.loads(chosen.out.read_text()) if chosen.out.exists() else {"parts": []}
    report["parts"] = [p for p in report["parts"] if p["seed"] != part["seed"]] + [part]
    chosen.out.write_text(json.dumps(report | {"total": total(report["parts"])}, indent=2) + "\n")
    print(table(total([part])))
    if part["wrong"]:
        raise SystemExit(1)


def total(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All parts together: faults by kind, and how many things went wrong."""
    counts: collections.Counter[str] = collections.Counter()
    for part in parts:
        counts.update(part["faults"])
    return {
        "faults": dict(sorted(counts.items())),
        "all": counts.total(),
        "runs_ended": sum(part["runs_ended"] for part in parts),
        "launches": sum(part["launches"] for part in parts),
        "minutes": round(sum(part["minutes"] for part in parts), 1),
        "wrong": sum(len(part["wrong"]) for part in parts),
    }


def table(found: dict[str, Any]) -> str:
    """The total in plain text."""
    lines = [f"  {kind:<16} {n:>5}" for kind, n in found["faults"].items()]
    return "\n".join(
        [
            *lines,
            f"  {'in all':<16} {found['all']:>5}  in {found['launches']} launches and "
            f"{found['minutes']} minutes",
            f"{found['runs_ended']} runs ended with the bits of the undisturbed one; "
            f"{found['wrong']} things went wrong.",
        ]
    )


def _drill(chosen: argparse.Namespace, workdir: Path) -> dict[str, Any]:
    drill = Drill(chosen.seed, workdir, workdir / "disk")
    drill.prepare()
    start, seen = time.monotonic(), 0
    done = lambda: (  # noqa: E731
        time.monotonic() - start > 60 * chosen.minutes or drill.counts.total() >= chosen.faults
    )
    with tqdm(desc="faults", unit="fault") as progress:
        while not done():
            drill.live(done)
            progress.update(drill.counts.total() - seen)
            seen = drill.counts.total()
            for what in drill.wrong:
                tqdm.write(f"wrong: {what}")
    return drill.part(time.monotonic() - start)


def _progress(run: Run) -> tuple[Any, ...]:
    """Something that changes as a run goes on."""
    files = [run.folder / "metrics.jsonl", run.folder / "results.json"]
    return (*run.steps(), *(path.stat().st_mtime_ns for path in files if path.exists()))


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    return f"{os.cpu_count()} cores of {cpu}"


if __name__ == "__main__":
    main()
