"""Reading a compiled program: what each device holds, computes and sends.

XLA's own analyses say how much memory a program takes, but count the body of a loop once, and say
nothing of what goes between devices. That is read here from the text of the compiled program, in
which shapes are those of one device.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping

import jax

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# A reduction of which each device keeps its slice, as the compiler for TPUs writes it: a
# computation of this name, which slices an all-reduce.
SCATTERS = "all-reduce-scatter"
# Instructions that move no bytes.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}  # the others say theirs, as in f32
# `  ROOT %name = shape opcode(operands), attributes`; a shape may be a tuple's, with spaces.
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[a-z][\w\-]*)\("
    r"(?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"(?<![\w.\-%])([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one kind of collective does in one run of a program, for one device."""

    kind: str
    count: int
    size: int  # bytes of the whole arrays: gathered, reduced, or handed on
    sent: int  # bytes that a device sends, by the ring algorithm


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program does in one run, for one device; loops counted as often as they run."""

    flop_scale: float  # by what factor XLA's count of FLOPs is short, for loops
    byte_scale: float  # the same for bytes that are read and written
    traffic: tuple[Traffic, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int  # outputs that take the place of donated arguments
    code: int

    @property
    def needed(self) -> int:
        """What must fit at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Shortage:
    """A compiler's refusal: bytes that one device would need, and has."""

    needed: int
    limit: int


def read_memory(compiled: jax.stages.Compiled) -> Memory | None:
    """What a compiled program holds on one device; None where the backend does not tell."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def read_costs(compiled: jax.stages.Compiled) -> tuple[float, float]:
    """XLA's FLOPs and bytes read and written, for one device, each loop's body counted once."""
    found = compiled.cost_analysis() or {}
    return float(found.get("flops", 0)), float(found.get("bytes accessed", 0))


def read_shortage(message: str) -> Shortage | None:
    """What a RESOURCE_EXHAUSTED error says of memory; None if the text is of something else."""
    number = r"([\d.]+)([KMGT]?)i?B?"
    for pattern in (
        rf"memory required[^(]*\({number}\) exceeds available \w+ \({number}\)",
        rf"Used {number} of {number} hbm",
    ):
        if match := re.search(pattern, message, re.IGNORECASE):
            needed, needed_unit, limit, limit_unit = match.groups()
            return Shortage(_bytes(needed, needed_unit), _bytes(limit, limit_unit))
    return None


def read_work(text: str, num_devices: int) -> Work:
    """What a compiled program does, from its text (`compiled.as_text()`).

    A collective that is split to run beside other work stands in the text several times under one
    channel, and counts once. Of a conditional's branches the one with the most FLOPs counts.
    Notes say where a loop's number of turns is not known: its body then counts once.
    """
    program = _Program(text, num_devices)
    total = program.cost(program.entry)
    kinds: dict[str, list[tuple[_Collective, int]]] = {}
    for of_channel in _by_channel(total.collectives):
        collective, times = max(of_channel, key=lambda found: found[1])
        kinds.setdefault(collective.kind, []).append((collective, times))
    traffic = tuple(
        Traffic(
            kind,
            sum(times for _, times in kinds[kind]),
            sum(collective.size * times for collective, times in kinds[kind]),
            sum(collective.sent * times for collective, times in kinds[kind]),
        )
        for kind in COLLECTIVES
        if kind in kinds
    )
    flop_scale = total.flops / total.flops_once if total.flops_once else 1.0
    byte_scale = total.bytes / total.bytes_once if total.bytes_once else 1.0
    return Work(flop_scale, byte_scale, traffic, tuple(program.notes))


def matmul_flops(text: str, num_devices: int) -> int:
    """FLOPs of matrix products and convolutions alone, loops counted as often as they run.

    Two for each multiplication by a value that is there: padding and dilation cost nothing.
    """
    program = _Program(text, num_devices)
    return round(program.cost(program.entry).flops)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @functools.cached_property
    def called(self) -> dict[str, str]:
        return dict(_CALLED.findall(self.attributes))

    @functools.cached_property
    def branches(self) -> list[str]:
        if listed := re.search(r"branch_computations=\{([^}]*)\}", self.attributes):
            return [name.strip().lstrip("%") for name in listed[1].split(",")]
        return [self.called[f"{side}_computation"] for side in ("true", "false")]


@dataclasses.dataclass(frozen=True)
class _Collective:
    kind: str
    channel: str
    size: int
    sent: int


@dataclasses.dataclass
class _Cost:
    flops: float = 0
    flops_once: float = 0
    bytes: float = 0
    bytes_once: float = 0
    # By channel and computation: the collective, and how often it runs.
    collectives: dict[tuple[str, str], tuple[_Collective, int]] = dataclasses.field(
        default_factory=dict
    )

    def add(self, other: "_Cost", times: int = 1, within_fusion: bool = False) -> None:
        self.flops += other.flops * times
        self.flops_once += other.flops_once
        if not within_fusion:
            self.bytes += other.bytes * times
            self.bytes_once += other.bytes_once
        for key, (collective, count) in other.collectives.items():
            _, before = self.collectives.get(key, (collective, 0))
            self.collectives[key] = (collective, before + count * times)


class _Program:
    """The computations of a module, and what each costs with all that it calls."""

    def __init__(self, text: str, num_devices: int):
        self.notes: list[str] = []
        self._num_devices = num_devices
        self._computations: dict[str, dict[str, _Instruction]] = {}
        self._costs: dict[str, _Cost] = {}
        self.entry = ""
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if match := _INSTRUCTION.match(line):
                current[match["name"]] = _read_instruction(match)
            elif match := _COMPUTATION.match(line):
                current = self._computations.setdefault(match["name"], {})
                self.entry = match["name"] if match["entry"] else self.entry

    def cost(self, name: str) -> _Cost:
        """What one run of a computation costs."""
        if name not in self._costs:
            total = _Cost()
            for instruction in self._computations.get(name, {}).values():
                self._add(total, instruction, name)
            self._costs[name] = total
        return self._costs[name]

    def _add(self, total: _Cost, instruction: _Instruction, name: str) -> None:
        opcode, scope = instruction.opcode, self._computations[name]
        kind = opcode.removesuffix("-start")
        if opcode in ("dot", "convolution"):
            flops = (_dot_flops if opcode == "dot" else _convolution_flops)(instruction, scope)
            total.add(_Cost(flops=flops, flops_once=flops))
        elif kind in COLLECTIVES:
            scatters = kind == "all-reduce" and name.startswith(SCATTERS)
            kind = "reduce-scatter" if scatters else kind
            collective = self._collective(kind, instruction, scope)
            of_its_own = scatters or not collective.channel  # different scatters share a channel
            key = (f"{name}/{instruction.name}" if of_its_own else collective.channel, name)
            total.add(_Cost(collectives={key: (collective, 1)}))
        elif opcode == "while":
            times = self._trip_count(instruction, scope)
            total.add(self.cost(instruction.called["body"]), times)
        elif opcode == "conditional":
            costs = [self.cost(branch) for branch in instruction.branches]
            total.add(max(costs, key=lambda cost: (cost.flops, cost.bytes)))
        elif opcode in ("fusion", "call", "async-start") and "calls" in instruction.called:
            total.add(self.cost(instruction.called["calls"]), within_fusion=opcode == "fusion")
        elif opcode == "call":
            total.add(self.cost(instruction.called["to_apply"]))
        if opcode not in _FREE:
            moved = _size(instruction.shape) + sum(_operand_sizes(instruction, scope))
            total.add(_Cost(bytes=moved, bytes_once=moved))

    def _collective(
        self, kind: str, instruction: _Instruction, scope: Mapping[str, _Instruction]
    ) -> _Collective:
        group = _group_size(instruction.attributes, self._num_devices)
        size = sum(_operand_sizes(instruction, scope)) * (group if kind == "all-gather" else 1)
        # A ring passes each of n parts n - 1 times on; to reduce and gather is two rounds.
        rounds = {"all-reduce": 2, "collective-permute": group / (group - 1) if group > 1 else 1}
        sent = round(size * rounds.get(kind, 1) * (group - 1) / group) if group > 1 else 0
        sent = size if kind == "collective-permute" else sent
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        return _Collective(kind, channel[1] if channel else "", size, sent)

    def _trip_count(self, loop: _Instruction, scope: Mapping[str, _Instruction]) -> int:
        """How often a loop runs: as the text says, or as its condition and start tell."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        if (counted := self._counter(loop, scope)) is not None:
            return len(counted)
        note = "a loop's number of turns is not known: its work is counted once"
        if note not in self.notes:
            self.notes.append(note)
        return 1

    def _counter(self, loop: _Instruction, scope: Mapping[str, _Instruction]) -> range | None:
        """The values of a counter that grows to a limit, as JAX's and XLA's own loops have it."""
        test = self._computations.get(loop.called["condition"], {})
        root = next((found for found in test.values() if found.opcode == "compare"), None)
        carried = scope.get(loop.operands[0])
        if root is None or "direction=LT" not in root.attributes:
            return None
        counter, limit = (test[name] for name in root.operands)
        index = re.search(r"index=(\d+)", counter.attributes)
        if index is None or carried is None or carried.opcode != "tuple":
            return None
        place = int(index[1])
        start = _constant(carried.operands[place], scope)
        stop, step = _constant(limit.name, test), self._step(loop.called["body"], place)
        return None if start is None or stop is None or not step else range(start, stop, step)

    def _step(self, body: str, place: int) -> int | None:
        """By how much a loop's body moves the value at a place of what it carries."""
        scope = self._computations[body]
        root = next(reversed(scope.values()), None)  # ROOT stands last
        if root is None or root.opcode != "tuple":
            return None
        moved = scope[root.operands[place]]
        while moved.opcode == "copy":
            moved = scope[moved.operands[0]]
        if moved.opcode != "add":
            return None
        steps = [_constant(name, scope) for name in moved.operands]
        return next((step for step in steps if step is not None), None)


def _by_channel(
    collectives: Mapping[tuple[str, str], tuple[_Collective, int]],
) -> Iterator[list[tuple[_Collective, int]]]:
    ordered = sorted(collectives.items(), key=lambda item: item[0])
    for _, group in itertools.groupby(ordered, key=lambda item: item[0][0]):
        yield [found for _, found in group]


def _read_instruction(match: re.Match[str]) -> _Instruction:
    operands, attributes = _split_at_closing(match["rest"])
    if match["opcode"] == "constant":  # its value stands where operands do
        return _Instruction(match["name"], match["shape"], "constant", (operands,), attributes)
    names = tuple(re.findall(r"%([\w.\-]+)", operands))
    return _Instruction(match["name"], match["shape"], match["opcode"], names, attributes)


def _split_at_closing(rest: str) -> tuple[str, str]:
    """What stands before and after the bracket that closes the operands."""
    depth = 1
    for place in re.finditer(r"[()]", rest):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return rest[: place.start()], rest[place.end() :]
    return rest, ""


def _constant(name: str, scope: Mapping[str, _Instruction]) -> int | None:
    """The whole number that a name stands for, through copies; None if it is none."""
    instruction = scope.get(name)
    while instruction is not None and instruction.opcode == "copy":
        instruction = scope.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    value = instruction.operands[0]
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def _operand_sizes(instruction: _Instruction, scope: Mapping[str, _Instruction]) -> list[int]:
    return [_size(scope[name].shape) for name in instruction.operands if name in scope]


def _size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, without the padding of tiles."""
    return sum(
        math.prod(_dims(dims)) * _bits(dtype) // 8
        for dtype, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape))
    )


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 0


def _dims(text: str) -> list[int]:
    return [int(size.removeprefix("<=")) for size in text.split(",") if size]


def _shape_of(name: str, scope: Mapping[str, _Instruction]) -> list[int]:
    found = _ARRAY.search(scope[name].shape)
    return _dims(found[2]) if found else []


def _dot_flops(instruction: _Instruction, scope: Mapping[str, _Instruction]) -> int:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    left = _shape_of(instruction.operands[0], scope)
    depth = math.prod(left[axis] for axis in _dims(contracted[1] if contracted else ""))
    return 2 * depth * math.prod(_shape_of(instruction.name, scope))


def _convolution_flops(instruction: _Instruction, scope: Mapping[str, _Instruction]) -> int:
    """2 x outputs x input features x taps that meet a value, dimension by dimension."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0
    left, right, out = (
        dict(zip(names, _shape_of(name, scope), strict=True))
        for names, name in zip(
            labels.groups(), (*instruction.operands[:2], instruction.name), strict=True
        )
    )
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    options = dict(re.findall(r"(\w+)=(\S+)", window[1] if window else ""))
    spatial = sorted(label for label in out if label.isdigit())
    taps = 1
    for i, label in enumerate(spatial):
        of_axis = {key: value.split("x")[i] for key, value in options.items()}
        taps *= _valid_taps(left[label], right[label], out[label], of_axis)
    return 2 * out["b"] * out["f"] * right["i"] * taps


def _valid_taps(size: int, window: int, outputs: int, options: Mapping[str, str]) -> int:
    """Pairs of output and kernel position along one axis that meet a value of the input."""
    stride = int(options.get("stride", 1))
    dilation = int(options.get("rhs_dilate", 1))
    spread = int(options.get("lhs_dilate", 1))
    before = int(options.get("pad", "0_0").split("_")[0])
    end = (size - 1) * spread + 1
    places = (
        position * stride + tap * dilation - before
        for position in range(outputs)
        for tap in range(window)
    )
    return sum(0 <= place < end and place % spread == 0 for place in places)


def _group_size(attributes: str, num_devices: int) -> int:
    """Over how many devices a collective goes, in each notation of replica_groups."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(_dims(match[1]))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return num_devices


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * 1024 ** " KMGT".index(unit.upper() or " "))
