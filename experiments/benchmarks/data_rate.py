"""Whether data keeps up: batches a second of each pipeline alone, beside what training takes.

  python -m experiments.benchmarks.data_rate [--rounds=5] [--batches=200] [--out=FILE.json]

Batches of 32 rows, read ahead as a run reads them: the main job's pictures, the digits, and a set
of latents. The need is the main job's, of `main_job`'s JSON where that is beside --out. Where torch
is installed its DataLoader stands beside, over the main job's pictures as uint8 in memory. Each
pipeline has a process of its own, which rests while the others have their turn.
"""
# pyright: reportMissingImports=false

import contextlib
import functools
import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from experiments.benchmarks import main_job, options
from experiments.benchmarks.spread import middle_half, told
from experiments.benchmarks.turns import about
from zsnr_jax import data, files
from zsnr_jax.data import latents

RESULT = Path(__file__).with_suffix(".json")
BATCH = 32
OURS = ("brightness/32", "digits", "latents")
TORCH = {"torch, no workers": 0, "torch, 2 workers": 2}
STEP = 0.085  # seconds of the main job's step, where `main_job` has not been run
_RECORDS = 512  # of the latents, each of a picture of 256 x 256
_SHAPE = (32, 32, 8)  # of their moments
_WARM = 20  # batches before the first turn


class Turn(NamedTuple):
    """Of a pipeline, in one round."""

    per_second: float  # batches
    processor: float  # seconds of a core for a batch, by all threads of the process itself


def main() -> None:
    """Measure, print, and write the JSON beside this file."""
    parser = options.parser(__doc__, RESULT)
    parser.add_argument("--rounds", type=options.count, default=5)
    parser.add_argument("--batches", type=options.count, default=200, help="in a turn")
    chosen = parser.parse_args()
    names = [*OURS, *(TORCH if importlib.util.find_spec("torch") else ())]
    with tempfile.TemporaryDirectory() as folder:
        write_latents(Path(folder))
        turns = _in_turn(names, Path(folder), chosen.rounds, chosen.batches)
    need, source = step_seconds(chosen.out.with_name(main_job.RESULT.name))
    command = f"python -m experiments.benchmarks.data_rate --rounds={chosen.rounds}"
    found = {
        **about(command + f" --batches={chosen.batches}"),
        "rows_of_a_batch": BATCH,
        "seconds_of_a_step": need,
        "step_from": source,
        "pipelines": {name: compared(x, turns[OURS[0]], need) for name, x in turns.items()},
    }
    print(f"a step takes {need:.3f} s, from {source}")
    for name, row in found["pipelines"].items():
        print(
            f"{name:<18} {told(row['per_second'], 0)} batches/s, {row['times_the_need']:.0f} times "
            f"the need; {1e3 * row['processor_seconds']:.1f} ms of a core each"
        )
    files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")


def compared(turns: list[Turn], ours: list[Turn], step: float) -> dict[str, Any]:
    """Batches a second; how many times the need; what they take of a core; and ours over them."""
    rates = middle_half([turn.per_second for turn in turns])
    return {
        "per_second": rates,
        "times_the_need": rates["median"] * step,
        "processor_seconds": middle_half([turn.processor for turn in turns])["median"],
        "ours_is_times_faster": middle_half(
            [mine.per_second / turn.per_second for mine, turn in zip(ours, turns)]
        ),
    }


def step_seconds(path: Path) -> tuple[float, str]:
    """Seconds of the main job's step, and where they are from."""
    try:
        runs = json.loads(path.read_text())["runs"]["ours"]
    except FileNotFoundError:
        return STEP, "this file's own figure: main_job has not been run"
    return middle_half([run["seconds_of_a_step"] for run in runs])["median"], path.name


def write_latents(folder: Path) -> None:
    """A set as `zsnr_jax.data.encode` leaves it, of noise."""
    rng = np.random.default_rng(0)
    info = latents.LatentInfo(
        version=latents.VERSION, source="noise", source_sha256="0" * 64, num_shards=1,
        image_size=256, fit="as they come", moments_shape=_SHAPE, moments_dtype="float16",
        moments_layout="mean, log variance", scaling_factor=1.0, num_tokens=77,
        empty_ids=(0,) * 77, compute_dtype="float32", vae_sha256={}, tokenizer_sha256={},
    )  # fmt: skip
    stem = latents.shard_name(0)
    path = folder / f"{stem}.arrayrecord"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i in range(_RECORDS):
        writer.write(latents.pack(rng.standard_normal(_SHAPE), np.arange(77), str(i)))
    writer.close()
    shard = latents.ShardInfo("noise", _RECORDS, path.stat().st_size, "0" * 64, 0, ())
    (folder / f"{stem}.json").write_text(shard.to_json())
    (folder / latents.DATASET).write_text(info.to_json())


def _in_turn(names: list[str], folder: Path, rounds: int, batches: int) -> dict[str, list[Turn]]:
    """Each pipeline once a round.

    Not by `turns`: its processes may have none of their own, as torch's workers are.
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for name in names
        }
        for name, pool in pools.items():
            pool.submit(_take, name, folder, _WARM).result()
        turns: dict[str, list[Turn]] = {name: [] for name in names}
        for _ in tqdm(range(rounds), unit="round"):
            for name, pool in pools.items():
                turns[name].append(pool.submit(_take, name, folder, batches).result())
    return turns


def _take(name: str, folder: Path, batches: int) -> Turn:
    """In a pipeline's process: so many batches from where it is."""
    pipeline = _pipeline(name, folder)
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(pipeline)
    seconds = time.perf_counter() - start
    return Turn(batches / seconds, (time.process_time() - processor) / batches)


@functools.cache
def _pipeline(name: str, folder: Path) -> Iterator[Any]:
    """Made once in its process."""
    if name in TORCH:
        return _by_torch(TORCH[name])
    if name == "latents":
        source = data.open_latents(folder)
        return data.read_ahead(data.latent_batches_by_step(source, batch_size=BATCH, seed=0))
    source = data.open_source(name)
    size = source.info.image_shape[0] or 0
    batches = data.batches_by_step(source, batch_size=BATCH, seed=0, image_size=size)
    return data.read_ahead(batches)


class _Pictures:
    """A data set as torch's users write it. At the module's level, so that workers can have it."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels  # uint8 [n, C, H, W], and [n]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index].float() / 127.5 - 1, self.labels[index]


def _by_torch(workers: int) -> Iterator[Any]:
    """Rows drawn at random, for ever."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    source = data.open_source(OURS[0])
    rows = [source[i] for i in range(len(source))]
    images = torch.from_numpy(np.stack([row["image"] for row in rows])).movedim(3, 1)
    pictures: Any = _Pictures(images, torch.tensor([int(row["label"]) for row in rows]))
    sampler = RandomSampler(pictures, num_samples=2**31)
    return iter(DataLoader(pictures, BATCH, sampler=sampler, num_workers=workers))


if __name__ == "__main__":
    main()
