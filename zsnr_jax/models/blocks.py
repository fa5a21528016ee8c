"""How many rows a CPU takes at once, so that what is made of them stays in its cache."""

AT_ONCE = 2**19  # numbers, 2 MiB in float32
_FEWEST = 10  # of the rows that would fit, one in so many is worth a block


def rows_at_once(rows: int, numbers_a_row: int) -> int:
    """The most rows of which `AT_ONCE` numbers are made, such that they divide all; at least 1.

    All rows where only a few divide them, as of a prime number: one row at a time is slower.
    """
    most = max(AT_ONCE // numbers_a_row, 1)
    found = max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)
    return found if _FEWEST * found >= min(rows, most) else rows
