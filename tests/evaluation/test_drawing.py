import cv2
import numpy as np
import pytest

from kseg.evaluation import drawing

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
    colors = drawing.colorize(np.array([[0, 2], [255, 3]], dtype), PALETTE)
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors, [[[200, 0, 0], [10, 20, 30]], [[0, 0, 0], [0, 0, 0]]])


def test_overlay_mixes_and_keeps_ignored_pixels():
    image = np.full((1, 2, 3), 100, "uint8")
    labels = np.array([[1, 255]])
    mixed = drawing.overlay(image, labels, PALETTE, opacity=0.25)
    assert mixed.dtype == np.uint8
    np.testing.assert_array_equal(mixed, [[[75, 125, 75], [100, 100, 100]]])
    np.testing.assert_array_equal(drawing.overlay(image, labels, PALETTE, opacity=0), image)


def test_overlay_refuses():
    image = np.zeros((4, 5, 3), "uint8")
    with pytest.raises(ValueError, match=r"must have the same size. Received: .*\(5, 4\)"):
        drawing.overlay(image, np.zeros((5, 4), "uint8"), PALETTE)
    with pytest.raises(ValueError, match=r"in \[0, 1\]. Received: opacity=50"):
        drawing.overlay(image, np.zeros((4, 5), "uint8"), PALETTE, opacity=50)


def test_error_map_marks_exactly_the_wrong_pixels():
    image, truth, prediction = example()
    prediction[20, 30] = (truth[20, 30] + 1) % 3
    prediction[0, 0] = 2  # Ignored: neither right nor wrong.
    errors = drawing.error_map(image, truth, prediction, 3).astype(int)
    assert errors.shape == image.shape
    red = errors[..., 0] > errors[..., 1] + 50
    np.testing.assert_array_equal(np.argwhere(red), [[20, 30]])


@pytest.mark.parametrize("sizes", [[(30, 40)], [(30, 40), (50, 20), (7, 90)]])
def test_panel_has_a_row_for_each_image(sizes):
    rows = [example(*size) for size in sizes]
    picture = drawing.panel(rows, NAMES, PALETTE, width=64)
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
        drawing.panel([], NAMES, PALETTE)


def test_panel_of_an_ignored_image():
    image, truth, prediction = example()
    truth[:] = 255
    drawing.panel([(image, truth, prediction)], NAMES, PALETTE)


def test_legend_names_the_classes_that_occur_most():
    labels = np.repeat(np.arange(40), np.arange(40) + 1)[None]
    rows = [(np.zeros((*labels.shape, 3), "uint8"), labels, labels)]
    names = [f"class {i}" for i in range(150)]
    entries, left_out = drawing._legend_entries(rows, names, [[i, 0, 0] for i in range(150)])
    assert [name for name, _ in entries] == [*(f"class {i}" for i in range(39, 7, -1)), "ignored"]
    assert left_out == 8


@pytest.mark.parametrize("count", [1, 11, 60, 150])
def test_confusion_picture(count):
    matrix = np.diag(np.arange(count, 0, -1))
    matrix[0, -1] += 1
    picture = drawing.confusion_picture(matrix, [f"class {i}" for i in range(count)])
    assert picture.dtype == np.uint8
    assert picture.shape[0] == picture.shape[1] < 2000


def test_confusion_picture_darkens_with_the_share_of_the_row():
    matrix = np.array([[90, 10, 0], [0, 1000, 0], [0, 0, 0]])
    picture = drawing.confusion_picture(matrix, NAMES).astype(int)
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
    drawing.write_png(path, np.zeros(shape, "uint8"))
    drawing.write_png(path, picture)
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found[..., ::-1] if len(shape) == 3 else found, picture)
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_png_into_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        drawing.write_png(tmp_path / "file" / "picture.png", np.zeros((2, 2), "uint8"))


def test_difference_map_by_hand():
    image = np.full((1, 6, 3), 200, "uint8")
    truth = np.array([[0, 0, 0, 0, 0, 255]])
    first = np.array([[0, 1, 0, 1, 1, 1]])
    second = np.array([[0, 0, 1, 1, 2, 0]])
    found = drawing.difference_map(image, truth, first, second, 3)[0].tolist()
    gained, lost, both = (list(color) for _, color in drawing.DIFFERENCES)
    assert found[1:3] + found[4:5] == [gained, lost, both]
    assert found[0] == found[3] == [230, 230, 230]  # 150 + 0.4 * 200.
    assert found[5] in ([225] * 3, [190] * 3), "striped"
    with pytest.raises(ValueError, match="must have the same size"):
        drawing.difference_map(image, truth, first, second[:, :2], 3)


@pytest.mark.parametrize("runs", [2, 3])
def test_comparison_panel(runs):
    image, truth, prediction = example(60, 64)
    names = ["baseline", "a name that is far too long for one picture", "third"][:runs]
    rows = [(image, truth, [prediction, (prediction + 1) % 3, prediction][:runs])]
    picture = drawing.comparison_panel(rows, names, NAMES, PALETTE, width=64)
    columns = 3 + 2 * (runs - 1)
    assert picture.shape[1] == columns * 72 + 8

    def column(i):
        return picture[26 : 26 + 60, 8 + 72 * i : 72 + 72 * i]

    # Under the plate with the share of wrong pixels.
    np.testing.assert_array_equal(column(2)[20:], drawing.colorize(prediction, PALETTE)[20:])
    expected = drawing.difference_map(image, truth, prediction, (prediction + 1) % 3, 3)
    np.testing.assert_array_equal(column(4), expected)
    if runs == 3:
        grey = column(6).astype(int)
        assert (np.ptp(grey, axis=-1) == 0).all(), "equal predictions have no marks"


def test_comparison_panel_refuses():
    image, truth, prediction = example()
    with pytest.raises(ValueError, match=r"two runs. Received: 1 rows, run_names=\['a'\]"):
        drawing.comparison_panel([(image, truth, [prediction])], ["a"], NAMES, PALETTE)
    with pytest.raises(ValueError, match="must have the same size"):
        rows = [(image, truth, [prediction, prediction[:3]])]
        drawing.comparison_panel(rows, ["a", "b"], NAMES, PALETTE)


def test_heat_overlay():
    image = np.full((8, 12, 3), 100, "uint8")
    np.testing.assert_array_equal(drawing.heat_overlay(image, np.ones((2, 3)), opacity=0), image)
    heat = np.array([[0.0, 0.5, 1.0]])
    colors = drawing.heat_overlay(image, heat, opacity=1)[4].astype(int)
    assert colors[0, 2] > colors[0, 1] < 60, "cold is blue, or dark"
    assert colors[6, 1] == colors[6].max(), "the middle is green"
    assert colors[-1, 0] == colors[-1].max(), "hot is red"


def test_picture_grid():
    red, blue = (np.full((20, 40, 3), color, "uint8") for color in ((255, 0, 0), (0, 0, 255)))
    picture = drawing.picture_grid(["left", "right"], [[red, blue], [blue, red]], width=80)
    assert picture.shape == (26 + 2 * 48, 2 * 88 + 8, 3)
    np.testing.assert_array_equal(picture[26 + 48, 8], [0, 0, 255])
    np.testing.assert_array_equal(picture[26 + 48, 8 + 88], [255, 0, 0])


def test_shrink_never_enlarges():
    image, truth, _ = example(30, 40)
    small, (labels,) = drawing.shrink(image, [truth], width=20)
    assert small.shape == (15, 20, 3)
    np.testing.assert_array_equal(labels, truth[::2, ::2])
    assert drawing.shrink(image, width=400)[0].shape == image.shape


def test_enlarge():
    picture = np.array([[[0, 0, 0], [200, 100, 0]]], "uint8")
    large = drawing.enlarge(picture, (3, 8))
    assert large.shape == (3, 8, 3)
    np.testing.assert_array_equal(large[:, 0], 0)
    np.testing.assert_array_equal(large[:, -1], [[200, 100, 0]] * 3)
