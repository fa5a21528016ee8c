"""The one exception that stands for a user's mistake."""


class UsageError(ValueError):
    """A mistake in what was asked for, told in one sentence.

    The sentence names the value, the allowed ones and the remedy. The command line prints it
    without a traceback; importers can catch it as the `ValueError` it is.
    """
