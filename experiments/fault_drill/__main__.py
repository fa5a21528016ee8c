"""Break a run in every way that is known to happen, and see that it ends as if nothing had.

  python -m experiments.fault_drill --minutes=10 [--seed=0] [--faults=30] [--mode=fsdp]

A run is started; killed, asked to end, starved of disk, robbed of a host or of a file; and started
again by the same command, until it is done. Then its parameters, its log, its results and its
pictures have to be those of a run that nothing was done to, to the bit. It begins again with other
faults until the time is up, or so many faults are done; and adds a part to the report.

Nothing is lost: each launch goes on from the newest checkpoint that was finished and not touched.
Nothing changes in silence: what was touched is noticed, or does not matter to the bit.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from experiments.fault_drill import faults, report
from experiments.fault_drill.drill import Drill
from zsnr_jax.parallel import MODES

REPORT = Path(__file__).parent / "report.json"
_DISK = 64_000_000  # bytes of the small file system


def main() -> None:
    """Run a drill, add it to the report after each run that ended, and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on")
    parser.add_argument("--faults", type=int, default=sys.maxsize, help="... or until so many")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--mode", choices=MODES, default=MODES[0], help="how the state lies")
    parser.add_argument("--out", type=Path, default=REPORT, help="the report to add to")
    parser.add_argument("--workdir", type=Path, help="instead of a temporary folder; it is emptied")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fault_drill_") as temporary:
        workdir = (chosen.workdir or Path(temporary)).absolute()
        shutil.rmtree(workdir, ignore_errors=True)
        with faults.small_disk(workdir / "disk", _DISK):
            wrong = _drill(chosen, workdir)
    if wrong:
        raise SystemExit(1)


def _drill(chosen: argparse.Namespace, workdir: Path) -> list[str]:
    """Returns: what went wrong."""
    drill = Drill(chosen.seed, chosen.mode, workdir, workdir / "disk")
    drill.prepare()
    start = time.monotonic()
    seconds = lambda: time.monotonic() - start  # noqa: E731
    with tqdm(desc="faults", unit="fault") as progress:

        def done() -> bool:
            progress.update(drill.counts.total() - progress.n)
            return seconds() > 60 * chosen.minutes or drill.counts.total() >= chosen.faults

        while not done():
            told = len(drill.wrong)
            drill.live(done)
            for what in drill.wrong[told:]:
                tqdm.write(f"wrong: {what}", file=sys.stderr)
            report.add(chosen.out, report.part(drill, seconds()))
    print(report.table(report.total([report.part(drill, seconds())])))
    return drill.wrong


if __name__ == "__main__":
    main()
