import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.layers import resize_labels
from kseg.losses import OHEM, RMI, Affinity, CrossEntropy, Dice, Focal, Lovasz, OutputLoss
from kseg.losses.affinity import affinity_loss
from kseg.losses.cross_entropy import cross_entropy, logits_like
from kseg.losses.dice import dice_loss
from kseg.losses.focal import focal_loss
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_ratio
from kseg.losses.rmi import rmi_loss
from kseg.metrics import MeanIoU

WEIGHTS = [0.5, 1.0, 2.0]
CASES = {
    "cross_entropy": (CrossEntropy(), lambda y, x: global_ratio(*cross_entropy(y, x))),
    "weights": (
        CrossEntropy(class_weights=WEIGHTS, label_smoothing=0.1),
        lambda y, x: global_ratio(*cross_entropy(y, x, class_weights=WEIGHTS, label_smoothing=0.1)),
    ),
    "ohem": (
        OHEM(threshold=0.2, min_kept=9, class_weights=WEIGHTS),
        lambda y, x: global_ratio(
            *ohem_cross_entropy(y, x, threshold=0.2, min_kept=9, class_weights=WEIGHTS)
        ),
    ),
    "focal": (Focal(gamma=1.5), lambda y, x: global_ratio(*focal_loss(y, x, gamma=1.5))),
    "lovasz": (Lovasz(), lovasz_softmax),
    "dice": (
        Dice(smooth=2.0, squared=True, class_weights=WEIGHTS),
        lambda y, x: dice_loss(y, x, smooth=2.0, squared=True, class_weights=WEIGHTS),
    ),
    "rmi": (RMI(downsampling=1), lambda y, x: rmi_loss(y, x, downsampling=1)),
    "affinity": (Affinity((1,)), lambda y, x: affinity_loss(y, x, distances=(1,))),
}


def example():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 8, 8))
    labels[0, :7] = labels[1, :2] = 255  # The images have different numbers of valid pixels.
    return rng.normal(size=(4, 8, 8, 3)).astype("float32"), labels.astype("uint8")


def network():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    return keras.Model(image, keras.layers.Conv2D(3, 2, strides=2)(image))


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_in_compile_it_is_the_loss_itself(name, channel):
    """From arrays, whose batches have no static size; masks may have a channel."""
    loss, function = CASES[name]
    images, labels = example()
    model = network()
    expected = float(function(labels, model(images)))
    model.compile("sgd", loss=loss)
    masks = labels[..., None] if channel else labels
    result = model.evaluate(images, masks, batch_size=4, verbose=0)
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
        data = tf.data.Dataset.from_tensors((images, labels)).repeat()
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


@pytest.mark.parametrize("loss", [CrossEntropy(class_weights=WEIGHTS), Focal(), OHEM(0.3, 5)])
def test_sample_weights_weigh_pixels(loss):
    """`sum_x v_x loss_x / sum_x v_x w_x`; a pixel of weight 0 is as one that is ignored."""
    images, labels = example()
    logits = network()(images)
    weights = np.random.default_rng(1).integers(0, 3, labels.shape).astype("float32")
    value, weight = loss.of(np.where(weights > 0, labels, 255), logits)
    expected = np.sum(value * weights) / np.sum(weight * weights)
    np.testing.assert_allclose(loss(labels, logits, weights), expected, rtol=1e-5)
    of_images = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    value, weight = loss.of(np.where(of_images[:, None, None] > 0, labels, 255), logits)
    expected = np.sum(value * of_images[:, None, None]) / np.sum(weight * of_images[:, None, None])
    np.testing.assert_allclose(loss(labels, logits, of_images), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [Lovasz(), Dice()])
def test_sample_weights_are_refused_where_no_pixel_has_a_loss(loss):
    images, labels = example()
    with pytest.raises(ValueError, match="takes no sample weights"):
        loss(labels, network()(images), sample_weight=np.ones(4))


@pytest.mark.parametrize("name", CASES)
def test_another_class_is_ignored(name):
    loss, function = CASES[name]
    config = {**loss.get_config(), "ignore_class": 1}
    images, labels = example()
    logits = network()(images)
    expected = function(np.where(labels == 1, 255, labels), logits)
    np.testing.assert_allclose(type(loss).from_config(config)(labels, logits), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 8, 8), (2, 8, 8)), "needs logits"),
        (((2, 8, 8), (2, 8, 8, 4)), r"each of the 4 classes of the logits\. Received: 3"),
        (((2, 8, 8, 3), (2, 8, 8, 3)), "must be class numbers"),
    ],
)
def test_shapes_that_do_not_fit_are_one_line(arguments, message):
    labels, logits = (np.zeros(shape, "float32") for shape in arguments)
    with pytest.raises(ValueError, match=message) as error:
        CrossEntropy(class_weights=WEIGHTS)(labels, logits)
    assert "\n" not in str(error.value)


def test_a_loss_of_keras_on_an_output():
    """It gets logits at the size of the labels, and must be a scalar."""
    images, labels = example()
    outputs = {"aux_logits": network()(images)}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    found = OutputLoss(loss, "aux_logits")(labels, outputs)
    full = logits_like(labels, outputs["aux_logits"])
    expected = global_ratio(*cross_entropy(labels, full))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="must be a scalar"):
        OutputLoss(keras.losses.SparseCategoricalCrossentropy(reduction=None), "aux_logits")(
            np.where(labels == 255, 0, labels), outputs
        )


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 8, 8, 3), (2, 64)])
def test_labels_of_another_rank_are_refused(shape):
    """They would be broadcast against the pixels."""
    for function in (cross_entropy, ohem_cross_entropy, lovasz_softmax):
        with pytest.raises(ValueError, match="must be class numbers of shape"):
            function(np.zeros(shape, "int32"), np.zeros((2, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match="must be class numbers of shape"):
        resize_labels(np.zeros(shape, "int32"), 4, 4)


ARGUMENTS = {
    "a reduction": (lambda: CrossEntropy(reduction=None), "Received: reduction=None"),
    "a sum": (lambda: Dice(reduction="sum"), "Dice is one number.*Received: reduction='sum'"),
    "weights by class": (
        lambda: CrossEntropy(class_weights={0: 1.0, 1: 2.0}),
        r"must be a list of numbers.*Received: \{0: 1.0, 1: 2.0\}",
    ),
    "weights by name": (lambda: OHEM(class_weights="log"), "must be a list of numbers"),
    "one weight": (lambda: Lovasz(class_weights=2.0), "must be a list of numbers"),
    "a negative weight": (lambda: Dice(class_weights=[1, -1]), "finite and not negative"),
    "no weight": (lambda: Focal(class_weights=[1, float("nan")]), "finite and not negative"),
    "too much smoothing": (lambda: CrossEntropy(label_smoothing=1.0), r"must be in \[0, 1\)"),
    "a percentage": (lambda: OHEM(threshold=70), "must be a probability"),
    "a fraction of pixels": (lambda: OHEM(min_kept=0.1), "a number of pixels"),
    "classes of one number": (lambda: MeanIoU(1), "two or more classes"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_out_of_range_are_one_line(name):
    build, message = ARGUMENTS[name]
    images, labels = example()
    with pytest.raises(ValueError, match=message):
        build()(labels, network()(images))


@pytest.mark.parametrize("name", CASES)
def test_a_single_channel_is_refused(name):
    """The softmax over it is 1, whatever the network does."""
    loss, _ = CASES[name]
    config = {k: value for k, value in loss.get_config().items() if k != "class_weights"}
    with pytest.raises(ValueError, match=r"two or more classes.*Received: a single channel"):
        type(loss).from_config(config)(np.zeros((2, 16, 16)), np.zeros((2, 16, 16, 1), "float32"))


def test_a_mean_by_any_name_of_keras_is_the_loss():
    images, labels = example()
    logits = network()(images)
    expected = float(CrossEntropy()(labels, logits))
    for reduction in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
        assert float(CrossEntropy(reduction=reduction)(labels, logits)) == expected
