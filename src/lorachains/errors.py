"""The one exception that the command line shows as a single line instead of a traceback."""


class LorachainsError(ValueError):
    """Bad input: says in one line what was wrong, where it was given, and what to do about it."""


def check_switch(key: str, value: object) -> None:
    """Raises `LorachainsError` where a setting is neither true nor false.

    To Hydra `no` is a text, which Python would take for true.
    """
    if not isinstance(value, bool):
        raise LorachainsError(f"{key} is {value!r}: give true or false")


def check_positive(key: str, value: object) -> None:
    """Raises `LorachainsError` where a setting is no whole number above 0."""
    if type(value) is not int or value <= 0:
        raise LorachainsError(f"{key} is {value!r}: give a whole number above 0")
