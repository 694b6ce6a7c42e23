import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import layers
from kseg.heads import HEADS
from kseg.heads.projection import projection
from kseg.segmenters import InferenceModel, build_segmenter, inference_model
from tests.tiny_networks import tiny_backbone, tiny_hrnet

STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
HEAD_ARGUMENTS = {"hrnet": {}, "ocr": {"channels": 16, "key_channels": 8}}


def tiny_segmenter(head="ocr", build=tiny_backbone, **arguments):
    backbone = build(
        synchronized_batch_norm=arguments.get("synchronized_batch_norm", False),
    )
    arguments = {"projections": tuple(STRIDES), "embedding_dim": 8, **arguments}
    return build_segmenter(backbone, head, 5, head_arguments=HEAD_ARGUMENTS[head], **arguments)


def images(*size, batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3)).astype("uint8")


def down(size, stride):
    return tuple(-(-extent // stride) for extent in size)


@pytest.mark.parametrize("head", ["hrnet", "ocr"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_outputs(head, policy):
    keras.config.set_dtype_policy(policy)
    segmenter = tiny_segmenter(head)
    size = (75, 130)
    outputs = segmenter(images(*size), training=True)
    expected = {"logits", "features", *(f"embedding_{level}" for level in STRIDES)}
    assert set(outputs) == expected | ({"aux_logits"} if head == "ocr" else set())
    for name in outputs.keys() & {"logits", "aux_logits"}:
        assert tuple(outputs[name].shape) == (2, *down(size, 4), 5)
        assert outputs[name].dtype == "float32"
    assert tuple(outputs["features"].shape[:3]) == (2, *down(size, 4))
    assert outputs["features"].dtype == policy.removeprefix("mixed_")
    for level, stride in STRIDES.items():
        embedding = outputs[f"embedding_{level}"]
        assert tuple(embedding.shape) == (2, *down(size, stride), 8)
        assert embedding.dtype == "float32"
        np.testing.assert_allclose(tf.norm(embedding, axis=-1), 1.0, rtol=1e-5)
    assert {weight.dtype for weight in segmenter.weights} == {"float32"}


def test_uint8_and_float_images_alike():
    segmenter = tiny_segmenter()
    image = images(40, 48)
    expected = segmenter(image)["logits"]
    np.testing.assert_array_equal(segmenter(image.astype("float32"))["logits"], expected)


def test_image_keeps_its_precision_in_bfloat16():
    # Integers up to 256 are exact in bfloat16, but an interpolated image has other values.
    keras.config.set_dtype_policy("mixed_bfloat16")
    segmenter = tiny_segmenter()
    normalization = segmenter.get_layer("image_normalization")
    model = keras.Model(segmenter.input, normalization.output)
    values = tf.cast(model(np.array([[[[124.2, 125.3, 126.4]]]], "float32")), "float32")
    expected = (np.array([124.2, 125.3, 126.4]) - layers.IMAGENET_MEAN) / layers.IMAGENET_STD
    np.testing.assert_allclose(values[0, 0, 0], expected, rtol=2**-8)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_gradient_reaches_every_weight(policy):
    keras.config.set_dtype_policy(policy)
    segmenter = tiny_segmenter()
    image = tf.constant(images(64, 96))

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            outputs = segmenter(image, training=True)
            del outputs["features"]
            loss = sum(
                tf.reduce_sum(x * tf.random.stateless_normal(tf.shape(x), [0, 1]))
                for x in outputs.values()
            )
        return tape.gradient(loss, [weight.value for weight in segmenter.trainable_weights])

    for weight, gradient in zip(segmenter.trainable_weights, gradients(), strict=True):
        assert np.isfinite(gradient).all(), weight.path
        if not weight.path.endswith("convolution/bias"):  # The batch norm cancels it.
            assert np.any(gradient), weight.path


def test_dynamic_size_in_a_function():
    segmenter = tiny_segmenter()
    function = tf.function(
        lambda image: segmenter(image, training=False),
        input_signature=[tf.TensorSpec((None, None, None, 3), "uint8")],
    )
    for size in ((64, 96), (33, 75)):
        image = images(*size)
        expected = segmenter(image)
        for name, output in function(image).items():
            np.testing.assert_allclose(output, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_every_weight_has_its_own_path():
    paths = [weight.path for weight in tiny_segmenter().weights]
    assert len(set(paths)) == len(paths)


def test_save_and_load(tmp_path):
    segmenter = tiny_segmenter(synchronized_batch_norm=True)
    segmenter(images(64, 64), training=True)  # Changes the statistics from their initial values.
    segmenter.save(tmp_path / "segmenter.keras")
    segmenter.save_weights(tmp_path / "segmenter.weights.h5")
    loaded = keras.models.load_model(tmp_path / "segmenter.keras")
    keras.utils.clear_session(free_memory=False)
    # Weights do not depend on synchronization.
    rebuilt = tiny_segmenter(synchronized_batch_norm=False)
    rebuilt.load_weights(tmp_path / "segmenter.weights.h5")
    image = images(50, 70)
    expected = segmenter(image)
    for model in (loaded, rebuilt):
        for name, output in model(image).items():
            np.testing.assert_allclose(output, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("synchronized", [True, False])
def test_synchronized_batch_norm_reaches_every_layer(synchronized):
    segmenter = tiny_segmenter(build=tiny_hrnet, synchronized_batch_norm=synchronized)
    norms = [
        layer
        for layer in segmenter._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) > 60
    assert {norm.synchronized for norm in norms} == {synchronized}
    assert all(isinstance(norm, layers.BatchNormalization) for norm in norms)


def test_inference_model(tmp_path):
    segmenter = tiny_segmenter()
    model = inference_model(segmenter)
    assert {id(weight) for weight in model.weights} < {id(weight) for weight in segmenter.weights}
    assert not any("embedding" in weight.path for weight in model.weights)
    image = images(75, 61)
    before = [weight.numpy() for weight in segmenter.non_trainable_weights]
    logits = model(image, training=True)  # `training=True` has no effect.
    for weight, value in zip(segmenter.non_trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    coarse = segmenter(image, training=False)["logits"]
    expected = tf.image.resize(coarse, (75, 61))
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, InferenceModel)
    np.testing.assert_allclose(loaded(image, training=True), logits, rtol=1e-4, atol=1e-5)
    model.export(tmp_path / "saved_model", verbose=False)
    exported = tf.saved_model.load(tmp_path / "saved_model")
    for size in ((75, 61), (64, 32)):
        image = images(*size, batch=1)
        np.testing.assert_allclose(
            exported.serve(image.astype("float32")), model(image), rtol=1e-3, atol=1e-4
        )


def test_inference_in_bfloat16_resizes_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    logits = inference_model(tiny_segmenter())(images(40, 41))
    assert logits.dtype == "float32"
    assert logits.shape == (2, 40, 41, 5)


def test_features_can_be_projected():
    segmenter = tiny_segmenter("hrnet", projections=("features",))
    assert segmenter.output["embedding_features"].shape == (None, None, None, 8)


def test_maps_that_a_head_adds_can_be_projected_and_are_not_outputs(monkeypatch):
    def pyramid(features, num_classes, **arguments):
        return {**HEADS["hrnet"](features, num_classes, **arguments), "pyramid_c5": features["c5"]}

    monkeypatch.setitem(HEADS, "pyramid", pyramid)
    monkeypatch.setitem(HEAD_ARGUMENTS, "pyramid", {})
    segmenter = tiny_segmenter("pyramid", projections=("pyramid_c5",))
    assert set(segmenter.output) == {"logits", "features", "embedding_pyramid_c5"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"projections": ("c6",)}, r"'c6'.*'c2', 'c3', 'c4', 'c5', 'features'"),
        ({"backbone_arguments": {"name": "x"}}, "already built"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_segmenter(**arguments)


def test_training_on_two_replicas_is_training_on_the_whole_batch(mirrored):
    def network(synchronized):
        inputs = keras.Input((None, None, 3))
        fine = layers.ConvNorm(4, 3, strides=2, synchronized=synchronized)(inputs)
        coarse = layers.ConvNorm(4, 3, strides=2, relu=False, synchronized=synchronized)(fine)
        x = layers.ResizeAndSum(0)([fine, coarse])
        return keras.Model(inputs, projection(x, synchronized_batch_norm=synchronized, name="z"))

    alone = network(synchronized=False)
    with mirrored.scope():
        distributed = network(synchronized=True)
    for weight, value in zip(distributed.weights, alone.weights, strict=True):
        weight.assign(value.numpy())
    image = images(13, 18).astype("float32") / 255
    pattern = tf.random.stateless_normal((2, 7, 9, 256), [0, 1])

    def gradients(model, image, pattern):
        weights = [weight.value for weight in model.trainable_weights]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(image, training=True) * pattern)
        return tape.gradient(loss, weights)

    def on_each_replica(values):
        return mirrored.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[context.replica_id_in_sync_group, None])
        )

    @tf.function
    def distributed_gradients(images, patterns):
        per_replica = mirrored.run(lambda *x: gradients(distributed, *x), (images, patterns))
        return [mirrored.reduce("SUM", gradient, axis=None) for gradient in per_replica]

    summed = distributed_gradients(on_each_replica(image), on_each_replica(pattern))
    expected = gradients(alone, tf.constant(image), pattern)
    for weight, ours, goal in zip(alone.trainable_weights, summed, expected, strict=True):
        atol = 1e-4 * max(1.0, np.abs(goal).max())
        np.testing.assert_allclose(ours, goal, rtol=1e-3, atol=atol, err_msg=weight.path)
    for ours, goal in zip(
        distributed.non_trainable_weights, alone.non_trainable_weights, strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), goal.numpy(), rtol=1e-4, atol=1e-6)


def test_returns_further_maps():
    segmenter = tiny_segmenter("hrnet", projections=(), maps=("c5", "features"))
    outputs = segmenter(images(64, 96))
    assert set(outputs) == {"logits", "features", "c5"}
    assert tuple(outputs["c5"].shape) == (2, 2, 3, 10)
    with pytest.raises(ValueError, match=r"Cannot return 'c9'.*'c2', 'c3', 'c4', 'c5', 'features'"):
        tiny_segmenter("hrnet", projections=(), maps=("c9",))


def test_an_inference_model_is_not_trained():
    model = inference_model(tiny_segmenter())
    model.compile("sgd", "mse")
    x = np.zeros((1, 32, 32, 3), "float32")
    y = np.zeros(model(x).shape, "float32")
    with pytest.raises(ValueError, match=r"is for inference.*Train the segmenter"):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="is for inference"):
        model.train_on_batch(x, y)
    assert np.isfinite(model.evaluate(x, y, verbose=0))
