"""Pictures of labels, predictions and scores, drawn with OpenCV."""

import pathlib

import cv2
import numpy as np

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _PAPER, _GREY = (30, 30, 30), (255, 255, 255), (120, 120, 120)
_WRONG, _RIGHT = (220, 40, 40), (235, 235, 235)
_GAP = 6


def colorize(labels, palette):
    """Colours labels.

    Args:
        labels: int array `(height, width)`; values outside the palette (255) become black.
        palette: list of `[red, green, blue]`.

    Returns:
        uint8 array `(height, width, 3)`.
    """
    table = np.zeros((256, 3), "uint8")
    table[: len(palette)] = palette
    return table[np.asarray(labels).astype("uint8")]


def overlay(image, labels, palette, opacity=0.5):
    """Lays colours over an image; ignored pixels keep the image.

    Args:
        image: uint8 array `(height, width, 3)`.
        labels: int array `(height, width)`.
        palette: list of `[red, green, blue]`.
        opacity: float in [0, 1].

    Returns:
        uint8 array `(height, width, 3)`.
    """
    mixed = (1 - opacity) * image + opacity * colorize(labels, palette)
    known = np.asarray(labels) < len(palette)
    return np.where(known[..., None], mixed.round(), image).astype("uint8")


def errors(truth, prediction):
    """Shows where a prediction is wrong: red wrong, light right, grey ignored.

    Args:
        truth: int array `(height, width)`, 255 = ignored.
        prediction: int array `(height, width)`.

    Returns:
        uint8 array `(height, width, 3)`.
    """
    picture = np.where((truth == prediction)[..., None], _RIGHT, _WRONG)
    return np.where((truth == 255)[..., None], _GREY, picture).astype("uint8")


def panel(rows, classes_names, palette, *, width=320):
    """Draws image, truth, prediction and errors side by side, a row an image, with a legend.

    Args:
        rows: list of `(image, truth, prediction)`: uint8 `(height, width, 3)`, and twice int
            `(height, width)`.
        classes_names: list of str.
        palette: list of `[red, green, blue]`.
        width: int, pixels of one picture.

    Returns:
        uint8 array `(height, width, 3)`.
    """
    titles = ("image", "truth", "prediction", "errors")
    full_width = 4 * width + 5 * _GAP
    parts = [_titles(titles, width)]
    for image, truth, prediction in rows:
        height = round(image.shape[0] * width / image.shape[1])
        pictures = [
            cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA),
            *(
                cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)
                for picture in (
                    colorize(truth, palette),
                    colorize(prediction, palette),
                    errors(truth, prediction),
                )
            ),
        ]
        row = np.full((height + _GAP, full_width, 3), _PAPER, "uint8")
        for i, picture in enumerate(pictures):
            left = _GAP + i * (width + _GAP)
            row[:height, left : left + width] = picture
        parts.append(row)
    parts.append(_legend(classes_names, palette, full_width))
    return np.concatenate(parts)


def confusion_picture(matrix, class_names, *, cell=34):
    """Draws a confusion matrix: rows are the truth, each row's shares in per cent.

    Args:
        matrix: int array `(num_classes, num_classes)`.
        class_names: list of str.
        cell: int, pixels of a cell; cells shrink where there are more than 40 classes.

    Returns:
        uint8 array `(height, width, 3)`.
    """
    count = len(class_names)
    named = count <= 40
    cell = cell if named else max(4, 1360 // count)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    heat = (255 - 255 * np.sqrt(shares)).astype("uint8")  # The root shows small shares.
    colors = np.stack([heat, heat, np.maximum(heat, 90 + heat // 2)], axis=-1)
    colors[matrix.sum(1) == 0] = 235
    grid = colors.repeat(cell, axis=0).repeat(cell, axis=1)
    if not named:
        return grid
    margin = 12 + max(cv2.getTextSize(name, _FONT, 0.4, 1)[0][0] for name in class_names)
    picture = np.full((grid.shape[0] + margin, grid.shape[1] + margin, 3), _PAPER, "uint8")
    picture[margin:, margin:] = grid
    for i, name in enumerate(class_names):
        y = margin + i * cell + cell // 2 + 4
        _write(picture, name, (6, y), 0.4)
        # Column names stand upright: written on a strip that is turned.
        strip = np.full((cell, margin, 3), _PAPER, "uint8")
        _write(strip, name, (6, cell // 2 + 4), 0.4)
        left = margin + i * cell
        picture[:margin, left : left + cell] = np.rot90(strip)
        for j in range(count):
            if shares[i, j] >= 0.005:
                ink = _PAPER if shares[i, j] > 0.35 else _INK
                place = (margin + j * cell + 5, y)
                _write(picture, f"{100 * shares[i, j]:.0f}", place, 0.36, ink)
    return picture


def write_png(path, picture):
    """Writes a picture.

    Args:
        path: file; its folder is made.
        picture: uint8 array `(height, width, 3)` RGB or `(height, width)`.
    """
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = picture[..., ::-1] if picture.ndim == 3 else picture
    if not cv2.imwrite(str(path), np.ascontiguousarray(data)):
        raise OSError(f"Could not write {path}")


def _titles(titles, width):
    strip = np.full((26, len(titles) * width + (len(titles) + 1) * _GAP, 3), _PAPER, "uint8")
    for i, title in enumerate(titles):
        _write(strip, title, (_GAP + i * (width + _GAP) + 2, 18), 0.5)
    return strip


def _legend(names, palette, width):
    """Names beside squares of their colours, in as many lines as it takes."""
    if len(names) > 40:
        return np.full((0, width, 3), _PAPER, "uint8")
    lines, x = [[]], _GAP
    for name, color in zip([*names, "ignored"], [*palette, _GREY], strict=True):
        extent = 34 + cv2.getTextSize(name, _FONT, 0.45, 1)[0][0]
        if x + extent > width:
            lines.append([])
            x = _GAP
        lines[-1].append((x, name, color))
        x += extent
    strip = np.full((24 * len(lines) + 4, width, 3), _PAPER, "uint8")
    for i, line in enumerate(lines):
        for x, name, color in line:
            top = 24 * i + 5
            cv2.rectangle(strip, (x, top), (x + 14, top + 14), tuple(map(int, color)), -1)
            cv2.rectangle(strip, (x, top), (x + 14, top + 14), _GREY, 1)
            _write(strip, name, (x + 19, top + 12), 0.45)
    return strip


def _write(picture, text, place, size, ink=_INK):
    cv2.putText(picture, text, place, _FONT, size, ink, 1, cv2.LINE_AA)
