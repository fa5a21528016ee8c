"""A median, and the middle half of what was measured, in numbers and in words."""

import statistics
from collections.abc import Sequence
from typing import Any


def middle_half(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles; of one value, that value."""
    low, median, high = statistics.quantiles([*values] * (2 if len(values) == 1 else 1), n=4)
    return {"median": median, "low": low, "high": high}


def told(found: dict[str, Any], digits: int = 2) -> str:
    """A median or a ratio, with its middle half."""
    middle = found.get("median", found.get("ratio"))
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(middle, found["low"], found["high"], d=digits)
