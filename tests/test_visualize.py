import cv2
import numpy as np
import pytest

from kseg import visualize

PALETTE = [[200, 0, 0], [0, 200, 0], [10, 20, 30]]
NAMES = ["road", "sky", "car"]


def example(height=30, width=40):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3)).astype("uint8")
    truth = rng.integers(0, 3, (height, width)).astype("uint8")
    truth[: height // 2, : width // 2] = 255
    return image, truth, np.where(truth == 255, 0, truth).astype("uint8")


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_colorize(dtype):
    colors = visualize.colorize(np.array([[0, 2], [255, 3]], dtype), PALETTE)
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors, [[[200, 0, 0], [10, 20, 30]], [[0, 0, 0], [0, 0, 0]]])


def test_overlay_mixes_and_keeps_ignored_pixels():
    image = np.full((1, 2, 3), 100, "uint8")
    labels = np.array([[1, 255]])
    mixed = visualize.overlay(image, labels, PALETTE, opacity=0.25)
    assert mixed.dtype == np.uint8
    np.testing.assert_array_equal(mixed, [[[75, 125, 75], [100, 100, 100]]])
    np.testing.assert_array_equal(visualize.overlay(image, labels, PALETTE, opacity=0), image)


def test_overlay_refuses():
    image = np.zeros((4, 5, 3), "uint8")
    with pytest.raises(ValueError, match=r"must have the same size. Received: .*\(5, 4\)"):
        visualize.overlay(image, np.zeros((5, 4), "uint8"), PALETTE)
    with pytest.raises(ValueError, match=r"in \[0, 1\]. Received: opacity=50"):
        visualize.overlay(image, np.zeros((4, 5), "uint8"), PALETTE, opacity=50)


def test_error_map_marks_exactly_the_wrong_pixels():
    image, truth, prediction = example()
    prediction[20, 30] = (truth[20, 30] + 1) % 3
    prediction[0, 0] = 2  # Ignored: neither right nor wrong.
    errors = visualize.error_map(image, truth, prediction, 3).astype(int)
    assert errors.shape == image.shape
    red = errors[..., 0] > errors[..., 1] + 50
    np.testing.assert_array_equal(np.argwhere(red), [[20, 30]])


@pytest.mark.parametrize("sizes", [[(30, 40)], [(30, 40), (50, 20), (7, 90)]])
def test_panel_has_a_row_for_each_image(sizes):
    rows = [example(*size) for size in sizes]
    picture = visualize.panel(rows, NAMES, PALETTE, width=64)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 4 * (64 + 8) + 8
    assert picture.shape[0] > sum(round(64 * height / width) for height, width in sizes)
    # Title strip of 26, then image, truth and prediction at their places.
    height = round(64 * sizes[0][0] / sizes[0][1])
    prediction = picture[26 : 26 + height, 8 + 2 * 72 : 8 + 2 * 72 + 64]
    found = {tuple(color) for color in prediction.reshape(-1, 3).tolist()}
    assert found == {tuple(color) for color in PALETTE}


def test_panel_without_rows():
    with pytest.raises(ValueError, match="at least one row"):
        visualize.panel([], NAMES, PALETTE)


def test_panel_of_an_ignored_image():
    image, truth, prediction = example()
    truth[:] = 255
    visualize.panel([(image, truth, prediction)], NAMES, PALETTE)


def test_legend_names_the_classes_that_occur_most():
    labels = np.repeat(np.arange(40), np.arange(40) + 1)[None]
    rows = [(np.zeros((*labels.shape, 3), "uint8"), labels, labels)]
    names = [f"class {i}" for i in range(150)]
    entries, left_out = visualize._legend_entries(rows, names, [[i, 0, 0] for i in range(150)])
    assert [name for name, _ in entries] == [*(f"class {i}" for i in range(39, 7, -1)), "ignored"]
    assert left_out == 8


@pytest.mark.parametrize("count", [1, 11, 60, 150])
def test_confusion_picture(count):
    matrix = np.diag(np.arange(count, 0, -1))
    matrix[0, -1] += 1
    picture = visualize.confusion_picture(matrix, [f"class {i}" for i in range(count)])
    assert picture.dtype == np.uint8
    assert picture.shape[0] == picture.shape[1] < 2000


def test_confusion_picture_darkens_with_the_share_of_the_row():
    matrix = np.array([[90, 10, 0], [0, 1000, 0], [0, 0, 0]])
    picture = visualize.confusion_picture(matrix, NAMES).astype(int)
    side = 36
    start = picture.shape[0] - 8 - 3 * side

    def cell(i, j):
        # The upper left part of a cell, beside its number.
        y, x = start + i * side + 4, start + j * side + 4
        return picture[y : y + 4, x : x + 4].mean()

    assert cell(1, 1) < cell(0, 0) < cell(0, 1) < cell(0, 2) == 255
    assert cell(2, 2) != 255, "a class without pixels is striped"


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_png_round_trip(tmp_path, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    path = tmp_path / "new folder" / "picture.png"
    visualize.write_png(path, np.zeros(shape, "uint8"))
    visualize.write_png(path, picture)
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found[..., ::-1] if len(shape) == 3 else found, picture)
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_png_into_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        visualize.write_png(tmp_path / "file" / "picture.png", np.zeros((2, 2), "uint8"))
