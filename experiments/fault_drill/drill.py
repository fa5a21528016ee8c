"""Runs from their start to their end, with faults on the way, and what is wrong with them."""

import collections
import random
import shutil
import time
from pathlib import Path
from typing import Any

from experiments.fault_drill import faults
from experiments.fault_drill.run import Host, Run, wait_for

_TWO_HOSTS = 0.25  # share of launches by two processes
_EARLY = 0.15  # share of faults that do not wait until the run makes progress
_PATIENCE = 300  # seconds in which a launch has to make progress, on a slow machine


class Drill:
    """One part of the report."""

    def __init__(self, seed: int, mode: str, workdir: Path, disk: Path) -> None:
        """Args: mode: of config.parallel; disk: where the runs are that faults are done to."""
        self.seed, self.mode, self.rng = seed, mode, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.launches = self.lives = self.went_back = 0
        self._disk = disk
        self._run = lambda folder: Run(folder, workdir / "compiled", mode)
        self._reference = self._run(workdir / "reference")

    def prepare(self) -> None:
        """Run it once with nothing done to it."""
        host = self._reference.launch(1)[0]
        if not wait_for(lambda: not host.runs, 10 * _PATIENCE) or host.process.returncode:
            raise SystemExit(f"error: the undisturbed run failed: {host.said[-2000:]}")

    def live(self, done: Any) -> None:
        """One run from its start to its end, undisturbed once `done` says that it is enough."""
        run = self._run(self._disk / f"life{self.lives}")
        ended = False
        while not ended:
            if not done():
                self._damage_files(run)
            ended = self._launch(run, disturb=not done())
        self.lives += 1
        self.wrong += [f"it ended with another {x}" for x in run.differences(self._reference)]
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


def _progress(run: Run) -> tuple[Any, ...]:
    """Something that changes as a run goes on."""
    files = [run.folder / "metrics.jsonl", run.folder / "results.json"]
    return (*run.steps(), *(path.stat().st_size for path in files if path.exists()))
