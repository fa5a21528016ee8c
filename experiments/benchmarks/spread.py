"""A median, and the middle half of what was measured, in numbers and in words."""

import statistics
from collections.abc import Sequence
from typing import Any


def middle_half(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles, which lie within what was measured; of one value, that."""
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def told(found: dict[str, Any], digits: int = 2) -> str:
    """A median or a ratio, with its middle half."""
    middle = found.get("median", found.get("ratio"))
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(middle, found["low"], found["high"], d=digits)
