import os

import pytest

from kseg.training import reporting

VALUES = {
    "loss": 3.5,
    "cross_entropy": 1.5,
    "auxiliary": 2.5,
    "contextrast/c2": 3.0,
    "contextrast/c5": 7.0,
    "learning_rate": 0.01,
}
WEIGHTS = {"cross_entropy": 1.0, "auxiliary": 0.4, "contextrast": 0.1, "ohem": 0.0}


@pytest.fixture
def progress(monkeypatch):
    """After two steps, the second of which took 2 seconds; 8 are left."""
    clock = iter([0.0, 0.0, 2.0, 2.0])
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: next(clock))
    found = reporting.TrainingProgress(10, 4)
    found.step_done()
    found.step_done()
    return found


def test_the_terms_add_up_to_the_loss():
    found = reporting.weighted_terms(VALUES, WEIGHTS)
    assert found == {
        "cross_entropy": 1.5,
        "auxiliary": 2.5 * 0.4,
        "contextrast/c2": 3.0 * 0.1,
        "contextrast/c5": 7.0 * 0.1,
    }
    assert sum(found.values()) == pytest.approx(VALUES["loss"])


def test_a_line_of_a_log(progress, capsys):
    values = {**VALUES, "loss": 1.5}
    for name in ("auxiliary", "contextrast/c2", "contextrast/c5"):
        del values[name]
    assert progress.report(2, values, WEIGHTS) == {"images_per_second": 2.0}
    assert capsys.readouterr().out == (
        "step 2/10  loss 1.5000 = cross_entropy 1.5000  lr 1.0e-02  2.0 img/s  0:00:16 left\n"
    )


@pytest.mark.parametrize(
    "width, expected",
    [
        (
            300,
            "step 2/10  loss 3.5000 = ce 1.5000 + aux 1.0000 + ctx 1.0000  lr 1.0e-02  "
            "2.0 img/s  0:00:16 left",
        ),
        (
            90,
            "step 2/10  loss 3.5000 = ce 1.5000 + aux 1.0000 + ctx 1.0000  2.0 img/s  0:00:16 left",
        ),
        (75, "step 2/10  loss 3.5000  lr 1.0e-02  2.0 img/s  0:00:16 left"),
        (50, "step 2/10  loss 3.5000  2.0 img/s  0:00:16 left"),
        (40, "step 2/10  loss 3.5000  0:00:16 left"),
        (20, "0:00:16 left"),
        (8, "0:00:16"),
    ],
)
def test_the_line_fits_the_terminal(progress, capsys, monkeypatch, width, expected):
    monkeypatch.setattr(
        reporting.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((width, 24))
    )
    progress._terminal = True
    progress.report(2, VALUES, WEIGHTS)
    text = capsys.readouterr().out.removeprefix("\r\x1b[K")
    assert text == expected
    assert len(text) < width


def test_many_terms_leave_the_time_left(progress, capsys):
    """Of a long run with every loss and objective, in a log."""
    values = {"loss": 0.0, "learning_rate": 1e-4}
    weights = {}
    for name in ("cross_entropy", "ohem", "lovasz", "auxiliary"):
        values[name], weights[name] = 10.0, 1.0
    for name in ("multi_scale", "pixel_contrast", "region_contrast", "contextrast"):
        weights[name] = 0.5
        values |= {f"{name}/term_{i}": 20.0 for i in range(4)}
    progress._steps = 160000
    progress.report(100000, values, weights)
    line = capsys.readouterr().out.removesuffix("\n")
    assert len(line) <= 100 and line.endswith("33:20:00 left")
