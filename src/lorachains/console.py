"""The log in a terminal, beside a progress bar."""

import logging
import sys
from typing import TextIO


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever is standard output at the moment: rich puts its own there while a progress bar is shown."""

    @property
    def stream(self) -> TextIO:
        """Standard output of now."""
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """What logging was set up with doesn't count."""
