"""Export of sampled features to TensorBoard's Embedding Projector."""

import math

import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector

from kseg import files
from kseg.evaluation import drawing

_FRAME = 2  # Pixels.


def write(folder, points, class_names, palette, *, description):
    """Writes the projector's files: vectors, classes, and a thumbnail of each point.

    Thumbnails are framed in the colors of their classes.

    Args:
        folder: `pathlib.Path` of a separate TensorBoard run; its content is replaced.
        points: dict from a name to `kseg.analysis.embeddings.Points`.
        class_names: list of str.
        palette: list of `[red, green, blue]`.
        description: str, shown on TensorBoard's Text tab.
    """
    with files.replace_folder(folder) as new:
        _fill(new, points, class_names, palette, description)


def _fill(folder, points, class_names, palette, description):
    config = projector.ProjectorConfig()
    variables = {}
    for name, group in points.items():
        variables[name] = tf.Variable(group.vectors)
        embedding = config.embeddings.add()
        embedding.tensor_name = f"{name}/.ATTRIBUTES/VARIABLE_VALUE"
        embedding.metadata_path = f"{name}.tsv"
        embedding.sprite.image_path = f"{name}.png"
        height, width = group.thumbnails.shape[1:3]
        embedding.sprite.single_image_dim.extend([width, height])
        (folder / f"{name}.tsv").write_text(_metadata(group, class_names), encoding="utf-8")
        drawing.write_png(folder / f"{name}.png", sprite(_framed(group, palette)))
    # `save` also writes the `checkpoint` file that the plugin looks for.
    tf.train.Checkpoint(**variables).save(str(folder / "embeddings"))
    projector.visualize_embeddings(str(folder), config)
    # TensorBoard recognizes a folder as a run only if it has events.
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        tf.summary.text("embeddings", description, step=0)
    writer.close()


def sprite(thumbnails):
    """Arranges images of one size in a square, row by row, as the projector expects them.

    Args:
        thumbnails: uint8 array `(count, height, width, 3)`.

    Returns:
        uint8 array `(side * height, side * width, 3)`, `side` images in a row; unused cells are
        white.
    """
    count, height, width, _ = thumbnails.shape
    side = math.ceil(math.sqrt(count))
    cells = np.full((side * side, height, width, 3), 255, "uint8")
    cells[:count] = thumbnails
    rows = cells.reshape(side, side, height, width, 3).transpose(0, 2, 1, 3, 4)
    return rows.reshape(side * height, side * width, 3)


def _framed(points, palette):
    colors = np.array(palette, "uint8")[points.classes]
    framed = np.broadcast_to(colors[:, None, None], points.thumbnails.shape).copy()
    inside = np.s_[:, _FRAME:-_FRAME, _FRAME:-_FRAME]
    framed[inside] = points.thumbnails[inside]
    return framed


def _metadata(points, class_names):
    """Returns the tab-separated metadata: a header, then a line for each point."""
    columns = {"class": [class_names[n] for n in points.classes], **points.columns}
    if "predicted" in columns:
        columns["predicted"] = [class_names[int(n)] for n in columns["predicted"]]
    rows = [columns, *zip(*columns.values(), strict=True)]
    return "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
