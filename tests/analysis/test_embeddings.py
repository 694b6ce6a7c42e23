import numpy as np
import pytest

from kseg.analysis.embeddings import THUMBNAIL, EmbeddingCollector, t_sne
from kseg.analysis.observation import ObservedBatch


def seen(labels, *, ids=None, dim=3, seed=0):
    """Images at twice the size of the features; the prediction is 1 everywhere."""
    labels = np.asarray(labels, "uint8")
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(*labels.shape, dim)).astype("float32")
    large = np.kron(labels, np.ones((1, 2, 2), "uint8"))
    images = np.repeat((large * 40)[..., None], 3, axis=-1)
    ids = ids or [f"image {i}" for i in range(len(labels))]
    return ObservedBatch(
        ids, images, images, large, np.ones_like(large), features, labels.astype("int32")
    )


def test_pixels_match_their_columns():
    view = seen([[[0, 0, 1, 2], [1, 1, 255, 2]], [[2, 2, 2, 2], [0, 255, 255, 3]]])
    collector = EmbeddingCollector(3, points_per_class=2)
    collector.add(view)
    points = collector.pixels()
    np.testing.assert_array_equal(points.classes, [0, 0, 1, 1, 2, 2])
    for i, n in enumerate(points.classes):
        number = view.ids.index(points.columns["image"][i])
        # The center of a feature position, which covers 2 x 2 pixels.
        row, column = (int(points.columns[name][i]) for name in ("row", "column"))
        assert row % 2 == column % 2 == 1
        assert view.labels[number, row, column] == n
        np.testing.assert_array_equal(
            points.vectors[i], view.features[number, row // 2, column // 2]
        )
    assert points.columns["predicted"] == ["1"] * 6
    assert points.thumbnails.shape == (6, THUMBNAIL, THUMBNAIL, 3)
    # With a window of one pixel the thumbnail has its color.
    np.testing.assert_array_equal(points.thumbnails[:, 0, 0, 0], points.classes * 40)


def test_regions_are_the_means_of_classes_in_images():
    view = seen([[[0, 0, 1, 1], [0, 0, 255, 1]], [[1, 1, 1, 1], [4, 1, 1, 255]]])
    collector = EmbeddingCollector(3, points_per_class=5)
    collector.add(view)
    points = collector.regions()
    result = set(zip(points.classes.tolist(), points.columns["image"], strict=True))
    assert result == {(0, "image 0"), (1, "image 0"), (1, "image 1")}
    for i, n in enumerate(points.classes):
        number = view.ids.index(points.columns["image"][i])
        mask = view.feature_labels[number] == n
        np.testing.assert_allclose(
            points.vectors[i], view.features[number][mask].mean(0), rtol=1e-5
        )
        assert points.columns["pixels"][i] == str(4 * mask.sum())
        assert points.columns["right"][i] == ("1.000" if n == 1 else "0.000")
    # 4 x 2 pixels of color 0, centered on white.
    square = points.thumbnails[points.classes.tolist().index(0)]
    assert (square == 0).all()
    tall = EmbeddingCollector(3, points_per_class=5)
    tall.add(seen([[[0, 1], [0, 1]]]))
    thumbnail = tall.regions().thumbnails[0]
    assert (thumbnail[:, 0] == 255).all()
    assert (thumbnail[:, THUMBNAIL // 2] == 0).all()


def test_balanced_and_deterministic():
    labels = np.random.default_rng(1).choice([0, 0, 0, 0, 1, 2], (6, 8, 8))
    results = []
    for division in ([[0, 1, 2, 3, 4, 5]], [[0], [1, 2], [3, 4, 5]]):
        view = seen(labels)
        collector = EmbeddingCollector(3, points_per_class=20, seed=4)
        for part in division:
            arrays = (view.images, view.inputs, view.labels, view.predictions, view.features)
            names = [view.ids[i] for i in part]
            parts = [array[part] for array in (*arrays, view.feature_labels)]
            collector.add(ObservedBatch(names, *parts))
        results.append(collector.pixels())
        assert np.bincount(results[-1].classes).tolist() == [20, 20, 20]
        assert len(collector.regions().classes) == 18
    np.testing.assert_array_equal(results[0].vectors, results[1].vectors)
    assert results[0].columns == results[1].columns


def test_no_labeled_pixels():
    collector = EmbeddingCollector(3, points_per_class=5)
    collector.add(seen(np.full((1, 2, 2), 255)))
    assert collector.pixels() is None
    assert collector.regions() is None


def test_t_sne_keeps_clusters_apart_and_is_the_same_again():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 12)
    vectors = rng.normal(size=(36, 5)) * 0.1 + 10 * np.eye(5)[classes]
    positions = t_sne(vectors, seed=3)
    assert positions.shape == (36, 2)
    np.testing.assert_array_equal(positions, t_sne(vectors, seed=3))
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(classes[distances.argmin(axis=1)], classes)


def test_t_sne_of_few_points():
    assert t_sne(np.eye(4)).shape == (4, 2)
    with pytest.raises(ValueError, match=r"at least 4 points. Received: 3"):
        t_sne(np.eye(3))
