import csv

import numpy as np
import pytest

from kseg import display
from kseg.analysis import charts
from kseg.evaluation import drawing, metrics, results

LONG = "a very long name " * 30
NAMES = [
    "$x_1^2$", "road, left/right", "行人", "\N{TRACTOR}\N{ZERO WIDTH JOINER}\N{RAINBOW}", "=1+1",
    "<b>Bäume & \"co\"</b>", "_hidden", LONG.strip(), "|", "%s {0}",
]  # fmt: skip


def test_columns_of_a_terminal():
    assert [display.width(text) for text in ("", "abc", "行人", "e\u0301", "Bäume")] == [
        0,
        3,
        4,
        1,
        5,
    ]
    assert display.fit("ab", 4) == "ab  "
    assert display.fit("abcdef", 4) == "abc…"
    assert display.fit("行人行人", 4) == "行… "
    for name in NAMES:
        assert display.width(display.fit(name, 12)) == 12
    assert display.name_columns(["a", "行人"]) == 4
    assert display.name_columns(NAMES) == 40


def test_what_opencv_can_draw():
    assert (
        display.drawable("Straße, café, Łódź \u2013 \u2018x\u2019") == "Strasse, cafe, Lodz - 'x'"
    )
    assert display.drawable("行人") == "??"
    assert display.drawable("e\u0301") == "e"
    assert display.drawable("$a_b$ ~") == "$a_b$ ~"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@a"])
def test_cells_that_a_spreadsheet_would_calculate(text):
    assert display.spreadsheet_cell(text) == "'" + text
    assert display.spreadsheet_cell(f"a{text}") == f"a{text}"


def scores():
    matrix = np.random.default_rng(0).integers(1, 100, (len(NAMES), len(NAMES)))
    return metrics.Scores(matrix)


def test_tables_line_up():
    """Scores stand in the same columns, whatever is left of them."""
    lines = scores().table(NAMES).splitlines()
    assert max(map(display.width, lines)) <= 100
    rows = lines[1 : 1 + len(NAMES)]
    assert len({display.width(row) for row in rows}) == 1
    for name, row in zip(NAMES, rows, strict=True):
        assert row.startswith(display.fit(name, 40))


def test_csv_of_an_evaluation(tmp_path):
    class Counts:
        def save(self, path):
            path.write_bytes(b"")

    found = scores().to_dict(NAMES)
    results.write(tmp_path / "val.json", found, Counts())
    with open(tmp_path / "val.csv", newline="", encoding="utf-8") as file:
        rows = [row["name"] for row in csv.DictReader(file) if row["kind"] == "class"]
    assert rows == ["'=1+1" if name == "=1+1" else name for name in NAMES]


def test_pictures_of_any_names():
    matrix = scores().matrix
    picture = drawing.confusion_picture(matrix, NAMES)
    assert max(picture.shape) < 1000
    short = drawing.confusion_picture(matrix, [f"{i}" for i in range(len(NAMES))])
    assert (picture.shape[0] - short.shape[0]) <= 270
    labels = np.arange(len(NAMES)).repeat(8).reshape(1, -1).repeat(30, axis=0)
    image = np.zeros((*labels.shape, 3), "uint8")
    palette = [[20 * i, 10, 10] for i in range(len(NAMES))]
    panel = drawing.panel([(image, labels, labels)], NAMES, palette)
    assert panel.ndim == 3


def test_a_chart_shows_names_as_they_are():
    """No mathematics, no label that is left out."""
    count = len(NAMES)
    places = np.random.default_rng(0).random((count, 2))
    palette = [[20 * i, 10, 10] for i in range(count)]
    figure = charts.point_map(places, np.arange(count), palette, title="x", class_names=NAMES)
    (axis,) = figure.axes
    texts = [text.get_text().strip() for text in axis.get_legend().get_texts()]
    assert texts == [display.fit(name, 28).strip() for name in NAMES]
    assert charts.png(figure)[:4] == b"\x89PNG"
    assert "<svg" in charts.svg(figure, "x")
