"""Sampled points of the feature space, pixels and region centers, with thumbnails and t-SNE."""

import dataclasses

import cv2
import numpy as np

from kseg.analysis.extras import require
from kseg.analysis.selection import ClassSample

THUMBNAIL = 32  # Pixels, height and width.
_WINDOW = 1 / 5  # Side of a pixel's thumbnail as a fraction of the image's short side.


@dataclasses.dataclass(frozen=True)
class Points:
    """Points of the feature space, sorted by class.

    Attributes:
        vectors: float32 array `(points, dim)`.
        classes: int array `(points,)`.
        columns: dict from a name to a list of str, one for each point: its metadata.
        thumbnails: uint8 array `(points, THUMBNAIL, THUMBNAIL, 3)`.
    """

    vectors: np.ndarray
    classes: np.ndarray
    columns: dict
    thumbnails: np.ndarray


class EmbeddingCollector:
    """Samples pixels and region centers from a stream of images, the same number of each class.

    A region is a class in an image, as in Hu et al., ICCV 2021, Sec. 3.2; its center is the mean
    feature of the pixels labeled as the class.

    Args:
        num_classes: int.
        points_per_class: int, the largest number of pixels, and of regions, of each class.
        seed: int, for the sampling.
    """

    def __init__(self, num_classes, *, points_per_class, seed=0):
        self._num_classes = num_classes
        self._pixels = ClassSample(num_classes, points_per_class, seed=seed)
        self._regions = ClassSample(num_classes, points_per_class, seed=seed)

    def add(self, seen):
        """Adds the images of an `ObservedBatch`."""
        for i, name in enumerate(seen.ids):
            arrays = (seen.images, seen.labels, seen.predictions, seen.features)
            image, labels, predictions, features = (array[i] for array in arrays)
            feature_labels = seen.feature_labels[i]
            self._add_pixels(name, image, predictions, features, feature_labels)
            self._add_regions(name, image, labels, predictions, features, feature_labels)

    def _add_pixels(self, name, image, predictions, features, feature_labels):
        height, width = feature_labels.shape

        def take(indices):
            rows, columns = np.divmod(indices, width)
            ys = ((rows + 0.5) * image.shape[0] / height).astype(int)
            xs = ((columns + 0.5) * image.shape[1] / width).astype(int)
            return (
                features[rows, columns],
                predictions[ys, xs],
                np.array([name] * len(indices), object),
                np.stack([ys, xs], axis=1),
                np.stack([_window(image, y, x) for y, x in zip(ys, xs, strict=True)]),
            )

        self._pixels.add(feature_labels.reshape(-1), take)

    def _add_regions(self, name, image, labels, predictions, features, feature_labels):
        classes = np.unique(feature_labels)
        classes = classes[(classes >= 0) & (classes < self._num_classes)]

        def take(indices):
            chosen = classes[indices]
            masks = [labels == n for n in chosen]
            return (
                np.stack([features[feature_labels == n].mean(axis=0) for n in chosen]),
                np.array([np.count_nonzero(mask) for mask in masks]),
                np.array(
                    [(predictions[m] == n).mean() for n, m in zip(chosen, masks, strict=True)]
                ),
                np.array([name] * len(indices), object),
                np.stack([_cut_out(image, mask) for mask in masks]),
            )

        self._regions.add(classes, take)

    def pixels(self):
        """Returns the pixels as `Points` with columns `image`, `row`, `column` and `predicted`.

        `predicted` holds class indices. None if there are no labeled pixels.
        """
        classes, arrays = self._pixels.all()
        if arrays is None:
            return None
        vectors, predicted, names, positions, thumbnails = arrays
        columns = {
            "image": list(names),
            "row": [str(y) for y in positions[:, 0]],
            "column": [str(x) for x in positions[:, 1]],
            "predicted": [str(n) for n in predicted],
        }
        return Points(vectors, classes, columns, thumbnails)

    def regions(self):
        """Returns the region centers as `Points` with columns `image`, `pixels` and `right`.

        `right` is the fraction of the region's pixels that are predicted as the class. None if
        there are no labeled pixels.
        """
        classes, arrays = self._regions.all()
        if arrays is None:
            return None
        vectors, sizes, right, names, thumbnails = arrays
        columns = {
            "image": list(names),
            "pixels": [str(size) for size in sizes],
            "right": [f"{share:.3f}" for share in right],
        }
        return Points(vectors, classes, columns, thumbnails)


def t_sne(vectors, *, perplexity=30.0, seed=0):
    """Embeds vectors in the plane by t-SNE, which keeps neighbors together.

    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008; scikit-learn's
    implementation, initialized with the principal components.

    Args:
        vectors: float array `(points, dim)`, at least 4 points, `dim` at least 2.
        perplexity: float, the effective number of neighbors; reduced if there are few points.
        seed: int; the same seed yields the same layout.

    Returns:
        float32 array `(points, 2)`.

    Raises:
        UserError: if scikit-learn is not installed.
        ValueError: if there are fewer than 4 points.
    """
    require("sklearn")
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # A dependency of scikit-learn.

    if len(vectors) < 4:
        raise ValueError(f"A t-SNE needs at least 4 points. Received: {len(vectors)}")
    layout = TSNE(
        n_components=2,
        perplexity=min(perplexity, (len(vectors) - 1) / 3),
        init="pca",
        random_state=seed,
    )
    # Its threads wait for each other actively: with other load on the machine a single thread is
    # several times faster, and needs only seconds for a few thousand points.
    with threadpool_limits(1):
        return layout.fit_transform(np.asarray(vectors, "float32")).astype("float32")


def _window(image, y, x):
    """Returns the thumbnail of the window around a pixel, shifted inside at the image border."""
    height, width = image.shape[:2]
    side = max(1, round(_WINDOW * min(height, width)))
    top = int(np.clip(y - side // 2, 0, height - side))
    left = int(np.clip(x - side // 2, 0, width - side))
    return cv2.resize(
        np.ascontiguousarray(image[top : top + side, left : left + side]),
        (THUMBNAIL, THUMBNAIL),
        interpolation=cv2.INTER_AREA,
    )


def _cut_out(image, mask):
    """Returns the thumbnail of a region on white, centered in a square."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    region = np.where(mask[part][..., None], image[part], 255).astype("uint8")
    side = max(region.shape[:2])
    square = np.full((side, side, 3), 255, "uint8")
    top, left = (side - region.shape[0]) // 2, (side - region.shape[1]) // 2
    square[top : top + region.shape[0], left : left + region.shape[1]] = region
    return cv2.resize(square, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
