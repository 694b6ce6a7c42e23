"""Visualizations of labels, predictions and scores, drawn with OpenCV.

Colors are RGB, images uint8. Labels outside the palette, such as 255, mark ignored pixels.
"""

import cv2
import numpy as np

from kseg import display, files

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _PAPER, _FRAME = (35, 35, 40), (255, 255, 255), (150, 150, 150)
_WRONG, _GAINED, _OTHER = (230, 30, 50), (20, 150, 80), (235, 165, 20)
_HATCH = (225, 225, 225), (190, 190, 190)  # Stripes mark ignored pixels; no class is striped.
_FULL = (8, 48, 107)  # The color of 100 % in a confusion matrix.
_GAP = 8
_MAX_LEGEND = 32
_MAX_NAME = 260  # Maximum width of a class name beside a confusion matrix, pixels.

# Legend of `difference_map`.
DIFFERENCES = [
    ("right, first run wrong", _GAINED),
    ("wrong, first run right", _WRONG),
    ("both wrong, not alike", _OTHER),
]


def colorize(labels, palette):
    """Colors labels.

    Args:
        labels: int array, any shape; ignored pixels become black.
        palette: list of `[red, green, blue]`, at most 255.

    Returns:
        uint8 array of shape `(*labels.shape, 3)`.
    """
    labels = np.asarray(labels)
    colors = np.concatenate(
        [np.asarray(palette, "uint8").reshape(-1, 3), np.zeros((1, 3), "uint8")]
    )
    return colors[np.where(_known(labels, palette), labels, len(palette))]


def overlay(image, labels, palette, opacity=0.5):
    """Blends the colors of labels into an image; ignored pixels are unchanged.

    Args:
        image: uint8 array `(height, width, 3)`.
        labels: int array `(height, width)`.
        palette: list of `[red, green, blue]`.
        opacity: float in [0, 1]: 0 shows the image, 1 the colors.

    Returns:
        uint8 array `(height, width, 3)`.

    Raises:
        ValueError: if the sizes differ or `opacity` is out of range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be in [0, 1]. Received: {opacity=}")
    _check_sizes(image=image, labels=labels)
    mixed = cv2.addWeighted(
        np.ascontiguousarray(image), 1 - opacity, colorize(labels, palette), opacity, 0
    )
    return np.where(_known(labels, palette)[..., None], mixed, image)


def error_map(image, truth, prediction, num_classes):
    """Marks the wrong pixels on a pale gray copy of the image; ignored pixels are striped.

    Args:
        image: uint8 array `(height, width, 3)`.
        truth: int array `(height, width)`.
        prediction: int array `(height, width)`.
        num_classes: int.

    Returns:
        uint8 array `(height, width, 3)`.

    Raises:
        ValueError: if the sizes differ.
    """
    _check_sizes(image=image, truth=truth, prediction=prediction)
    picture = _pale(image)
    picture[truth != prediction] = _WRONG
    return _hatch(picture, ~_known(truth, range(num_classes)))


def difference_map(image, truth, first, second, num_classes):
    """Marks where two predictions differ, on a pale gray copy of the image.

    Green: only the second is right; red: only the first is right; amber: both are wrong, but
    differ. Ignored pixels are striped.

    Args:
        image: uint8 array `(height, width, 3)`.
        truth: int array `(height, width)`.
        first: int array `(height, width)`.
        second: int array `(height, width)`.
        num_classes: int.

    Returns:
        uint8 array `(height, width, 3)`.

    Raises:
        ValueError: if the sizes differ.
    """
    _check_sizes(image=image, truth=truth, first=first, second=second)
    picture = _pale(image)
    differs = first != second
    picture[differs] = _OTHER
    picture[differs & (second == truth)] = _GAINED
    picture[differs & (first == truth)] = _WRONG
    return _hatch(picture, ~_known(truth, range(num_classes)))


def heat_overlay(image, heat, opacity=0.6):
    """Blends a heat map into an image.

    Args:
        image: uint8 array `(height, width, 3)`.
        heat: float array `(h, w)` in [0, 1], resized bilinearly to the size of the image.
        opacity: float in [0, 1].

    Returns:
        uint8 array `(height, width, 3)`.
    """
    height, width = image.shape[:2]
    heat = cv2.resize(np.asarray(heat, "float32"), (width, height), interpolation=cv2.INTER_LINEAR)
    levels = (255 * np.clip(heat, 0, 1)).round().astype("uint8")
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1]
    return cv2.addWeighted(
        np.ascontiguousarray(image), 1 - opacity, np.ascontiguousarray(colors), opacity, 0
    )


def enlarge(picture, size):
    """Resizes a picture bilinearly.

    Args:
        picture: uint8 array `(h, w, 3)`.
        size: `(height, width)`.

    Returns:
        uint8 array `(height, width, 3)`.
    """
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)


def colorize_truth(truth, palette):
    """Colors labels as a uint8 array of shape `(*truth.shape, 3)`; ignored pixels are striped."""
    return _hatch(colorize(truth, palette), ~_known(truth, palette))


def panel(rows, class_names, palette, *, width=320):
    """Draws image, truth, prediction and errors side by side, one row per image, with a legend.

    The corner of each error map shows the fraction of wrong pixels. The legend names the classes
    that occur in these rows; if there are too many, the most frequent come first.

    Args:
        rows: list of `(image, truth, prediction)`: uint8 `(height, width, 3)`, int `(height,
            width)`, int `(height, width)`.
        class_names: list of str.
        palette: list of `[red, green, blue]`, one for each class name.
        width: int, width of each picture in pixels.

    Returns:
        uint8 array `(panel_height, 4 * (width + 8) + 8, 3)`.

    Raises:
        ValueError: if there are no rows, or the sizes in one differ.
    """
    if not rows:
        raise ValueError("A panel needs at least one row. Received: none")
    pictures = []
    for image, truth, prediction in rows:
        _check_sizes(image=image, truth=truth, prediction=prediction)
        wrong = _share_wrong(truth, prediction, palette)
        image, (truth, prediction) = _fit(image, (truth, prediction), width)
        errors = error_map(image, truth, prediction, len(palette))
        _tag(errors, wrong)
        pictures.append(
            [image, colorize_truth(truth, palette), colorize(prediction, palette), errors]
        )
    titles = ["image", "truth", "prediction", "errors"]
    return _grid(titles, pictures, _legend_entries(rows, class_names, palette), width)


def comparison_panel(rows, run_names, class_names, palette, *, width=320):
    """Draws image, truth, and the predictions of several runs side by side, one row per image.

    Each run after the first is followed by its differences from the first, see `difference_map`.
    The corner of each prediction shows the fraction of wrong pixels.

    Args:
        rows: list of `(image, truth, predictions)`: uint8 `(height, width, 3)`, int
            `(height, width)`, and for each run int `(height, width)`.
        run_names: list of str.
        class_names: list of str.
        palette: list of `[red, green, blue]`, one for each class name.
        width: int, width of each picture in pixels.

    Returns:
        uint8 array `(panel_height, panel_width, 3)`.

    Raises:
        ValueError: if there are no rows, fewer than two runs, or the sizes in a row differ.
    """
    if not rows or len(run_names) < 2:
        raise ValueError(
            "A comparison needs at least one row and two runs. Received: "
            f"{len(rows)} rows, {run_names=}"
        )
    pictures = []
    for image, truth, predictions in rows:
        for prediction in predictions:
            _check_sizes(image=image, truth=truth, prediction=prediction)
        wrong = [_share_wrong(truth, prediction, palette) for prediction in predictions]
        image, (truth, *predictions) = _fit(image, (truth, *predictions), width)
        row = [image, colorize_truth(truth, palette)]
        for i, prediction in enumerate(predictions):
            colors = colorize(prediction, palette)
            _tag(colors, wrong[i])
            row.append(colors)
            if i:
                row.append(difference_map(image, truth, predictions[0], prediction, len(palette)))
        pictures.append(row)
    first, *others = run_names
    titles = ["image", "truth", first]
    for name in others:
        titles += [name, f"{name} against {first}"]
    labels = [(image, truth, p) for image, truth, predictions in rows for p in predictions]
    entries, left_out = _legend_entries(labels, class_names, palette)
    entries = [*entries, *DIFFERENCES]
    return _grid(titles, pictures, (entries, left_out), width)


def picture_grid(titles, rows, *, width=320):
    """Draws rows of pictures under titles.

    Args:
        titles: list of str, one for each column.
        rows: list of rows, each a list of uint8 arrays `(height, width, 3)` of one size.
        width: int, pixels; every picture is resized to this width.

    Returns:
        uint8 array `(grid_height, grid_width, 3)`.
    """
    rows = [[_fit(picture, (), width)[0] for picture in row] for row in rows]
    return _grid(titles, rows, None, width)


def confusion_picture(matrix, class_names):
    """Draws a confusion matrix, rows being the truth; each row sums to 100 percent.

    Rows of classes without pixels are striped. Numbers are omitted if the cells are too small.

    Args:
        matrix: int array `(num_classes, num_classes)`.
        class_names: list of str.

    Returns:
        uint8 array `(height, width, 3)`.
    """
    count = len(class_names)
    cell = int(np.clip(1650 // count, 11, 36))
    font = 0.42 if cell >= 18 else 0.3
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    depth = np.sqrt(shares)[..., None]  # The square root makes small values visible.
    colors = ((1 - depth) * _PAPER + depth * _FULL).round().astype("uint8")
    grid = colors.repeat(cell, axis=0).repeat(cell, axis=1)
    empty = np.broadcast_to(totals == 0, matrix.shape)
    grid = _hatch(grid, empty.repeat(cell, axis=0).repeat(cell, axis=1))
    grid[::cell, :] = grid[:, ::cell] = _HATCH[0]

    class_names = [_cut(name, _MAX_NAME, font) for name in class_names]
    names = 14 + max(_text_width(name, font) for name in class_names)
    axis = 24  # Size of the strips labeled "truth" and "prediction".
    corner = axis + names
    extent = corner + count * cell
    picture = _blank(extent + _GAP, extent + _GAP)
    picture[corner:extent, corner:extent] = grid
    cv2.rectangle(picture, (corner, corner), (extent, extent), _FRAME, 1)
    baseline = cell // 2 + round(11 * font)
    rows = picture[corner:extent, :corner]
    for i, name in enumerate(class_names):
        start = axis + names - 7 - _text_width(name, font)
        _write(rows, name, (start, i * cell + baseline), font)
    # Column names are vertical: drawn as rows, then rotated.
    columns = _blank(count * cell, corner)
    for i, name in enumerate(class_names):
        _write(columns, name, (7, i * cell + baseline), font)
    middle = corner + count * cell // 2
    picture[:corner, corner:extent] = np.rot90(columns)
    _write(picture, "prediction", (middle - _text_width("prediction", 0.5) // 2, 17), 0.5)
    word = _blank(axis, _text_width("truth", 0.5) + 4)
    _write(word, "truth", (2, 17), 0.5)
    top = max(0, middle - word.shape[1] // 2)
    picture[top : top + word.shape[1], :axis] = np.rot90(word)[: extent + _GAP - top]

    if cell >= 24:
        for i, j in np.argwhere(shares >= 0.005):
            text = f"{100 * shares[i, j]:.0f}"
            x = corner + j * cell + (cell - _text_width(text, 0.4)) // 2
            ink = _PAPER if depth[i, j, 0] > 0.55 else _INK
            _write(picture, text, (x, corner + i * cell + cell // 2 + 5), 0.4, ink)
    return picture


def legend(names, palette, width=480):
    """Draws the number and name of each class beside its color.

    Args:
        names: list of str.
        palette: list of `[red, green, blue]`, of the same length.
        width: int, pixels.

    Returns:
        uint8 array `(height, width, 3)`.
    """
    named = enumerate(zip(names, palette, strict=True))
    entries = [(f"{i} {name}", tuple(map(int, color))) for i, (name, color) in named]
    return _legend(entries, 0, width)


def shrink(image, maps=(), *, width):
    """Shrinks an image and its label maps to a width, if they are wider.

    Args:
        image: uint8 array `(height, width, 3)`.
        maps: int arrays `(height, width)`.
        width: int, pixels.

    Returns:
        `(image, maps)`: uint8 array and list of int32 arrays, all of one size.
    """
    return _fit(image, maps, min(width, image.shape[1]))


def write_png(path, picture):
    """Writes a picture; an existing file is replaced atomically.

    Args:
        path: path of the file; its folder is created if missing.
        picture: uint8 array `(height, width, 3)` RGB or `(height, width)`.

    Raises:
        OSError: if the file cannot be written.
    """
    data = picture[..., ::-1] if picture.ndim == 3 else picture
    files.write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(data))[1].tobytes())


def _known(labels, palette):
    labels = np.asarray(labels)
    return (labels >= 0) & (labels < len(palette))


def _check_sizes(**arrays):
    sizes = {name: np.shape(array)[:2] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{', '.join(sizes)} must have the same size. Received: {sizes}")


def _hatch(picture, mask):
    """Draws stripes on a picture where a mask is True."""
    rows, columns = np.indices(mask.shape)
    stripes = np.array(_HATCH, "uint8")[(rows + columns) // 4 % 2]
    return np.where(mask[..., None], stripes, picture)


def _pale(image):
    """Returns a pale gray copy, on which marks stand out."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return np.repeat((150 + 0.4 * grey).astype("uint8")[..., None], 3, axis=-1)


def _share_wrong(truth, prediction, palette):
    counted = _known(truth, palette)
    wrong = np.mean(truth[counted] != prediction[counted]) if counted.any() else 0.0
    return f"{100 * wrong:.1f} %"


def _fit(image, maps, width):
    """Resizes an image and its label maps to a width."""
    size = width, max(1, round(image.shape[0] * width / image.shape[1]))
    return _resize(image, size), [_resize_labels(labels, size) for labels in maps]


def _grid(titles, rows, legend, width):
    """Arranges pictures of equal width under their titles, above a legend."""
    full_width = len(titles) * (width + _GAP) + _GAP
    header = _blank(26, full_width)
    for i, title in enumerate(titles):
        _write(header, _cut(title, width, 0.5), (_GAP + i * (width + _GAP), 18), 0.5)
    parts = [header]
    for pictures in rows:
        strip = _blank(pictures[0].shape[0] + _GAP, full_width)
        for i, picture in enumerate(pictures):
            left = _GAP + i * (width + _GAP)
            strip[:-_GAP, left : left + width] = picture
        parts.append(strip)
    if legend is not None:
        parts.append(_legend(*legend, full_width))
    return np.concatenate(parts)


def _cut(text, width, size):
    """Shortens a text to a width in pixels."""
    if _text_width(text, size) <= width:
        return text
    while text and _text_width(f"{text}...", size) > width:
        text = text[:-1]
    return f"{text}..."


def _resize(image, size):
    shrinks = size[0] < image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=interpolation)


def _resize_labels(labels, size):
    labels = np.ascontiguousarray(labels, "int32")
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)


def _legend_entries(rows, names, palette):
    """Returns the legend's names and colors (None: stripes), and the number of classes left out."""
    counts = np.zeros(len(palette), "int64")
    for _, truth, prediction in rows:
        for labels in (truth, prediction):
            counts += np.bincount(labels[_known(labels, palette)], minlength=len(palette))
    shown = np.flatnonzero(counts) if len(palette) > _MAX_LEGEND else np.arange(len(palette))
    left_out = max(0, len(shown) - _MAX_LEGEND)
    if left_out:
        shown = shown[np.argsort(-counts[shown], kind="stable")][:_MAX_LEGEND]
    entries = [(names[i], tuple(int(c) for c in palette[i])) for i in shown]
    return [*entries, ("ignored", None)], left_out


def _legend(entries, left_out, width):
    """Draws names beside squares of their colors, wrapped into lines."""
    lines, x = [[]], _GAP
    for name, color in entries:
        name = _cut(name, width - 2 * _GAP - 36, 0.45)
        extent = 36 + _text_width(name, 0.45)
        if x + extent > width and lines[-1]:
            lines.append([])
            x = _GAP
        lines[-1].append((x, name, color))
        x += extent
    strip = _blank(24 * (len(lines) + bool(left_out)) + 6, width)
    for i, line in enumerate(lines):
        top = 24 * i + 5
        for x, name, color in line:
            square = strip[top : top + 15, x : x + 15]
            square[:] = _hatch(square, np.ones((15, 15), bool)) if color is None else color
            cv2.rectangle(strip, (x, top), (x + 14, top + 14), _FRAME, 1)
            _write(strip, name, (x + 20, top + 12), 0.45)
    if left_out:
        _write(strip, f"and {left_out} rarer classes", (_GAP, 24 * len(lines) + 17), 0.45)
    return strip


def _tag(picture, text):
    """Writes a text on a plate in the corner of a picture."""
    width = _text_width(text, 0.45) + 10
    if picture.shape[0] > 20 and picture.shape[1] > width:
        picture[:20, :width] = _PAPER
        _write(picture, text, (5, 14), 0.45)


def _blank(height, width):
    return np.full((height, width, 3), _PAPER, "uint8")


def _text_width(text, size):
    return cv2.getTextSize(display.drawable(text), _FONT, size, 1)[0][0]


def _write(picture, text, position, size, ink=_INK):
    cv2.putText(picture, display.drawable(text), position, _FONT, size, ink, 1, cv2.LINE_AA)
