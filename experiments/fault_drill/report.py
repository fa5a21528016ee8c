"""What drills found, part by part, in a file that they add up in."""

import collections
import datetime
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments import machine
from experiments.fault_drill.drill import Drill
from experiments.fault_drill.run import ROOT
from zsnr_jax import files


def add(path: Path, part: dict[str, Any]) -> None:
    """Write a part into a report, in the place of one with the same seed."""
    report = json.loads(path.read_text()) if path.exists() else {"parts": []}
    parts = [other for other in report["parts"] if other["seed"] != part["seed"]] + [part]
    text = json.dumps({"total": total(parts), "parts": parts}, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text + "\n")


def part(drill: Drill, seconds: float) -> dict[str, Any]:
    """What a report says of one drill."""
    return {
        "seed": drill.seed,
        "mode": drill.mode,
        "date": datetime.date.today().isoformat(),
        "minutes": round(seconds / 60, 1),
        "machine": machine.processor(),
        "commit": machine.commit(ROOT),
        "versions": {name: version(name) for name in ("jax", "flax", "orbax-checkpoint")},
        "faults": dict(sorted(drill.counts.items())),
        "launches": drill.launches,
        "runs_ended": drill.lives,
        "went_back_to_an_older_checkpoint": drill.went_back,
        "wrong": drill.wrong,
    }


def lost(wrong: list[str]) -> list[str]:
    """Of what went wrong, all but codes that a process should not have ended with."""
    return [what for what in wrong if not re.search(r" exit(ed)? with -?\d+$", what)]


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
        "lost_or_changed": sum(len(lost(part["wrong"])) for part in parts),
        "wrong_exit_codes": sum(len(part["wrong"]) - len(lost(part["wrong"])) for part in parts),
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
            f"{found['lost_or_changed']} things were lost, or changed in silence, and "
            f"{found['wrong_exit_codes']} processes ended with a wrong code.",
        ]
    )
