"""The one exception that the command line shows as a single line instead of a traceback."""


class LorachainsError(ValueError):
    """Bad input: says in one line what was wrong, where it was given, and what to do about it."""
