import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.analysis.features import FeatureCollector, feature_statistics


def loop(features, labels, num_classes, near):
    """Eq. 1-3 of the supplement, pair by pair."""
    groups = [features[labels == n] for n in range(num_classes) if (labels == n).any()]
    alignment = np.mean(
        [np.mean([np.linalg.norm(a - b) for a in group for b in group]) for group in groups]
    )
    centers = [group.mean(0) for group in groups]
    distances = [
        sorted(np.linalg.norm(a - b) for j, b in enumerate(centers) if j != i)
        for i, a in enumerate(centers)
    ]
    return alignment, np.mean(distances), [np.mean([d[:k] for d in distances]) for k in near]


def example(seed=0, pixels=300, num_classes=6, dim=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, pixels)
    labels[labels == 2] = 255
    features = rng.normal(size=(pixels, dim)) + 0.5 * labels[:, None]
    return features.astype("float32"), labels


def test_statistics_are_those_of_a_loop():
    features, labels = example()
    collector = FeatureCollector(6, 4)
    for part in np.split(np.arange(300), [40, 41, 200]):
        collector.add(features[part], labels[part])
    result = collector.statistics(neighbors=(1, 3))
    alignment, uniformity, near = loop(features.astype("float64"), labels, 6, (1, 3))
    assert result.alignment == pytest.approx(alignment, rel=1e-6)
    assert result.uniformity == pytest.approx(uniformity, rel=1e-6)
    assert list(result.neighborhood_uniformity) == [1, 3]
    assert list(result.neighborhood_uniformity.values()) == pytest.approx(near, rel=1e-6)
    assert result.class_alignment[2] is None
    assert result.num_samples == [int((labels == n).sum()) for n in range(6)]
    assert result.to_dict("abcdef")["classes"]["c"] == {"A": None, "num_samples": 0}


def test_the_sample_does_not_depend_on_the_batches_and_estimates_the_whole():
    features, labels = example(pixels=6000)
    results = []
    for parts in (1, 7):
        collector = FeatureCollector(6, 4, samples_per_class=100, seed=3)
        for part in np.array_split(np.arange(6000), parts):
            collector.add(features[part], labels[part])
        results.append(collector.statistics())
    assert results[0] == results[1]
    assert results[0].num_samples == [100, 100, 0, 100, 100, 100]
    whole = FeatureCollector(6, 4)
    whole.add(features, labels)
    assert results[0].alignment == pytest.approx(whole.statistics().alignment, rel=0.05)
    assert results[0].uniformity == pytest.approx(whole.statistics().uniformity)


def test_one_class_has_no_uniformity():
    collector = FeatureCollector(3, 2)
    collector.add(np.array([[1.0, 1.0], [1.0, 1.0]], "float32"), np.array([1, 1]))
    result = collector.statistics()
    assert result.alignment == 0
    assert np.isnan(result.uniformity)
    assert np.isnan(result.neighborhood_uniformity[3])


@pytest.mark.parametrize("unit_norm", [True, False])
def test_features_of_a_segmenter(unit_norm):
    image = keras.Input((None, None, 3))
    pooled = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(image))
    features = keras.layers.Rescaling(2.0, 0.1)(pooled)
    segmenter = keras.Model(image, {"features": features, "logits": features})
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 12, 3)).astype("uint8")
    labels = np.kron(rng.integers(0, 3, (3, 2, 3)), np.ones((4, 4), int))
    batches = [
        {"image": tf.constant(images[i]), "label": tf.constant(labels[i])} for i in ([0, 1], [2])
    ]
    result = feature_statistics(segmenter, batches, 3, unit_norm=unit_norm)
    features = images.reshape(3, 2, 4, 3, 4, 3).mean((2, 4)).reshape(-1, 3) / 255 * 2 + 0.1
    if unit_norm:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    alignment, uniformity, _ = loop(features, labels[:, ::4, ::4].reshape(-1), 3, ())
    assert result.alignment == pytest.approx(alignment, rel=1e-4)
    assert result.uniformity == pytest.approx(uniformity, rel=1e-4)
    with pytest.raises(ValueError, match="empty"):
        feature_statistics(segmenter, [], 3)
