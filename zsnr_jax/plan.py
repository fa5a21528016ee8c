"""Plan before you pay: what programs cost on given chips, from compiling them and running nothing.

Memory is the compiler's own account, exact but for what a run fragments. Times are a roofline: the
longest of computing, moving bytes to and from memory, and sending them between chips, each at an
assumed share of the peak. No time is claimed for a chip that `zsnr_jax.chips` does not know.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from zsnr_jax import hlo
from zsnr_jax.chips import GIB, Chip, Target

_SECONDS_A_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Attainable:
    """Shares of the peaks that a program is assumed to reach; a run tells the true ones."""

    compute: float = 0.45
    memory: float = 0.8
    interconnect: float = 0.7


ATTAINABLE = Attainable()


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one run of a program, by what they would be spent on."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The longest of the three, as if they went on at the same time."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def bound(self) -> str:
        """Which of the three is the longest."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program; every figure is of one device and one run of it."""

    name: str
    runs: int | None  # how often it is to be run in all
    compile_seconds: float
    remedies: tuple[str, ...]  # if it does not fit
    memory: hlo.Memory | None = None  # None where it did not fit, or the backend does not tell
    shortage: hlo.Shortage | None = None  # where it does not fit
    flops: float | None = None
    bytes_moved: float | None = None  # read from and written to memory
    traffic: tuple[hlo.Traffic, ...] = ()
    roofline: Roofline | None = None  # None where the chip is not known
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it compiled within the memory of one device."""
        return self.shortage is None

    @property
    def days(self) -> float | None:
        """All its runs at the roofline's time; None where one of the two is not known."""
        if self.runs is None or self.roofline is None:
            return None
        return self.runs * self.roofline.seconds / _SECONDS_A_DAY


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would cost."""

    target: str
    num_devices: int
    chip: Chip | None
    parameters: int | None
    programs: tuple[Program, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON, with what follows from it."""
        written = dataclasses.asdict(self)
        for program, entry in zip(self.programs, written["programs"], strict=True):
            entry |= {"fits": program.fits, "days": program.days}
            if program.memory is not None:
                entry["memory"]["needed"] = program.memory.needed
            if program.roofline is not None:
                entry["roofline"] |= {
                    "seconds": program.roofline.seconds,
                    "bound": program.roofline.bound,
                }
        assumed = dataclasses.asdict(ATTAINABLE)
        return {"status": "compiled, not run", "attainable": assumed, **written}


def examine(
    name: str,
    compile: Callable[[], jax.stages.Compiled],
    chip: Chip | None,
    num_devices: int,
    *,
    runs: int | None = None,
    remedies: Sequence[str] = (),
) -> Program:
    """Compile a program and read what it costs one device.

    Args: compile: lowered.compile of it; num_devices: that share it; runs: how often it is to be
      run; remedies: what could be set so that it fits, such as `training_remedies`.
    A compiler's refusal for want of memory is an answer, not an error; other errors pass.
    """
    start = time.perf_counter()
    try:
        compiled = compile()
    except jax.errors.JaxRuntimeError as error:
        shortage = hlo.read_shortage(str(error))
        if shortage is None:
            raise
        return Program(name, runs, time.perf_counter() - start, tuple(remedies), shortage=shortage)
    seconds = time.perf_counter() - start
    memory, work = hlo.read_memory(compiled), hlo.read_work(compiled.as_text() or "", num_devices)
    flops, moved = hlo.read_costs(compiled)
    flops, moved = flops * work.flop_scale, moved * work.byte_scale
    shortage = None
    if memory is not None and chip is not None and memory.needed > chip.hbm:
        shortage = hlo.Shortage(memory.needed, chip.hbm)
    return Program(
        name=name,
        runs=runs,
        compile_seconds=seconds,
        remedies=tuple(remedies),
        memory=memory,
        shortage=shortage,
        flops=flops,
        bytes_moved=moved,
        traffic=work.traffic,
        roofline=None if chip is None else roofline(chip, flops, moved, work.traffic),
        notes=work.notes,
    )


def roofline(
    chip: Chip,
    flops: float,
    moved: float,
    traffic: Sequence[hlo.Traffic],
) -> Roofline:
    """How long a program takes a chip, from the FLOPs it does and the bytes it moves and sends."""
    sent = sum(kind.sent for kind in traffic)
    return Roofline(
        compute=flops / (chip.peak_flops * ATTAINABLE.compute),
        memory=moved / (chip.hbm_bandwidth * ATTAINABLE.memory),
        interconnect=sent / (chip.link_bandwidth * ATTAINABLE.interconnect),
    )


def describe(programs: Sequence[Program], target: Target, parameters: int | None = None) -> Plan:
    """Put examined programs together with what they were compiled for.

    Args: parameters: how many numbers the network learns.
    """
    return Plan(target.name, len(target.devices), target.chip, parameters, tuple(programs))


def training_remedies(
    *, fsdp: bool, remat: bool, bfloat16: bool, accumulate: int, rows_per_device: int
) -> tuple[str, ...]:
    """What could be set so that a training step fits, of what is not set yet; best first."""
    remedies = []
    if not fsdp:
        remedies.append(
            "parallel.mode=fsdp, which splits parameters, optimizer and average over the devices"
        )
    if not bfloat16:
        remedies.append("model.dtype=bfloat16, which halves what the backward pass stores")
    if rows_per_device > 1:
        remedies.append(
            f"train.accumulate={2 * accumulate}, which takes each batch in smaller parts"
        )
    if not remat:
        remedies.append("model.remat=True, which computes blocks twice instead of storing them")
    if rows_per_device > 1:
        remedies.append("a smaller dataset.batch_size")
    return tuple(remedies)


def sampling_remedies(*, bfloat16: bool, rows_per_device: int) -> tuple[str, ...]:
    """What could be set so that sampling fits, of what is not set yet."""
    remedies = [] if bfloat16 else ["model.dtype=bfloat16"]
    return (*remedies, *(["a smaller evaluation.batch_size"] if rows_per_device > 1 else []))


def table(plan: Plan) -> str:
    """The plan as plain text: a column for each program."""
    rows = [
        ("per device", [program.name for program in plan.programs]),
        *_memory_rows(plan),
        *_work_rows(plan.programs),
        *_time_rows(plan),
    ]
    label_width = max(len(label) for label, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(plan.programs))]
    lines = [
        "  ".join(
            [
                f"  {label:<{label_width}}",
                *(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)),
            ]
        )
        for label, cells in rows
    ]
    return "\n".join([*_head(plan), *lines, *_remarks(plan)])


def _head(plan: Plan) -> list[str]:
    devices = f"{plan.num_devices} device{'s' if plan.num_devices > 1 else ''}"
    chip = "" if plan.chip is None else f" ({plan.chip.name}, {_gib(plan.chip.hbm)} each)"
    lines = [f"Plan for {plan.target}: {devices}{chip}. Compiled, not run."]
    if plan.parameters is not None:
        lines.append(f"  {plan.parameters:,} parameters")
    return lines


def _memory_rows(plan: Plan) -> list[tuple[str, list[str]]]:
    memories = [program.memory for program in plan.programs]

    def row(label: str, value: Callable[[hlo.Memory], int]) -> tuple[str, list[str]]:
        return label, ["-" if memory is None else _gib(value(memory)) for memory in memories]

    needed = []
    for program in plan.programs:
        known = program.shortage or program.memory
        needed.append("-" if known is None else _gib(known.needed))
    rows = [
        row("arguments", lambda memory: memory.arguments),
        row("outputs not in their place", lambda memory: memory.outputs - memory.aliased),
        row("temporaries", lambda memory: memory.temporaries),
        row("program", lambda memory: memory.code),
        ("memory needed", needed),
    ]
    if plan.chip is not None:
        limits = [program.shortage.limit if program.shortage else plan.chip.hbm
                  for program in plan.programs]  # fmt: skip
        rows.append(("memory at hand", [_gib(limit) for limit in limits]))
        rows.append(("fits", ["yes" if program.fits else "NO" for program in plan.programs]))
    return rows


def _work_rows(programs: Sequence[Program]) -> list[tuple[str, list[str]]]:
    rows = [
        ("FLOPs", [_figure(program.flops) for program in programs]),
        ("bytes read and written", [_figure(program.bytes_moved) for program in programs]),
    ]
    for kind in hlo.COLLECTIVES:
        found = [{traffic.kind: traffic for traffic in p.traffic}.get(kind) for p in programs]
        if any(found):
            cells = ["-" if t is None else f"{t.count} of {_gib(t.size)}" for t in found]
            rows.append((kind, cells))
    if any(program.traffic for program in programs):
        sent = [sum(kind.sent for kind in program.traffic) or None for program in programs]
        rows.append(("bytes sent", [_figure(value) for value in sent]))
    return rows


def _time_rows(plan: Plan) -> list[tuple[str, list[str]]]:
    times = [program.roofline for program in plan.programs]
    compiling = [f"{program.compile_seconds:.0f} s" for program in plan.programs]
    rows = [("compiling took", compiling)]
    if not any(times):
        return rows
    for name in ("compute", "memory", "interconnect", "seconds"):
        cells = ["-" if t is None else f"{getattr(t, name):.3g} s" for t in times]
        rows.append(("estimated time of a run" if name == "seconds" else f"  {name}", cells))
    rows.append(("bound by", ["-" if t is None else t.bound for t in times]))
    if any(program.days is not None for program in plan.programs):
        days = [program.days for program in plan.programs]
        runs = [program.runs for program in plan.programs]
        rows.append(("runs", ["-" if n is None else f"{n:,}" for n in runs]))
        rows.append(("estimated days", ["-" if d is None else f"{d:.2f}" for d in days]))
    return rows


def _remarks(plan: Plan) -> list[str]:
    lines = []
    for program in plan.programs:
        if program.shortage is not None:
            over = program.shortage.needed - program.shortage.limit
            lines.append(f"The {program.name} does not fit, by {_gib(over)}.")
            if program.remedies:
                lines.append("What would help: " + "; ".join(program.remedies) + ".")
        lines += [f"Of the {program.name}: {note}." for note in program.notes]
    if len(plan.programs) > 1:
        lines.append("Each program is counted by itself: while training goes on, its state stays.")
    if plan.chip is None:
        lines.append(f"{plan.target} is not in the table of chips: no times are estimated.")
    elif any(program.roofline for program in plan.programs):
        shares = ATTAINABLE
        lines.append(
            f"Times assume {shares.compute:.0%} of {plan.chip.peak_flops / 1e12:.0f} TFLOP/s in "
            f"bfloat16, {shares.memory:.0%} of {plan.chip.hbm_bandwidth / 1e9:.0f} GB/s of memory "
            f"and {shares.interconnect:.0%} of {plan.chip.link_bandwidth / 1e9:.0f} GB/s between "
            "chips, all three at the same time."
        )
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
