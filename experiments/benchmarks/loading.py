"""What a host reads of each global batch, and how long it takes, where more and more hosts share.

Which rows are whose is computed (`zsnr_jax.data.pipeline`), so that a host's work is that of its
own rows, however many others there are.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from zsnr_jax.data import batches_by_step
from zsnr_jax.data.pipeline import Batches

HOSTS = (1, 2, 4, 8, 16, 32, 64)
SHARE = 64  # rows of a host, where its share is fixed
BATCH = 512  # rows of all hosts, where that is
_SIDE, _NUM_PICTURES = 64, 1 << 20


class Counting:
    """Pictures [64, 64, 3] that are made when asked for, and the bytes that were."""

    def __init__(self) -> None:
        self.bytes = 0
        self._picture = np.arange(_SIDE * _SIDE * 3).astype(np.uint8).reshape(_SIDE, _SIDE, 3)

    def __len__(self) -> int:
        return _NUM_PICTURES

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        self.bytes += self._picture.nbytes
        return {"image": self._picture + np.uint8(index % 256), "label": index % 10}


class Host(NamedTuple):
    """The last of so many hosts, and what it has read."""

    num_hosts: int
    rows: int
    source: Counting
    batches: Batches


def measure(hosts: Sequence[int] = HOSTS, steps: int = 20) -> dict[str, Any]:
    """Seconds and bytes of a host's part of a batch, with a fixed share and with a fixed batch."""
    fixed_share = [_host(count, SHARE * count) for count in hosts]
    fixed_batch = [_host(count, BATCH) for count in hosts]
    return {
        "rows_of_a_host": SHARE,
        "rows_of_all": BATCH,
        "steps": steps,
        "fixed_share": _timed(fixed_share, steps),
        "fixed_batch": _timed(fixed_batch, steps),
    }


def table(found: dict[str, Any]) -> str:
    """In Markdown; ratios are to one host."""
    lines = [
        "| hosts | batch | rows a host | bytes a host and row | time of a row | ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['hosts']} | {row['hosts'] * row['rows']} | {row['rows']} | "
        f"{row['bytes_a_row']:.0f} | {1e6 * row['seconds_a_row']:.1f} us | {row['ratio']:.2f} |"
        for name in ("fixed_share", "fixed_batch")
        for row in found[name]
    ]
    return "\n".join(lines)


def _host(num_hosts: int, batch_size: int) -> Host:
    source = Counting()
    batches = batches_by_step(
        source, batch_size=batch_size, seed=0, image_size=_SIDE,
        host=num_hosts - 1, num_hosts=num_hosts,
    )  # fmt: skip
    return Host(num_hosts, batch_size // num_hosts, source, batches)


def _timed(hosts: Sequence[Host], steps: int) -> list[dict[str, Any]]:
    """In turn, so that a slow second meets all alike; ratios are of the same turn."""
    for host in hosts:
        host.batches[0]  # what is made once
        host.source.bytes = 0
    seconds: list[list[float]] = [[] for _ in hosts]
    for step in tqdm(range(1, steps + 1), desc="loading", unit="step", leave=False):
        for host, taken in zip(hosts, seconds, strict=True):
            start = time.perf_counter()
            host.batches[step]
            taken.append((time.perf_counter() - start) / host.rows)
    return [
        {
            "hosts": host.num_hosts,
            "rows": host.rows,
            "bytes_a_row": host.source.bytes / host.rows / steps,
            "seconds_a_row": statistics.median(taken),
            "ratio": statistics.median(mine / one for mine, one in zip(taken, seconds[0])),
        }
        for host, taken in zip(hosts, seconds, strict=True)
    ]
