"""What is logged goes through whatever standard output is at the moment, as rich's while a bar is shown."""

import io
import logging

import pytest

from lorachains.console import ConsoleHandler


def test_lines_go_to_the_standard_output_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = ConsoleHandler()
    later = io.StringIO()
    monkeypatch.setattr("sys.stdout", later)
    handler.emit(logging.LogRecord("lorachains", logging.INFO, "", 0, "knot %d tied", (1,), None))
    assert later.getvalue() == "knot 1 tied\n"
