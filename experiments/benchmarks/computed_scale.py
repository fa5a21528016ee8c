"""A step of Stable Diffusion 2.1 on up to 4096 chips: computed from sizes, not compiled, not run.

Sizes, where arrays lie and what must be sent are the product's own (`configs/sd21_zsnr.py`); FLOPs
are XLA's count of the lowered step; times are the roofline of plans, with its assumed shares of the
peaks. Links are taken to be one network over all chips, as in a pod of v5p, and nothing waits for
the slowest chip: neither has been seen here.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from configs import sd21_zsnr
from experiments.benchmarks import compiled_steps
from zsnr_jax import build, chips, hlo, parallel, plan, planning
from zsnr_jax.build import Run
from zsnr_jax.chips import GIB, Chip
from zsnr_jax.train.step import repeat_step

CHIPS = (16, 64, 256, 1024, 4096)
SLICE = "v5p:2x2x4"  # for its chip, of which there are slices of each size in CHIPS
MICROBATCH = 8  # rows of a chip at once, as of the README's plan for 256 chips
# Bytes that a chip reads and writes in a step of so many rows. XLA counts them once it has compiled
# the step, which takes minutes: these are the estimated steps of plans by 0.4.0 (0.30 s of
# v5e:16x16 and 0.04 s of v5p:8x8x16, which memory bounds) times the bandwidths assumed there.
MOVED = {8: 0.30 * 0.8 * 819e9, 2: 0.04 * 0.8 * 2765e9}


class Size(NamedTuple):
    """A step on so many chips, for one of them."""

    chips: int
    batch: int
    rows: float
    state: float  # bytes
    compute: float  # seconds, as the two below
    memory: float
    collectives: float

    @property
    def alone(self) -> float:
        """Seconds, if a chip had nothing to send."""
        return max(self.compute, self.memory)

    @property
    def hidden(self) -> float:
        """Seconds, if all is sent while the chip computes, as plans have it."""
        return max(self.alone, self.collectives)

    @property
    def exposed(self) -> float:
        """Seconds, if nothing is sent while the chip computes."""
        return self.alone + self.collectives

    def to_dict(self, ideal_row: float) -> dict[str, Any]:
        """As JSON, with the share of the ideal: so many seconds a row, and nothing to send."""
        ideal = ideal_row * self.rows
        return {
            **self._asdict(),
            "step_seconds": [self.hidden, self.exposed],
            "efficiency": [ideal / self.exposed, ideal / self.hidden],
        }


def measure() -> dict[str, Any]:
    """Both ways to scale: the batch of the config shared by more chips, and rows in proportion."""
    run = build.plan(sd21_zsnr.get_config())
    batch, chip = run.settings["dataset"]["batch_size"], chips.topology(SLICE).chip
    assert chip is not None
    flops = flops_of_a_row()
    size = lambda count, rows: make_size(run, chip, flops, count, rows)  # noqa: E731
    strong = [size(count, batch / count) for count in CHIPS if batch % count == 0]
    weak = [size(count, MICROBATCH) for count in CHIPS]
    ideal = strong[0].alone / strong[0].rows
    return {
        "status": "computed, not compiled, not run",
        "chip": dataclasses.asdict(chip),
        "flops_of_a_row": flops,
        "microbatch": MICROBATCH,
        "strong": [found.to_dict(ideal) for found in strong],
        "weak": [found.to_dict(ideal) for found in weak],
        "refused": [
            f"{count} chips cannot share dataset.batch_size={batch} evenly: a multiple of {count} "
            "is asked for"
            for count in CHIPS
            if batch % count
        ],
    }


def flops_of_a_row() -> float:
    """XLA's count for the training step, lowered and not compiled, on one device."""
    config = sd21_zsnr.get_config()
    config.dataset.batch_size = MICROBATCH
    run = build.plan(config)
    placement = parallel.make_placement("pmap", (), jax.devices("cpu")[:1])
    step = repeat_step(run.train_step(placement), 1)
    lowered = placement.lower_step(step, run.state_shapes(), planning.batch_shapes(run))
    return float((lowered.cost_analysis() or {})["flops"]) / MICROBATCH


def make_size(run: Run, chip: Chip, flops_of_a_row: float, count: int, rows: float) -> Size:
    """A step of so many rows a chip, taken in microbatches, on so many chips by fsdp."""
    # One device stands for all: nothing is placed, but shapes of slices are asked for.
    placement = parallel.make_placement("fsdp", (), jax.devices("cpu")[:1] * count)
    state = run.state_shapes()
    _, here = compiled_steps.nbytes(state, placement)
    # Weights gathered once in float32, or in bfloat16 for each pass: the same 4.49 GiB, which
    # the README's compiled step gathers. Gradients in float32, which is the most they may take.
    sent = compiled_steps.least(state, placement).total
    times = plan.roofline(
        chip,
        flops_of_a_row * rows,
        moved(rows),
        [hlo.Traffic("all kinds", 1, 0, round(sent))],
    )
    return Size(
        count, round(rows * count), rows, here, times.compute, times.memory, times.interconnect
    )


def moved(rows: float) -> float:
    """Bytes that a chip reads and writes, for rows in microbatches: a line through `MOVED`."""
    at_once = min(rows, MICROBATCH)
    (most, high), (few, low) = MOVED.items()
    return rows / at_once * (low + (high - low) * (at_once - few) / (most - few))


def table(found: dict[str, Any]) -> str:
    """Both ways to scale, in Markdown."""
    lines = [
        "| chips | batch | rows a chip | state a chip | compute | memory | collectives | step | "
        "efficiency |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for of in ("strong", "weak"):
        for size in found[of]:
            fast, slow = size["step_seconds"]
            low, high = size["efficiency"]
            lines.append(
                f"| {size['chips']} | {size['batch']} | {size['rows']:g} | "
                f"{size['state'] / GIB:.2f} GiB | {size['compute']:.3f} s | "
                f"{size['memory']:.3f} s | {size['collectives']:.3f} s | "
                f"{fast:.3f} to {slow:.3f} s | {low:.0%} to {high:.0%} |"
            )
    return "\n".join([*lines, *(f"\n{text}." for text in found["refused"])])
