import io
import re
import sys
import time

import pytest

from kseg import progress
from kseg.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def no_patience(monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.01)
    monkeypatch.setattr(progress, "_REPEAT", 0.01)
    monkeypatch.setattr(progress, "_REFRESH", 0.01)


def test_plain_lines_where_there_is_no_terminal(no_patience, capsys):
    said = []

    def text():
        said.append(capsys.readouterr().err)
        return "".join(said)

    with Progress("evaluating", 40) as meter:
        wait_for(lambda: "evaluating: 0/40 images" in text())
        meter.update(12)
        meter.advance(3)
        wait_for(lambda: "evaluating: 15/40 images, " in text())
    assert "\r" not in text()
    assert " a second, 0:0" in text() and " left\n" in text()


def test_a_line_without_progress_tells_the_time(monkeypatch):
    """Else the same line would come again and again."""
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
    meter = Progress("reading", 4)
    assert meter.text() == "reading: 0/4 images"
    monkeypatch.setattr(progress.time, "monotonic", lambda: 165.0)
    assert meter.text() == "reading: 0/4 images, 0:01:05 so far"


def test_work_that_cannot_be_counted(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_REPEAT", 0.5)
    said = []

    def text():
        said.append(capsys.readouterr().err)
        return "".join(said)

    with Progress("exporting"):
        wait_for(lambda: len(text().splitlines()) == 2)
    assert text().splitlines()[0] == "exporting ..."
    assert re.fullmatch(r"exporting: 0:00:0\d so far", text().splitlines()[1])


def test_a_bar_on_a_terminal_that_is_gone_afterwards(no_patience, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(ZeroDivisionError), Progress("checking", 4, unit="records") as meter:
        meter.advance()
        wait_for(lambda: "checking:  25%" in terminal.getvalue())
        raise ZeroDivisionError
    assert "1/4" in terminal.getvalue() and "records/s" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")  # What comes next stands where the bar was.


@pytest.mark.parametrize("shown", [True, False])
def test_short_or_hidden_work_says_nothing(shown, capsys):
    with Progress("evaluating", 4, shown=shown) as meter:
        meter.advance()
    assert capsys.readouterr().err == ""


def test_clock():
    assert clock(3723.4) == "1:02:03"
