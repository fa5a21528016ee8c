"""Training and guided sampling at Stable Diffusion 2.1's size on one GPU, beside torch.

  python -m experiments.benchmarks.sd21 [--only=train,sample] [--variants=ours,torch] [--first=4]
    [--most=256] [--rounds=5] [--dtype=bfloat16] [--out=FILE.json] [--go-on]

At 512x512: latents of 64x64. The training step is loss, gradient, clipping, AdamW and the average,
computed in bfloat16 with weights in float32; the sampler is DDIM in 50 guided trailing steps, with
weights in bfloat16. torch: diffusers under torch.compile, channels-last, by autocast. Same weights.

Each variant has the device to itself, for batches that double until its memory is out; then ours
and torch's take turns at the largest batch at which both fit. A table, a JSON, written after every
batch, and a picture. --go-on measures only what is not in the JSON yet. --tiny is a small network,
on whatever there is.
"""

import argparse
import functools
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from experiments.benchmarks import options, sd21_report, sd21_sides, sd21_sweep
from experiments.benchmarks.sd21_sides import VARIANTS
from experiments.benchmarks.sd_shaped import Sizes
from experiments.benchmarks.turns import about
from zsnr_jax import architectures, files, plotting

RESULT = Path(__file__).with_suffix(".json")
TASKS = ("train", "sample")
SIZES = Sizes(batch=1, images=1, steps=50, size=64)
TINY = Sizes(batch=1, images=1, steps=2, size=8)


def main() -> None:
    """Measure, print, and write the JSON and the picture beside this file."""
    chosen = _arguments()
    config = (architectures.TINY if chosen.tiny else architectures.SD21)["unet"]
    sizes = (TINY if chosen.tiny else SIZES)._replace(width=config["cross_attention_dim"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        facts = _alone(sd21_sides.prepare, folder, config, sizes)
        facts |= {"steps": sizes.steps, "size": sizes.size, "dtype": chosen.dtype}
        found = {
            **about(_command(chosen)),
            **facts,
            **_measured_before(chosen.out if chosen.go_on else None, facts),
        }
        makes = functools.partial(sd21_sides.make, folder, sizes, chosen.dtype)
        for _ in sd21_sweep.measure(found, chosen, makes):
            files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")
    print("\n".join(sd21_report.table(found)))
    plotting.save_figure(chosen.out.with_suffix(".png"), sd21_report.draw(found))


def _measured_before(path: Path | None, facts: dict[str, Any]) -> dict[str, Any]:
    """Points on record, of the same device and network."""
    if path is None or not path.exists():
        return {"points": [], "beside": {}}
    before = json.loads(path.read_text())
    told = facts.keys() - {"memory_gigabytes"}  # of which a driver takes more or less
    if differing := sorted(key for key in told if before[key] != facts[key]):
        raise SystemExit(f"{path} has another {differing[0]}: choose another --out.")
    return {key: before[key] for key in ("points", "beside")}


def _alone(run: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def _command(chosen: argparse.Namespace) -> str:
    told = f"python -m experiments.benchmarks.sd21 --only={','.join(chosen.only)}"
    told += f" --variants={','.join(chosen.variants)} --first={chosen.first} --most={chosen.most}"
    told += f" --rounds={chosen.rounds} --dtype={chosen.dtype}"
    return told + (" --tiny" if chosen.tiny else "")


def _arguments() -> argparse.Namespace:
    parser = options.parser(__doc__, RESULT)
    names = [name for name, kind in VARIANTS.items() if sd21_sides.installed() or not kind.torch]
    for flag, allowed in (("--only", TASKS), ("--variants", names)):
        told = ",".join(allowed)
        parser.add_argument(flag, type=options.some_of(allowed), default=told, help=f"of {told}")
    told = "batch, and images drawn at once; then twice as many, and so on"
    parser.add_argument("--first", type=options.count, default=4, help=told)
    told = "batch, which memory may not let be"
    parser.add_argument("--most", type=options.count, default=256, help=told)
    told = "after the first call of each"
    parser.add_argument("--rounds", type=options.count, default=5, help=told)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--go-on", action="store_true", help="with what --out has already")
    parser.add_argument("--tiny", action="store_true", help="a small network")
    chosen = parser.parse_args()
    if chosen.first > chosen.most:
        parser.error(f"--first={chosen.first} is above --most={chosen.most}")
    return chosen


if __name__ == "__main__":
    main()
