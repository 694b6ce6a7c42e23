"""The meaning of mask values: one reading that fits, or an error. Each case uses `folder`."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import folder, masks
from pipelines.errors import DataError
from tests.pipelines.datasets.test_mask_files import png, saved
from tests.pipelines.tiny_data import all_labels, encode, write_pairs

BLACK_WHITE = "name,color\nground,#000000\nthing,#ffffff\n"
ZERO_ONE = "name,color,value\nground,#285a28,0\nthing,#c83c3c,1\n"
NO_COLORS = "name\nground\nthing\n"
ZERO_255 = "name,value\nground,0\nthing,255\n"
WITH_IGNORED = "name,value,ignore\nground,0,yes\nthing,1,\n"
THREE = "name,color\nground,#285a28\ndisc,#c83c3c\nbar,#3c3cdc\n"
THREE_VALUES = "name,color,value\nground,#285a28,0\ndisc,#c83c3c,1\nbar,#3c3cdc,2\n"
GREYS = "name,color\nlow,#000000\nmiddle,#808080\nhigh,#ffffff\n"
GROUND, DISC, BAR = (40, 90, 40), (200, 60, 60), (60, 60, 220)
TRUTH = np.uint8([[0, 0, 1, 1], [0, 1, 1, 0]])
TRUTH_3 = np.uint8([[0, 0, 1, 1], [0, 2, 2, 0]])


def stretched(truth, *values):
    return np.array(values, "uint8")[truth]


def with_palette(values, colors):
    picture = Image.new("P", values.shape[::-1])
    picture.putdata(values.reshape(-1).tolist())
    flat = np.zeros((256, 3), "uint8")
    flat[: len(colors)] = colors
    picture.putpalette(flat.reshape(-1).tolist())
    return saved(picture, "PNG")


def read(path, table, *contents, **options):
    """Prepares masks as the only images of a source; gives the notes and all labels."""
    pairs = {(f"images/{i:03d}.png", f"masks/{i:03d}.png"): c for i, c in enumerate(contents)}
    write_pairs(path, pairs, TRUTH.shape)
    (path / "classes.csv").write_text(table)
    found = folder.find(path, split={"train": 1}, **options)
    return found.notes, [labels.tolist() for labels in all_labels(found)["train"].values()]


def check(path, table, content, expected, note=None, **options):
    notes, (labels,) = read(path, table, content, **options)
    assert labels == np.asarray(expected).tolist()
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


@pytest.mark.parametrize("table", [BLACK_WHITE, ZERO_ONE, NO_COLORS, ZERO_255])
@pytest.mark.parametrize(
    "content",
    [
        encode(255 * TRUTH),
        png(TRUTH, 1),
        encode(np.dstack([255 * TRUTH] * 3)),
        encode(np.dstack([255 * TRUTH] * 3 + [np.full_like(TRUTH, 255)])),
        saved(Image.fromarray(TRUTH.astype(bool)), "TIFF"),
        saved(Image.fromarray(TRUTH.astype(bool)), "BMP"),
        with_palette(TRUTH, [(0, 0, 0), (255, 255, 255)]),
        png(65535 * TRUTH.astype("uint16"), 16),
        encode(TRUTH),
    ],
)  # fmt: skip
def test_binary_masks_just_work(tmp_path, table, content):
    _, (labels,) = read(tmp_path, table, content)
    assert labels == TRUTH.tolist()


def test_binary_masks_say_how_255_is_read(tmp_path):
    note = "The masks hold 0 and 255: 255 is read as 'thing'"
    check(tmp_path / "a", ZERO_ONE, encode(255 * TRUTH), TRUTH, note)
    check(tmp_path / "b", BLACK_WHITE, encode(255 * TRUTH), TRUTH)
    check(tmp_path / "c", ZERO_255, encode(255 * TRUTH), TRUTH)
    wanted = np.where(TRUTH, 0, 255)
    check(tmp_path / "d", WITH_IGNORED, encode(255 * TRUTH), wanted, note)


def test_255_is_ignored_where_it_is_said(tmp_path):
    wanted = np.where(TRUTH, 255, 0)
    check(tmp_path, ZERO_ONE, encode(255 * TRUTH), wanted, masks="index")


def test_255_beside_both_classes_is_ignored(tmp_path):
    values = np.uint8([[0, 1, 255, 255], [0, 1, 1, 0]])
    check(tmp_path, ZERO_ONE, encode(values), values)


@pytest.mark.parametrize(
    "table, values",
    [
        ("name,color\nthing,#ffffff\nground,#000000\n", {"colors": 1 - TRUTH}),
        ("name,color,value\nthing,#ffffff,0\nground,#000000,1\n", {"colors": 1 - TRUTH}),
    ],
)
def test_black_and_white_in_the_other_order(tmp_path, table, values):
    """By colour 255 is the first row, by number the second."""
    with pytest.raises(DataError, match=r"Two readings of the masks fit .* by black and white, "):
        read(tmp_path, table, encode(255 * TRUTH))
    for option, expected in values.items():
        check(tmp_path, table, encode(255 * TRUTH), expected, masks=option)


def test_black_that_jpeg_made_1(tmp_path):
    """By number 1 would be the object, and the object be ignored."""
    with pytest.raises(DataError, match=r"hold 1, 255 only, .* Two readings fit: 255 is a class"):
        read(tmp_path, ZERO_ONE, encode(np.where(TRUTH, 255, 1).astype("uint8")))


@pytest.mark.parametrize("table", [THREE, "name\nthing\n", "name,value\na,0\nb,2\n"])
def test_0_and_255_with_another_number_of_classes(tmp_path, table):
    with pytest.raises(DataError, match=r"0, 255 only, and no row of .*the value 255\. Two read"):
        read(tmp_path, table, encode(255 * TRUTH))
    check(tmp_path, table, encode(255 * TRUTH), np.where(TRUTH, 255, 0), masks="index")


def test_nothing_but_255(tmp_path):
    for table in (ZERO_ONE, THREE, NO_COLORS):
        with pytest.raises(DataError, match=r"255 only, .* Two readings fit: 255 is a class"):
            read(tmp_path, table, encode(np.full_like(TRUTH, 255)))


def test_two_kinds_of_binary_masks(tmp_path):
    mixed = encode(TRUTH), encode(255 * TRUTH)
    with pytest.raises(DataError, match="some hold 0 and 1, others 0 and 255, none both"):
        read(tmp_path, ZERO_ONE, *mixed)
    _, labels = read(tmp_path, ZERO_ONE, *mixed, masks="index")
    assert labels == [TRUTH.tolist(), np.where(TRUTH, 255, 0).tolist()]
    both = encode(np.uint8([[0, 1, 255, 1], [0, 1, 1, 0]]))
    read(tmp_path, ZERO_ONE, *mixed, both)  # Here 255 is ignored beyond doubt.


def blurred(truth, form="PNG"):
    """Black and white, large enough for what JPEG does at edges."""
    picture = Image.fromarray(np.kron(255 * truth, np.ones((15, 15), "uint8")))
    picture = Image.open(io.BytesIO(saved(picture, "JPEG", quality=70)))
    return saved(picture, form) if form == "PNG" else saved(picture, "JPEG", quality=70)


@pytest.mark.parametrize("table", [ZERO_ONE, NO_COLORS, BLACK_WHITE, ZERO_255])
def test_black_and_white_from_jpeg(tmp_path, table):
    large = np.kron(TRUTH, np.ones((15, 15), "uint8"))
    write_pairs(tmp_path, {("images/0.png", "masks/0.png"): large})
    (tmp_path / "masks/0.png").write_bytes(blurred(TRUTH))
    (tmp_path / "classes.csv").write_text(table)
    with pytest.raises(DataError, match=r"black and white, but blurred: 0, .* `masks=\"binary\"`"):
        folder.find(tmp_path, split={"train": 1})
    found = folder.find(tmp_path, split={"train": 1}, masks="binary")
    np.testing.assert_array_equal(all_labels(found)["train"]["0"], large)
    (tmp_path / "masks/0.png").unlink()
    (tmp_path / "masks/0.jpg").write_bytes(blurred(TRUTH, "JPEG"))
    with pytest.raises(DataError, match=r"JPEG changes their values; .* there is `masks=.binary"):
        folder.find(tmp_path, split={"train": 1})
    found = folder.find(tmp_path, split={"train": 1}, masks="binary")
    np.testing.assert_array_equal(all_labels(found)["train"]["0"], large)


def test_binary_needs_two_rows(tmp_path):
    with pytest.raises(DataError, match=r"needs a class table of two rows, .* has 3"):
        read(tmp_path, THREE, encode(255 * TRUTH), masks="binary")


@pytest.mark.parametrize("table", [THREE, THREE_VALUES, "name\na\nb\nc\n"])
@pytest.mark.parametrize(
    "content",
    [
        encode(TRUTH_3),
        png(TRUTH_3, 2),
        png(TRUTH_3, 4),
        png(TRUTH_3, 16),
        encode(np.dstack([TRUTH_3] * 3)),
        encode(np.dstack([TRUTH_3] * 3 + [np.full_like(TRUTH_3, 255)])),
        png(np.dstack([TRUTH_3, np.full_like(TRUTH_3, 255)]), 8, 4),
        with_palette(TRUTH_3, [GROUND, DISC, BAR]),
        with_palette(TRUTH_3, [(9, 9, 8), (1, 2, 3), (4, 5, 6)]),
        with_palette(TRUTH_3, [(i, i, i) for i in range(256)]),
    ],
)
def test_numbers(tmp_path, table, content):
    check(tmp_path, table, content, TRUTH_3)


@pytest.mark.parametrize("table", [THREE, THREE_VALUES])
def test_a_palette_in_another_order(tmp_path, table):
    content = with_palette(TRUTH_3, [GROUND, BAR, DISC])
    with pytest.raises(DataError, match=r"the value 1 is 'disc', .* #3c3cdc, is that of 'bar'\. C"):
        read(tmp_path, table, content)
    check(tmp_path, table, content, TRUTH_3, masks="index")
    check(tmp_path, table, content, np.uint8([0, 2, 1])[TRUTH_3], masks="colors")


def test_a_palette_in_another_order_after_many_masks(tmp_path):
    """The first few masks settle the reading; each other one is still checked as it is read."""
    good = with_palette(TRUTH_3, [(9, 9, 8), (1, 2, 3), (4, 5, 6)])
    bad = with_palette(TRUTH_3, [GROUND, BAR, DISC])
    contents = [good] * (2 * masks._SAMPLE) + [bad]
    with pytest.raises(DataError, match=r"032.png: the value 1 has the color #3c3cdc in the pal"):
        read(tmp_path, THREE, *contents)


def test_a_palette_of_the_tables_colours_and_other_numbers(tmp_path):
    """Only the colours fit."""
    colors = np.zeros((10, 3), "uint8")
    colors[[4, 7, 9]] = GROUND, DISC, BAR
    content = with_palette(stretched(TRUTH_3, 4, 7, 9), colors)
    check(tmp_path, THREE, content, TRUTH_3, "read by their colors: 4 is 'ground', 7 is 'disc'")


def test_shades_of_grey_as_colours(tmp_path):
    content = encode(stretched(TRUTH_3, 0, 128, 255))
    check(tmp_path, GREYS, content, TRUTH_3, "read by their colors: 0 is 'low', 128 is 'middle'")


def test_the_ignored_colour_of_a_palette(tmp_path):
    """PASCAL VOC's form: 255 is pale, and in no table."""
    colors = np.zeros((256, 3), "uint8")
    colors[[0, 1, 2, 255]] = GROUND, DISC, BAR, (224, 224, 192)
    values = np.where(TRUTH_3 == 2, 255, TRUTH_3).astype("uint8")
    check(tmp_path, THREE, with_palette(values, colors), values)
    colors[[1, 2]] = BAR, DISC
    with pytest.raises(DataError, match="is that of 'bar'"):
        read(tmp_path, THREE, with_palette(values, colors))


COLORED = np.uint8([GROUND, DISC, BAR])[TRUTH_3]


@pytest.mark.parametrize("table", [THREE, THREE_VALUES])
def test_colours(tmp_path, table):
    check(tmp_path / "a", table, encode(COLORED), TRUTH_3)
    opaque = np.dstack([COLORED, np.full_like(TRUTH, 200)])
    check(tmp_path / "b", table, encode(opaque), TRUTH_3)
    palette = with_palette(TRUTH_3, [GROUND, DISC, BAR])
    _, labels = read(tmp_path / "c", table, palette, encode(COLORED))
    assert labels == 2 * [TRUTH_3.tolist()]


def test_smoothed_colours(tmp_path):
    smooth = COLORED.copy()
    smooth[0, 1] = (np.uint16(GROUND) + DISC) // 2
    with pytest.raises(DataError, match=r"found #784b32 \(1 pixels\), 12 % of the mask\. Col"):
        read(tmp_path, THREE, encode(smooth))
    wanted = TRUTH_3.copy()
    wanted[0, 1] = 255
    check(tmp_path, THREE, encode(smooth), wanted, unknown="ignore")


def test_numbers_and_colours_mixed(tmp_path):
    mixed = encode(TRUTH_3), encode(COLORED)
    with pytest.raises(DataError, match=r"001.png: masks must be of one kind, but this has color"):
        read(tmp_path, THREE, *mixed)
    many = [encode(TRUTH_3)] * (2 * masks._SAMPLE) + [encode(COLORED)]
    with pytest.raises(DataError, match=r"032.png: a label must have one channel, .* has colors"):
        read(tmp_path, THREE, *many)


@pytest.mark.parametrize(
    "table, values, hint",
    [
        (THREE, TRUTH_3 + 1, r"found 3 .* hold 1, 2, 3: they seem to count from 1, the rows"),
        (NO_COLORS, TRUTH + 1, r"found 2 .* hold 1, 2: they seem to count from 1"),
        (THREE, stretched(TRUTH_3, 0, 127, 254), r"found .* Give the table a column `value`"),
        (THREE, stretched(TRUTH_3, 0, 85, 170), r"found 85 .* column `value` that says which"),
        ("name,value\na,1\nb,2\n", TRUTH_3, r"found 0 .* what nobody labeled, .* row for it"),
        (ZERO_ONE, stretched(TRUTH_3, 0, 1, 254), r"found 254 .* ignored needs a row with ignore"),
        (THREE_VALUES, TRUTH_3 + 7, r"found .* hold 7, 8, 9\. Give each a row"),
        (THREE, 20000 * TRUTH_3.astype("uint16"), r"found 20000 \(2 pixels\), 40000 \(2 pixels\)"),
    ],
)
def test_values_outside_the_table(tmp_path, table, values, hint):
    with pytest.raises(DataError, match=hint):
        read(tmp_path, table, encode(values))


def test_values_outside_the_table_are_ignored_where_it_is_said(tmp_path):
    values = np.uint8([[0, 1, 2, 254], [9, 200, 255, 0]])
    wanted = [[0, 1, 2, 255], [255, 255, 255, 0]]
    check(tmp_path, THREE, encode(values), wanted, unknown="ignore")


def test_only_one_class(tmp_path):
    check(tmp_path / "a", ZERO_ONE, encode(np.zeros_like(TRUTH)), np.zeros_like(TRUTH))
    check(tmp_path / "b", ZERO_ONE, encode(np.ones_like(TRUTH)), np.ones_like(TRUTH))


def test_masks_that_cannot_be_read(tmp_path):
    """One is named when it is prepared; where none can be read, at once."""
    with pytest.raises(
        DataError, match=r"001.png: the label cannot be decoded: a mask must be .*else$"
    ):
        read(tmp_path, THREE, encode(TRUTH_3), b"nonsense")
    gif = saved(Image.fromarray(TRUTH_3), "GIF")
    with pytest.raises(DataError, match=r"000.png: .* is a GIF file \(none of the first 3"):
        read(tmp_path, THREE, gif, gif, gif)


def test_all_masks_are_looked_at_where_the_first_leave_it_open(tmp_path):
    """Many masks of 0 and 255 before the one that tells that 255 is ignored."""
    values = np.uint8([[0, 1, 255, 1], [0, 0, 0, 0]])
    contents = [encode(255 * TRUTH)] * (3 * masks._SAMPLE + 1) + [encode(values)]
    notes, labels = read(tmp_path, ZERO_ONE, *contents)
    assert notes == []
    assert labels[:2] == 2 * [np.where(TRUTH, 255, 0).tolist()]
