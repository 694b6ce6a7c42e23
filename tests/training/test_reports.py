import os

import pytest

from kseg.training import reports

VALUES = {
    "loss": 2.5,
    "cross_entropy": 1.5,
    "contextrast/c2": 3.0,
    "contextrast/c5": 7.0,
    "learning_rate": 0.01,
}


@pytest.fixture
def progress(monkeypatch):
    """After two steps, the second of which took 2 seconds; 8 are left."""
    clock = iter([0.0, 0.0, 2.0, 2.0])
    monkeypatch.setattr(reports.time, "perf_counter", lambda: next(clock))
    found = reports.Progress(0, 10, 4)
    found.step_done()
    found.step_done()
    return found


def test_terms_are_said_to_be_without_their_weights(progress, capsys):
    assert progress.report(2, VALUES) == {"images_per_second": 2.0}
    assert capsys.readouterr().out == (
        "step 2/10  loss 2.5000  (unweighted: cross_entropy 1.5000, contextrast/c2 3.0000, "
        "contextrast/c5 7.0000)  rate 1.00e-02  2.0 images/s  0:00:16 left\n"
    )


@pytest.mark.parametrize(
    "width, expected",
    [
        (100, "step 2/10  loss 2.5000  rate 1.00e-02  2.0 images/s  0:00:16 left"),
        (60, "step 2/10  loss 2.5000  2.0 images/s  0:00:16 left"),
        (40, "step 2/10  loss 2.5000  0:00:16 left"),
        (20, "0:00:16 left"),
    ],
)
def test_the_line_fits_the_terminal(progress, capsys, monkeypatch, width, expected):
    monkeypatch.setattr(reports.shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
    progress._terminal = True
    progress.report(2, VALUES)
    text = capsys.readouterr().out.removeprefix("\r\x1b[K")
    assert text == expected
    assert len(text) < width
