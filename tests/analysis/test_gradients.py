import keras
import numpy as np
import pytest

from kseg.analysis.gradients import compare_gradients
from kseg.contrast.region_contrast import RegionContrast
from kseg.losses import CrossEntropy, OutputLoss
from kseg.training.trainer import SegmentationTrainer


def build(losses, objectives=()):
    """A network of two linear layers, in which a pixel depends only on itself."""
    image = keras.Input((4, 4, 3), batch_size=2)
    features = keras.layers.Conv2D(5, 1, use_bias=False, name="shared")(image)
    logits = keras.layers.Conv2D(2, 1, use_bias=False, name="classifier")(features)
    model = keras.Model(image, {"logits": logits, "features": features})
    trainer = SegmentationTrainer(model, losses=losses, objectives=objectives)
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    return trainer


def draw_batches(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        labels = rng.integers(0, 2, (2, 4, 4)).astype("int32")
        yield {"image": rng.normal(size=(2, 4, 4, 3)).astype("float32"), "label": labels}


def test_ratio_and_cosine_by_hand():
    cross_entropy = OutputLoss(CrossEntropy())
    trainer = build(
        {
            "against": (lambda labels, outputs: -cross_entropy(labels, outputs), 0.5),
            "cross_entropy": (CrossEntropy(), 1.0),
            "mean": (lambda labels, outputs: keras.ops.mean(outputs["features"]), 3.0),
            "twice": (CrossEntropy(), 2.0),
        }
    )
    before = [w.numpy() for w in trainer.segmenter.weights]
    found = compare_gradients(trainer, draw_batches(2))
    assert list(found) == ["cross_entropy", "against", "mean", "twice"]
    for name, weight, cosine in (("twice", 2, 1), ("against", 0.5, -1), ("cross_entropy", 1, 1)):
        assert found[name].weight == weight
        np.testing.assert_allclose(found[name].ratios, [weight] * 2, rtol=1e-5)
        np.testing.assert_allclose(found[name].cosines, [cosine] * 2, rtol=1e-5)
    # The mean of the features depends on the first layer alone.
    shared, classifier = (w[0, 0].astype("float64") for w in before)
    for i, batch in enumerate(draw_batches(2)):
        x, labels = batch["image"].reshape(-1, 3).astype("float64"), batch["label"].reshape(-1)
        scores = np.exp(x @ shared @ classifier)
        slope = (scores / scores.sum(1, keepdims=True) - np.eye(2)[labels]) / len(x)
        of_ce = x.T @ (slope @ classifier.T)
        of_mean = 3 * np.repeat(x.mean(0)[:, None], 5, axis=1) / 5
        ratio = np.linalg.norm(of_mean) / np.linalg.norm(of_ce)
        cosine = (of_mean * of_ce).sum() / np.linalg.norm(of_mean) / np.linalg.norm(of_ce)
        assert found["mean"].ratios[i] == pytest.approx(ratio, rel=1e-4)
        assert found["mean"].cosines[i] == pytest.approx(cosine, rel=1e-3)
        assert found["mean"].values[i] == pytest.approx((x @ shared).mean(), abs=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, trainer.segmenter.weights, strict=True))


def test_banks_take_in_each_batch_and_an_empty_one_has_no_gradient():
    trainer = build(None, [(RegionContrast(num_classes=2, capacity=4), 0.1)])
    term = compare_gradients(trainer, draw_batches(2))["region_contrast/centers"]
    # Without stored centers there are no negatives, so the loss and its gradient are 0.
    assert term.ratios[0] == 0 and np.isnan(term.cosines[0])
    assert term.ratios[1] > 0 and abs(term.cosines[1]) <= 1
    assert term.to_dict()["cosine"] == {"mean": pytest.approx(term.cosines[1]), "std": None}


def test_an_unknown_reference():
    with pytest.raises(ValueError, match=r"one of the terms \['cross_entropy'\]. Received: 'dice'"):
        compare_gradients(build(None), draw_batches(1), reference="dice")
