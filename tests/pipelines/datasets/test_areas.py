import base64
import itertools
import zlib

import numpy as np
import pytest

from pipelines.datasets.areas import (
    Bitmap,
    BrushRuns,
    ColumnRuns,
    Figure,
    Polygons,
    RowRuns,
    as_ring,
    rasterize,
)
from pipelines.errors import DataError
from tests.pipelines.tiny_data import encode

SIZE = (12, 16)


def whole(area, size=SIZE):
    """The mask of an area, in the whole image."""
    return rasterize([(1, area)], size, unlabeled=0, overlap="later")


def square(top, left, bottom, right, size=SIZE):
    expected = np.zeros(size, "uint8")
    expected[top:bottom, left:right] = 1
    return expected


def polygon(*numbers, rule="crossings", **arguments):
    return Polygons((as_ring(numbers),), rule, **arguments)


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("crossings", square(3, 2, 8, 9)),  # Pixel i spans i to i + 1.
        ("outline", square(3, 2, 9, 10)),  # Pixel i lies at i, and edges belong to the area.
        ("filled", square(3, 2, 9, 10)),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_rectangle_by_each_rule(rule, expected, turned):
    points = [(2, 3), (9, 3), (9, 8), (2, 8)]
    points = points[::-1] if turned else points
    np.testing.assert_array_equal(whole(polygon(*itertools.chain(*points), rule=rule)), expected)


@pytest.mark.parametrize("rule", ["crossings", "outline", "filled"])
def test_polygons_are_cut_at_the_border(rule):
    area = polygon(-5, -7, 40, -7, 40, 50, -5, 50, rule=rule)
    np.testing.assert_array_equal(whole(area), np.ones(SIZE))
    np.testing.assert_array_equal(whole(polygon(20, 20, 30, 20, 30, 30, rule=rule)), np.zeros(SIZE))


def test_pixels_whose_centers_are_inside():
    """Away from its edges a polygon holds the pixels whose centers it holds: even-odd rule."""
    rng = np.random.default_rng(0)
    size = (40, 50)
    for _ in range(20):
        ring = rng.uniform((-4, -4), (54, 44), (6, 2))
        drawn = whole(Polygons((ring,), "crossings"), size)
        for row, column in itertools.product(range(0, 40, 3), range(0, 50, 3)):
            x, y = column + 0.5, row + 0.5
            inside, near = False, False
            for (ax, ay), (bx, by) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
                    inside = not inside
                part = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)), 0, None)
                part = min(1, part / ((bx - ax) ** 2 + (by - ay) ** 2))
                distance = np.hypot(x - ax - part * (bx - ax), y - ay - part * (by - ay))
                near = near or distance < 0.5
            if not near:
                assert drawn[row, column] == inside, (ring, row, column)


def test_parts_are_joined_and_holes_are_cut():
    parts = Polygons(
        (as_ring([0, 0, 6, 0, 6, 6, 0, 6]), as_ring([3, 3, 9, 3, 9, 9, 3, 9])), "crossings"
    )
    expected = square(0, 0, 6, 6) | square(3, 3, 9, 9)
    np.testing.assert_array_equal(whole(parts), expected)
    holed = polygon(
        1, 1, 10, 1, 10, 10, 1, 10, rule="filled", holes=(as_ring([3, 3, 6, 3, 6, 6, 3, 6]),)
    )
    np.testing.assert_array_equal(whole(holed), square(1, 1, 11, 11) - square(3, 3, 7, 7))


def test_relative_coordinates():
    area = polygon(0.25, 0.25, 0.75, 0.25, 0.75, 0.5, 0.25, 0.5, rule="filled", relative=True)
    np.testing.assert_array_equal(whole(area), square(3, 4, 7, 13))


def test_figures():
    corners = Figure("rectangle", np.float64([[9, 8], [2, 3]]))
    np.testing.assert_array_equal(whole(corners), square(3, 2, 9, 10))
    circle = whole(Figure("circle", np.float64([[8, 6], [8, 2]])))
    y, x = np.mgrid[:12, :16]
    distance = np.hypot(x - 8, y - 6)
    assert circle[distance < 3.5].all() and not circle[distance > 4.8].any()
    line = whole(Figure("line", np.float64([[0, 6], [15, 6]])))
    assert line.all(axis=1).sum() in (10, 11)  # Pixels across, as in labelme's masks.
    point = whole(Figure("point", np.float64([[8, 6]])))
    assert point[distance < 4.5].all() and not point[distance > 5.8].any()


def test_runs_by_columns_and_by_rows():
    # The columns 2 and 3, from row 4 to 5, of 12 rows: 28 without, 2 with, 10 without, 2 with.
    counts = np.array([28, 2, 10, 2, 192 - 42])
    np.testing.assert_array_equal(whole(ColumnRuns(counts, SIZE)), square(4, 2, 6, 4))
    # The same, compressed by hand: from the fourth number on, differences to that two before.
    text = "".join(map(_compress, [28, 2, 10, 2 - 2, 150 - 10]))
    np.testing.assert_array_equal(whole(ColumnRuns(text, SIZE)), square(4, 2, 6, 4))
    part = RowRuns(np.array([1, 2, 1, 2]), 4, 2, 2, 3)  # .## / .##
    np.testing.assert_array_equal(whole(part), square(4, 3, 6, 5))
    outside = RowRuns(np.array([0, 6]), -1, 14, 2, 3)
    np.testing.assert_array_equal(whole(outside), square(0, 14, 1, 16))


def _compress(number):
    text = ""
    while True:
        group, number = number & 31, number >> 5
        done = number == (-1 if group & 16 else 0)
        text += chr(48 + group + (0 if done else 32))
        if done:
            return text


def test_bitmaps():
    picture = np.zeros((3, 4), "uint8")
    picture[1:, 2:] = 1
    plain = base64.b64encode(encode(picture)).decode()
    packed = base64.b64encode(zlib.compress(encode(picture * 255))).decode()
    opaque = np.full((3, 4, 4), 255, "uint8")
    opaque[..., 3] = picture * 255
    opaque = base64.b64encode(zlib.compress(encode(opaque))).decode()
    for content in (plain, packed, opaque):
        np.testing.assert_array_equal(whole(Bitmap(content, 5, 6)), square(6, 8, 8, 10))
    np.testing.assert_array_equal(whole(Bitmap(plain, 10, 13)), square(11, 15, 12, 16))


def test_brush_runs():
    """A brush of 2 x 3 pixels: two transparent, then four opaque ones, packed by hand."""
    bits = f"{24:032b}" + f"{7:05b}" + "".join(f"{n:04b}" for n in (2, 3, 7, 15))
    bits += "1" + "01" + f"{7:04b}" + f"{0:08b}"  # 8 bytes of 0: two pixels.
    bits += "0" + "00" + f"{7:03b}" + 2 * ("00000000" * 3 + "11111111")  # 8 bytes, one by one.
    bits += "1" + "10" + f"{7:08b}" + f"{255:08b}"
    bits += "0" * (-len(bits) % 8)
    content = int(bits, 2).to_bytes(len(bits) // 8, "big")
    drawn = whole(BrushRuns(content, (2, 3)), (2, 3))
    np.testing.assert_array_equal(drawn, [[0, 0, 1], [1, 1, 1]])
    for damaged in (content[:-2], content[:5]):
        with pytest.raises(DataError, match="the run lengths of a brush are truncated"):
            whole(BrushRuns(damaged, (2, 3)), (2, 3))


@pytest.mark.parametrize("overlap, label", [("later", 1), ("smaller", 2)])
def test_overlaps(overlap, label):
    small, large = polygon(4, 4, 6, 4, 6, 6, 4, 6), polygon(0, 0, 10, 0, 10, 10, 0, 10)
    values = rasterize([(2, small), (1, large)], SIZE, unlabeled=255, overlap=overlap)
    expected = np.where(square(0, 0, 10, 10), 1, 255)
    expected[4:6, 4:6] = label
    np.testing.assert_array_equal(values, expected)
    again = rasterize([(2, large), (1, large)], SIZE, unlabeled=0, overlap=overlap)
    assert set(again.ravel()) == {0, 1}  # Of equal ones the later.


@pytest.mark.parametrize(
    "numbers, message",
    [
        ([1, 2, 3, 4], "a polygon must have three points or more, and has 2 points"),
        ([1, 2], "and has 1 point$"),
        ([1, 2, 3, 4, 5], "a polygon must be x and y in turn, and has 5 numbers"),
        ([1, 2, 3, 4, 5, float("nan")], "a polygon must have finite coordinates"),
        (["a", 2, 3, 4, 5, 6], "a polygon must be a list of numbers"),
    ],
)
def test_mistakes_in_points(numbers, message):
    with pytest.raises(DataError, match=message):
        as_ring(numbers)


@pytest.mark.parametrize(
    "area, message",
    [
        (ColumnRuns(np.array([3, 4]), SIZE), "run lengths must fill 12x16 pixels, not 7"),
        (ColumnRuns(np.array([16]), (4, 4)), "of another image size"),
        (RowRuns(np.array([3]), 0, 0, 2, 2), "run lengths must fill 2x2 pixels"),
        (Bitmap("?", 0, 0), "a bitmap must be the base64 text of a PNG"),
        (Bitmap(base64.b64encode(zlib.compress(b"no")).decode(), 0, 0), "a bitmap holds no PNG"),
        (BrushRuns(bytes(9), (2, 3)), "another image size"),
    ],
)
def test_mistakes_in_areas(area, message):
    with pytest.raises(DataError, match=message):
        whole(area)


def packed(content):
    return base64.b64encode(zlib.compress(content)).decode()


@pytest.mark.parametrize(
    "area, message",
    [
        (Bitmap("", 0, 0), "a bitmap holds no PNG"),
        (Bitmap(packed(b""), 0, 0), "a bitmap holds no PNG"),
        (Bitmap(packed(encode(np.ones((3, 4), "uint8"))[:-20]), 0, 0), "bitmap cannot be decoded"),
        # More than the limit: 16 (4 * 192 + 65536) bytes.
        (Bitmap(packed(encode(np.ones((3, 4), "uint8"))[:33] + bytes(1 << 22)), 0, 0), "a bitmap"),
        (RowRuns(np.array([3, 3]), 0, 0, -2, -3), "section of -2x-3 pixels must not be empty"),
        (RowRuns(np.array([0, 10**12]), 0, 0, 10**6, 10**6), "much larger than its image of 12x16"),
        (ColumnRuns(np.array([2**62] * 4), SIZE), f"must fill 12x16 pixels, not {2**64}"),
        (ColumnRuns("o" * 1000, SIZE), "run lengths are damaged at the character 'o'"),
        (ColumnRuns("\0", SIZE), "run lengths are damaged at the character"),
        (BrushRuns(b"\xff" * 40, SIZE), "a brush must fill 12x16 pixels of 4 channels"),
        (polygon(0, 0, 1e7, 0, 0, 1e7), "must be in or near the image of 12x16 pixels, not beyond"),
        (polygon(0, 0, 1e7, 0, 0, 1e7, rule="outline"), "in or near the image of 12x16 pixels"),
        (polygon(0, 0, 1e7, 0, 0, 1e7, rule="filled"), "in or near the image of 12x16 pixels"),
        (Figure("circle", np.float64([[0, 0], [1e7, 0]])), "in or near the image of 12x16 pixels"),
        # 1000 edges of 400 pixels: more than 192 + 64 * 28.
        (polygon(*[0, 0, 400, 0] * 500), "an outline must be shorter than 1984 pixels"),
    ],
)
def test_areas_that_would_exhaust_memory(area, message):
    with pytest.raises(DataError, match=message):
        whole(area)


def test_areas_below_all_others():
    small, large = polygon(4, 4, 6, 4, 6, 6, 4, 6), polygon(0, 0, 10, 0, 10, 10, 0, 10)
    areas = [(2, small), (1, large)]
    values = rasterize(areas, SIZE, unlabeled=0, overlap="smaller", below=1)
    np.testing.assert_array_equal(values, square(0, 0, 10, 10))
    values = rasterize(areas[::-1], SIZE, unlabeled=0, overlap="smaller", below=2)
    assert (values == 2).sum() == 4  # Among themselves as ever.
