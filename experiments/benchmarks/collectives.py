"""What a compiled step sends between devices, collective by collective, beside what it must send.

`zsnr_jax.hlo` tells the bytes of each kind in all; here stands how many there are of each, and how
many arrays each carries. A ring of n passes each of n parts on n - 1 times: to gather, or to reduce
and scatter, sends (n - 1) / n of an array's bytes, and to reduce for all twice that.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zsnr_jax import hlo

ROUNDS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}

_COLLECTIVE = re.compile(
    rf"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>{'|'.join(ROUNDS)})\("
    r"(?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"(?<![\w.\-%])[a-z]+(?P<bits>\d+)\[(?P<dims>[\d,]*)\]")


class Collective(NamedTuple):
    """One of a program's collectives, over all of n devices."""

    kind: str  # by what is sent: a key of ROUNDS
    arrays: int
    size: int  # bytes of the whole arrays

    def sent(self, n: int) -> float:
        """Bytes that a device sends."""
        return ROUNDS[self.kind] * self.size * (n - 1) / n


class Traffic(NamedTuple):
    """Bytes that a device sends in a step, of weights and of gradients."""

    gathered: float
    reduced: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.gathered + self.reduced


def read(text: str, n: int) -> list[Collective]:
    """The collectives of a program for n devices, from its text, in its order.

    Each counts once. Raises: ValueError where `hlo.read_work` counts more bytes, as it would where
    they are in a loop: then this reading is not to be trusted.
    """
    found = list(dict(_instructions(text, n)).values())
    work = {traffic.kind: traffic.size for traffic in hlo.read_work(text, n).traffic}
    for kinds in (["all-gather"], ["all-reduce", "reduce-scatter"]):
        here = sum(one.size for one in found if one.kind in kinds)
        there = sum(work.get(kind, 0) for kind in kinds)
        if here < there:
            raise ValueError(f"{' and '.join(kinds)}: {here} bytes, and hlo counts {there}")
    return found


def traffic(collectives: Sequence[Collective], n: int) -> Traffic:
    """What a device sends by them; what is gathered is weights, and what is reduced gradients."""
    gathered = [one.sent(n) for one in collectives if one.kind == "all-gather"]
    reduced = [one.sent(n) for one in collectives if one.kind != "all-gather"]
    return Traffic(sum(gathered), sum(reduced))


def replicated_minimum(gradients: float, n: int) -> Traffic:
    """The least that data parallel devices send: a ring's 2 (n - 1) / n of the gradients."""
    return Traffic(0.0, Collective("all-reduce", 1, round(gradients)).sent(n))


def sliced_minimum(
    weights: float, gradients: float, whole: float, n: int, *, replicas: int = 1
) -> Traffic:
    """The least that devices send which hold slices of the state, each weight gathered once.

    Args: weights: bytes that lie in slices and are gathered; gradients: those of parameters that
      lie in slices; whole: gradients of what every device holds whole; n: slices; replicas: of the
      state, over which each slice's gradient, and the whole ones, are reduced too.
    """
    among = lambda size, devices: 2 * size * (devices - 1) / devices  # noqa: E731
    scattered = gradients * (n - 1) / n + among(gradients / n, replicas)
    return Traffic(weights * (n - 1) / n, scattered + among(whole, n * replicas))


def _instructions(text: str, n: int) -> Iterator[tuple[str, Collective]]:
    """Each collective, with what tells it from others.

    One that is split to run beside other work stands there several times, under one channel; but
    different scatters may share a channel.
    """
    computation = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            computation = match["name"]
        elif match := _COLLECTIVE.match(line):
            channel = re.search(r"channel_id=(\d+)", match["rest"])
            key = channel[1] if channel else match["name"]
            kind, arrays = match["kind"], _sizes(match["shape"])
            if kind == "reduce-scatter":  # it gives slices
                arrays = [size * n for size in arrays]
            elif kind == "all-reduce" and computation.startswith(hlo.SCATTERS):
                kind, key = "reduce-scatter", computation
            yield key, Collective(kind, len(arrays), sum(arrays))


def _sizes(shape: str) -> list[int]:
    """Bytes of each array of a shape, which may be a tuple's, without its layout."""
    return [
        math.prod(int(size) for size in found["dims"].split(",") if size) * int(found["bits"]) // 8
        for found in _ARRAY.finditer(re.sub(r"\{[^}]*\}", "", shape))
    ]
