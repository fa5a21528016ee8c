"""The ways in which a command ends early, each with the code that it exits with.

A scheduler should repeat a command that exits with 75, and no other: repeating does not help where
the user has to mend something (1), nor where the numbers have gone wrong (70).
"""


class UsageError(ValueError):
    """A mistake in what was asked for, or what it met, told in one sentence.

    The sentence names the value, the allowed ones and the remedy. The command line prints it
    without a traceback; importers can catch it as the `ValueError` it is.
    """

    exit_code = 1


class DamagedError(UsageError):
    """A file that a run wrote is not as it was written; an older one may be whole."""


class NotSavedError(UsageError):
    """A checkpoint could not be written, as on a full disk; what is trained is still in memory."""


class NotFiniteError(UsageError):
    """The loss or its gradient was not finite in too many steps in a row."""

    exit_code = 70  # EX_SOFTWARE


class LostHostError(UsageError):
    """Another host of the run is gone; any number of hosts can go on with it."""

    exit_code = 75


class Preempted(Exception):
    """A signal asked the run to end. All is saved, and the same command goes on with it."""

    exit_code = 75  # EX_TEMPFAIL
