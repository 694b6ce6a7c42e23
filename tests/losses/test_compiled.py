import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.layers import resize_labels
from kseg.losses import CrossEntropy, LovaszSoftmax, OHEMCrossEntropy
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_mean, global_ratio

WEIGHTS = [0.5, 1.0, 2.0]
CASES = {
    "cross_entropy": (CrossEntropy(), lambda y, x: global_ratio(*cross_entropy(y, x))),
    "weights": (
        CrossEntropy(class_weights=WEIGHTS, label_smoothing=0.1),
        lambda y, x: global_ratio(*cross_entropy(y, x, class_weights=WEIGHTS, label_smoothing=0.1)),
    ),
    "ohem": (
        OHEMCrossEntropy(threshold=0.2, min_kept=9),
        lambda y, x: global_mean(*ohem_cross_entropy(y, x, threshold=0.2, min_kept=9)),
    ),
    "lovasz": (LovaszSoftmax(), lovasz_softmax),
}


def example():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 8, 8))
    labels[0, :7] = labels[1, :2] = 255  # The images have different numbers of valid pixels.
    return rng.normal(size=(4, 8, 8, 3)).astype("float32"), labels.astype("uint8")


def batches(images, labels):
    """Batches of static size, as Lovasz-softmax needs them."""
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(4, drop_remainder=True)


def network():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    return keras.Model(image, keras.layers.Conv2D(3, 2, strides=2)(image))


@pytest.mark.parametrize("name", CASES)
def test_in_compile_it_is_the_loss_itself(name):
    loss, function = CASES[name]
    images, labels = example()
    model = network()
    expected = float(function(labels, model(images)))
    model.compile("sgd", loss=loss)
    result = model.evaluate(batches(images, labels), verbose=0)
    assert result == pytest.approx(expected, rel=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)
    assert float(again(labels, model(images))) == pytest.approx(expected, rel=1e-5)


def test_steps_of_two_replicas_are_those_of_one(mirrored):
    images, labels = example()
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = network()
            model.compile(keras.optimizers.SGD(0.5), loss=CrossEntropy())
        # Endless, since Keras draws one more batch under a strategy.
        data = batches(images, labels).repeat()
        history = model.fit(data, steps_per_epoch=2, verbose=0).history
        weights.append([*model.get_weights(), history["loss"]])
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", [cross_entropy, ohem_cross_entropy])
@pytest.mark.parametrize("where", ["loss", "metrics"])
def test_a_function_in_compile_is_refused(function, where):
    """Keras would average the losses together with their weights."""
    images, labels = example()
    model = network()
    model.compile(
        "sgd", **{"loss": CrossEntropy(), where: function if where == "loss" else [function]}
    )
    with pytest.raises(TypeError, match=r"returns \(loss, weight\).*kseg.losses.CrossEntropy\(\)"):
        model.evaluate(images, labels, verbose=0)


def test_sample_weights_are_refused():
    images, labels = example()
    with pytest.raises(ValueError, match="takes no sample weights"):
        CrossEntropy()(labels, network()(images), sample_weight=np.ones(4))


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 8, 8, 3), (2, 64)])
def test_labels_of_another_rank_are_refused(shape):
    """They would be broadcast against the pixels."""
    for function in (cross_entropy, ohem_cross_entropy, lovasz_softmax):
        with pytest.raises(ValueError, match="must be class numbers of shape"):
            function(np.zeros(shape, "int32"), np.zeros((2, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match="must be class numbers of shape"):
        resize_labels(np.zeros(shape, "int32"), 4, 4)
