import re

import cv2
import numpy as np
import pytest

from kseg.analysis import charts

PALETTE = [[200, 30, 30], [30, 160, 30], [40, 40, 200]]


def decode(content):
    return cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_COLOR)[..., ::-1]


def occurs(picture, color, tolerance=30):
    return (np.abs(picture.astype(int) - color).max(axis=-1) <= tolerance).sum()


@pytest.mark.parametrize(
    "train, evaluation",
    [
        ({"loss/loss": ([1, 5], [2.0, 1.0]), "learning_rate": ([1, 5], [0.1, 0.0])}, {}),
        ({"loss/loss": ([1, 5], [2.0, 0.0])}, {"mean_iou": ([5], [0.5])}),
        ({}, {"mean_iou": ([5, 9], [0.5, 0.6]), "pixel_accuracy": ([5, 9], [0.5, 0.6])}),
    ],
)
def test_training_curves(train, evaluation):
    picture = decode(charts.png(charts.training_curves(train, evaluation)))
    assert picture.shape == (525, 1650, 3)
    blue = np.array([int(charts.LINES[0][i : i + 2], 16) for i in (1, 3, 5)])
    assert occurs(picture, blue) > 20


def test_points_have_the_colors_of_their_classes():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 2], 30)
    arguments = rng.normal(size=(60, 2)), classes, PALETTE
    plain = decode(charts.png(charts.point_map(*arguments, title="points")))
    assert [occurs(plain, color) > 100 for color in PALETTE] == [True, False, True]
    legend = charts.point_map(*arguments, title="points", class_names=["sky", "road", "car"])
    (axis,) = legend.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["sky", "car"]


def test_histogram():
    figure = charts.histogram(np.array([0.01, 0.02, 0.5, 1.0]), title="shares")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert (heights[0], heights[10], heights[19], sum(heights)) == (2, 1, 1, 4)


def test_smooth_by_hand():
    assert charts.smooth([4.0, 1.0, 1.0], weight=0.5) == pytest.approx(
        [4, (2 + 1) / 1.5, (1 + 0.5 + 1) / 1.75]
    )
    assert charts.smooth([3.0] * 9) == pytest.approx([3.0] * 9)


def test_svg_takes_the_text_color_of_its_page_and_has_its_own_ids():
    drawings = [
        charts.svg(charts.histogram(np.array([0.5]), title="same"), name) for name in ("one", "two")
    ]
    assert drawings[0].replace("one-", "two-").count("two-") == drawings[1].count("two-")
    for drawing, name in zip(drawings, ("one", "two"), strict=True):
        assert drawing.startswith("<svg viewBox=")
        assert "currentColor" in drawing
        assert "http" not in drawing
        ids = re.findall(r' id="([^"]*)"', drawing)
        assert len(set(ids)) == len(ids)
        assert all(result.startswith(f"{name}-") for result in ids)
        references = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', drawing)
        assert references
        assert {"".join(pair) for pair in references} <= set(ids)
