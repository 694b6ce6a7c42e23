import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import layers

RANDOM = np.random.default_rng(5)


def random(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def train_batch_norm(layer, batches, upstream):
    """Runs training steps; returns the outputs, gradients and moving statistics of each."""
    history = []
    for x in batches:
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * upstream)
        gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
        step = [y, *gradients, layer.moving_mean.value, layer.moving_variance.value]
        history.append([value.numpy() for value in step])
        layer.gamma.assign(layer.gamma - 0.1 * gradients[1] / np.size(upstream))
        layer.beta.assign(layer.beta - 0.1 * gradients[2] / np.size(upstream))
    return history


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 2, 4), (1, 1, 1, 4)])
@pytest.mark.parametrize("trainable", [True, False])
def test_batch_norm_is_that_of_keras(shape, trainable):
    ours = layers.BatchNormalization(trainable=trainable)
    plain = keras.layers.BatchNormalization(
        epsilon=1e-5, momentum=0.9, trainable=trainable, dtype="float64"
    )
    for layer in (ours, plain):  # Keras in double precision, since its own float32 is the coarser.
        layer.build(shape)
        for weight, value in zip(layer.weights, [1.5, 0.3, -0.2, 2.0], strict=True):
            weight.assign(value + np.arange(4.0) / 10)
    # A wide spread of channel scales, so that a wrong epsilon or correction shows.
    batches = [random(*shape) * np.array([1e-3, 0.1, 1.0, 30.0], "float32") + 1.0 for _ in range(4)]
    upstream = random(*shape)
    expected = train_batch_norm(plain, [x.astype("float64") for x in batches], upstream)
    for step, other in zip(train_batch_norm(ours, batches, upstream), expected, strict=True):
        for value, goal in zip(step, other, strict=True):
            np.testing.assert_allclose(value, goal, rtol=2e-4, atol=2e-4 * np.abs(goal).max())
        for value, goal in zip(step[-2:], other[-2:], strict=True):  # The moving statistics.
            np.testing.assert_allclose(value, goal, rtol=1e-5)
    y = plain(batches[0].astype("float64"))
    np.testing.assert_allclose(ours(batches[0]), y, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_unknown_size():
    x = random(3, 4, 5, 2)
    known, unknown = (layers.BatchNormalization() for _ in range(2))
    known.build(x.shape)
    unknown.build(x.shape)
    signature = [tf.TensorSpec((None, None, None, 2))]
    step = tf.function(lambda x: unknown(x, training=True), input_signature=signature)
    np.testing.assert_allclose(step(x), known(x, training=True), rtol=1e-5, atol=1e-6)
    for ours, goal in zip(unknown.weights, known.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), goal.numpy(), rtol=1e-6)


def test_batch_norm_of_other_ranks_is_plain_keras():
    x = random(6, 3)
    ours, plain = layers.BatchNormalization(), keras.layers.BatchNormalization(epsilon=1e-5)
    np.testing.assert_array_equal(ours(x, training=True), plain(x, training=True))


def test_batch_norm_in_bfloat16():
    layer = layers.BatchNormalization(dtype="mixed_bfloat16")
    x = random(4, 8, 8, 3) * 3 + 1
    y = layer(x, training=True)
    assert y.dtype == "bfloat16"
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    rounded = tf.cast(tf.cast(x, "bfloat16"), "float32").numpy()
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.1 * rounded.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), 0.9 + 0.1 * rounded.var((0, 1, 2)), rtol=1e-4
    )


def train_on_two(strategy, layer, halves, upstreams):
    """One training step on two replicas: outputs, input gradients, summed weight gradients."""

    def step(index):
        replica = index[0]
        x = tf.switch_case(
            replica, [lambda: tf.constant(halves[0]), lambda: tf.constant(halves[1])]
        )
        upstream = tf.switch_case(
            replica, [lambda: tf.constant(upstreams[0]), lambda: tf.constant(upstreams[1])]
        )
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * upstream)
        weights = [layer.gamma.value, layer.beta.value]
        d_x, *d_weights = tape.gradient(loss, [x, *weights])
        context = tf.distribute.get_replica_context()
        return y, d_x, context.all_reduce(tf.distribute.ReduceOp.SUM, d_weights)

    ids = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant([context.replica_id_in_sync_group])
    )
    y, d_x, d_weights = tf.function(lambda ids: strategy.run(step, (ids,)))(ids)
    local = strategy.experimental_local_results
    return local(y), local(d_x), [local(gradient)[0] for gradient in d_weights]


@pytest.mark.parametrize("split", [2, 1])  # Equal and unequal shares of four images.
def test_synchronized_batch_norm_on_two_replicas_is_one_with_the_whole_batch(mirrored, split):
    x, upstream = random(4, 3, 5, 2) * 2 + 3, random(4, 3, 5, 2)
    whole = layers.BatchNormalization()
    whole.build(x.shape)
    y, d_x, d_gamma, d_beta, mean, variance = train_batch_norm(whole, [x], upstream)[0]
    with mirrored.scope():
        layer = layers.BatchNormalization(synchronized=True)
        layer.build(x.shape)
    halves, upstreams = np.split(x, [split]), np.split(upstream, [split])
    outputs, input_gradients, gradients = train_on_two(mirrored, layer, halves, upstreams)
    np.testing.assert_allclose(np.concatenate(outputs), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(input_gradients), d_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[0], d_gamma, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], d_beta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-5)


def masked_batch_norm(x, mask, upstream):
    """One training step with a mask, by NumPy; the gradient by differences of its loss."""
    rows = x[mask].astype("float64")
    mean, variance = rows.mean(0), rows.var(0)

    def outputs(x):
        rows = x[mask]
        return (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)

    d_x, wide = np.zeros(x.shape), x.astype("float64")
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-5
        difference = outputs(wide + step) - outputs(wide - step)
        d_x[index] = np.sum(difference * upstream) / 2e-5
    moving = 0.1 * mean, 0.9 + 0.1 * variance
    return outputs(wide), d_x, *moving


def masked_example():
    x, upstream = random(1, 12, 1, 2) * 2 + 3, random(1, 12, 1, 2)
    return x, np.arange(12)[None, :, None] < 5, upstream


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_masked_batch_norm_counts_only_the_mask(dtype):
    x, mask, upstream = masked_example()
    layer = layers.BatchNormalization(dtype=dtype)
    inputs = tf.cast(x, layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = layer(inputs, training=True, mask=mask)
        loss = tf.reduce_sum(tf.cast(y, "float32") * upstream)
    found = y, tape.gradient(loss, inputs), layer.moving_mean, layer.moving_variance
    assert y.dtype == layer.compute_dtype
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    for ours, expected in zip(found, masked_batch_norm(x, mask, upstream), strict=True):
        ours = tf.cast(tf.convert_to_tensor(ours), "float32").numpy()
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


def test_batch_norm_of_fewer_than_two_positions_keeps_its_moving_statistics():
    x, mask, _ = masked_example()
    layer = layers.BatchNormalization()
    layer(x, training=True)
    before = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    for few in (mask & False, mask & (np.cumsum(mask).reshape(mask.shape) == 1)):
        y = layer(x, training=True, mask=few)
        np.testing.assert_allclose(y, layer(x, training=False), rtol=1e-5, atol=1e-6)
        after = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        np.testing.assert_array_equal(after, before)


def test_masked_batch_norm_of_a_replica_without_any_position(mirrored):
    x, mask, upstream = masked_example()  # The first 5 of 12 count: none in the second half.
    with mirrored.scope():
        layer = layers.BatchNormalization(synchronized=True)
        layer.build(x.shape)
    parts = [tf.constant(np.split(array, 2, axis=1)) for array in (x, mask, upstream)]

    def step(index):
        x, mask, upstream = (part[index[0]] for part in parts)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
            loss = tf.reduce_sum(y * upstream)
        return y, tape.gradient(loss, x)

    ids = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.constant([context.replica_id_in_sync_group])
    )
    found = tf.function(lambda ids: mirrored.run(step, (ids,)))(ids)
    found = [np.concatenate(mirrored.experimental_local_results(v), axis=1) for v in found]
    found += [layer.moving_mean.numpy(), layer.moving_variance.numpy()]
    for ours, expected in zip(found, masked_batch_norm(x, mask, upstream), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_synchronized_batch_norm_in_bfloat16(mirrored):
    x, upstream = random(4, 3, 5, 2) * 2 + 3, random(4, 3, 5, 2)
    results = []
    for dtype in ("float32", "mixed_bfloat16"):
        with mirrored.scope():
            layer = layers.BatchNormalization(synchronized=True, dtype=dtype)
            layer.build(x.shape)
        halves, upstreams = np.split(x, 2), np.split(upstream, 2)
        if dtype == "mixed_bfloat16":
            upstreams = [tf.cast(part, "bfloat16") for part in upstreams]
        outputs, input_gradients, gradients = train_on_two(mirrored, layer, halves, upstreams)
        assert all(y.dtype == dtype.removeprefix("mixed_") for y in outputs)
        parts = [np.concatenate(outputs), np.concatenate(input_gradients), *gradients]
        results.append([np.asarray(part, "float32") for part in parts])
    for exact, rounded in zip(*results, strict=True):
        np.testing.assert_allclose(rounded, exact, rtol=0.05, atol=0.05)


def test_batch_norm_without_synchronization_reports_the_mean_of_the_replicas(mirrored):
    halves = np.split(random(4, 3, 5, 2) + 3, 2)
    with mirrored.scope():
        layer = layers.BatchNormalization()
        layer.build((None, None, None, 2))
    train_on_two(mirrored, layer, halves, np.ones_like(halves))
    mean = 0.1 * np.mean([half.mean((0, 1, 2)) for half in halves], axis=0)
    variance = 0.9 + 0.1 * np.mean([half.var((0, 1, 2)) for half in halves], axis=0)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 9), (7, 12)])
@pytest.mark.parametrize(
    "kernel, stride, rate", [(3, 2, 1), (3, 1, 2), (1, 2, 1), (5, 2, 1), (3, 1, 1)]
)
def test_convolution_pads_both_sides_equally(size, kernel, stride, rate):
    x = random(2, *size, 3)
    layer = layers.Conv2D(4, kernel, strides=stride, dilation_rate=rate)
    outputs = layer(x)
    margin = rate * (kernel - 1) // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    weights = layer.kernel.numpy()
    rows, columns = (-(-extent // stride) for extent in size)
    expected = np.zeros((2, rows, columns, 4), "float32")
    for i, j in itertools.product(range(rows), range(columns)):
        top, left = i * stride, j * stride
        window = padded[:, top : top + rate * kernel : rate, left : left + rate * kernel : rate]
        expected[:, i, j] = np.einsum("bhwc,hwcd->bd", window[:, :kernel, :kernel], weights)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == expected.shape
    assert layer.compute_output_shape((None, None, size[1], 3)) == (None, None, columns, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel_size": 2}, "padding='valid'"),
        ({"kernel_size": 3, "data_format": "channels_first"}, "channels_last"),
    ],
)
def test_convolution_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.Conv2D(4, **arguments)


def test_conv_norm_is_its_parts():
    x, residual = random(2, 6, 7, 3), random(2, 3, 4, 5)
    layer = layers.ConvNorm(5, 3, strides=2, use_bias=True, name="unit")
    outputs = layer(x, residual=residual, training=False)
    layer.normalization.moving_mean.assign(random(5))
    layer.convolution.bias.assign(random(5))
    outputs = layer(x, residual=residual, training=False)
    expected = np.maximum(layer.normalization(layer.convolution(x)).numpy() + residual, 0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert [weight.path for weight in layer.weights[:3]] == [
        "unit/convolution/kernel",
        "unit/convolution/bias",
        "unit/normalization/gamma",
    ]


def bilinear_matrix(input_size, output_size, align_corners):
    """PyTorch's sampling along one axis, as a matrix `(output_size, input_size)`."""
    matrix = np.zeros((output_size, input_size))
    for row in range(output_size):
        if align_corners:
            point = row * (input_size - 1) / (output_size - 1) if output_size > 1 else 0.0
        else:
            point = (row + 0.5) * input_size / output_size - 0.5
        point = min(max(point, 0.0), input_size - 1)
        low = int(point)
        matrix[row, low] += 1 - (point - low)
        matrix[row, min(low + 1, input_size - 1)] += point - low
    return matrix


SIZES = [((4, 5), (8, 15)), ((5, 3), (9, 7)), ((6, 7), (3, 3)), ((3, 2), (1, 1)), ((1, 1), (4, 2))]


@pytest.mark.parametrize("size, new_size", SIZES)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("how", ["static", "dynamic", "other backends"])
def test_bilinear_resize_and_its_gradient(size, new_size, align_corners, how):
    x, upstream = random(2, *size, 3), random(2, *new_size, 3)
    matrices = [bilinear_matrix(a, b, align_corners) for a, b in zip(size, new_size, strict=True)]
    layer = layers.ResizeLike(align_corners=align_corners)
    unknown = tf.TensorSpec((None, None, None, 3))
    function = {
        "static": lambda x, like: layer(x, like=like),
        "dynamic": tf.function(lambda x, like: layer(x, like=like), input_signature=[unknown] * 2),
        "other backends": lambda x, like: layers.resizing._resize_by_gathering(
            x, like.shape[1:3], "bilinear", align_corners
        ),
    }[how]
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x, upstream)
        loss = tf.reduce_sum(y * upstream)
    expected = np.einsum("ph,qw,bhwc->bpqc", *matrices, x.numpy())
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    expected = np.einsum("ph,qw,bpqc->bhwc", *matrices, upstream)
    np.testing.assert_allclose(tape.gradient(loss, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, new_size", SIZES)
def test_nearest_resize(size, new_size):
    labels = RANDOM.integers(0, 255, (2, *size, 1)).astype("int32")
    rows, columns = (np.arange(b) * a // b for a, b in zip(size, new_size, strict=True))
    expected = labels[:, rows][:, :, columns]
    np.testing.assert_array_equal(
        layers.resize(labels, new_size, interpolation="nearest"), expected
    )
    gathered = layers.resizing._resize_by_gathering(labels, new_size, "nearest", False)
    np.testing.assert_array_equal(gathered, expected)


def test_resize_in_bfloat16_with_gradient():
    x = tf.Variable(random(1, 4, 5, 2))
    layer = layers.ResizeLike(dtype="mixed_bfloat16")
    with tf.GradientTape() as tape:
        y = layer(x, like=np.zeros((1, 8, 10, 1), "float32"))
        loss = tf.reduce_sum(tf.cast(y, "float32"))
    assert y.dtype == "bfloat16"
    # Doubling without aligned corners spreads each pixel over four, including at the borders.
    np.testing.assert_allclose(tape.gradient(loss, x), np.full((1, 4, 5, 2), 4.0), rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_resize_of_other_dtypes_under_xla(dtype, interpolation):
    """XLA's gradient of bilinear resizing was wrong for every dtype but float32."""
    matrices = [bilinear_matrix(a, b, False) for a, b in ((3, 6), (4, 8))]
    if interpolation == "nearest":
        matrices = [np.eye(n).repeat(2, axis=0) for n in (3, 4)]
    x, upstream = random(1, 3, 4, 2), random(1, 6, 8, 2)

    @tf.function(jit_compile=True, autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layers.resize(x, (6, 8), interpolation=interpolation)
            loss = tf.reduce_sum(tf.cast(y, "float32") * upstream)
        return y, tape.gradient(loss, x)

    y, gradient = run(tf.constant(x, dtype))
    assert y.dtype == gradient.dtype == dtype
    expected = np.einsum("ph,qw,bhwc->bpqc", *matrices, x)
    np.testing.assert_allclose(tf.cast(y, "float64"), expected, atol=0.02)
    expected = np.einsum("ph,qw,bpqc->bhwc", *matrices, upstream)
    np.testing.assert_allclose(tf.cast(gradient, "float64"), expected, atol=0.05)


def test_resize_refuses():
    with pytest.raises(ValueError, match="'bilinear' or 'nearest'"):
        layers.resize(random(1, 2, 2, 1), (4, 4), interpolation="cubic")
    with pytest.raises(ValueError, match="align_corners"):
        layers.ResizeLike(interpolation="nearest", align_corners=True)


def test_resize_and_sum_by_hand():
    fine = np.array([[1.0, -2.0], [3.0, -9.0]], "float32").reshape((1, 2, 2, 1))
    coarse = np.full((1, 1, 1, 1), 1.5, "float32")
    sums = layers.ResizeAndSum(0)([fine, coarse])
    np.testing.assert_allclose(sums[0, :, :, 0], [[2.5, 0.0], [4.5, 0.0]])
    sums = layers.ResizeAndSum(1, relu=False)([fine, fine])
    np.testing.assert_allclose(sums, 2 * fine)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_image_normalization(dtype, policy):
    image = np.array([[[[0, 128, 255]]]], dtype)
    normalized = layers.ImageNormalization(dtype=policy)(image)
    assert normalized.dtype == policy.removeprefix("mixed_")
    # Torchvision's statistics, which are in units of 0 to 1.
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    rtol = 1e-5 if policy == "float32" else 2**-8
    np.testing.assert_allclose(tf.cast(normalized, "float32"), expected, rtol=rtol)


def test_unit_normalization_also_of_zero():
    x = tf.constant([[3.0, 4.0], [0.0, 0.0], [1e18, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layers.UnitNormalization()(x)
    np.testing.assert_allclose(y, [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]], rtol=1e-6)
    assert np.isfinite(tape.gradient(y, x)).all()
    half = layers.UnitNormalization()(tf.cast(x, "bfloat16"))
    assert half.dtype == "float32"
    np.testing.assert_allclose(tf.norm(half, axis=-1), [1.0, 0.0, 1.0], rtol=1e-6)
    half = layers.UnitNormalization(dtype="bfloat16")(x)
    assert half.dtype == "bfloat16"


def test_gradient_of_unit_normalization():
    """`(g - y (y . g)) / |x|`, or `g / epsilon` where the norm is below epsilon."""
    x = np.array([[3.0, 4.0, 0.0], [1.0, -2.0, 2.0], [1e-5, 0.0, 0.0]], "float32")
    g = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0], [1.0, 2.0, 3.0]], "float32")
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(layers.UnitNormalization(epsilon=1e-3)(inputs) * g)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    y = x / norm
    expected = (g - y * np.sum(y * g, axis=-1, keepdims=True)) / norm
    expected[2] = g[2] / 1e-3
    np.testing.assert_allclose(tape.gradient(loss, inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, (3, 5), strides=2, use_bias=True),
        layers.BatchNormalization(momentum=0.7, synchronized=True),
        layers.ConvNorm(4, 3, strides=2, use_bias=True, relu=False, synchronized=True),
        layers.ConvNorm(4, 3, dilation_rate=2, dtype="mixed_bfloat16"),
        layers.ResizeLike(interpolation="nearest"),
        layers.ResizeAndSum(1, align_corners=True, relu=False),
        layers.ImageNormalization(mean=(1.0, 2.0, 3.0)),
        layers.UnitNormalization(epsilon=1e-3),
    ],
    ids=lambda layer: layer.name,
)
def test_config_round_trip(layer):
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()


def test_ceil_divide():
    sizes = np.arange(20)
    for divisor in (1, 3, 8):
        expected = np.ceil(sizes / divisor)
        np.testing.assert_array_equal(
            [layers.ceil_divide(int(n), divisor) for n in sizes], expected
        )
        np.testing.assert_array_equal(layers.ceil_divide(tf.constant(sizes), divisor), expected)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_single_value_is_normalized_by_the_moving_statistics(batch, known):
    """A single value is normalized as in inference: minus its own batch mean it would be 0."""
    layer = layers.BatchNormalization(moving_if_single=True)
    plain = layers.BatchNormalization()
    for x in (layer, plain):
        x.build((None, 1, 1, 4))
        for weight, value in zip(x.weights, [1.5, 0.3, -0.2, 2.0], strict=True):
            weight.assign(value + np.arange(4.0) / 10)
    x = random(batch, 1, 1, 4)
    signature = [tf.TensorSpec((batch if known else None, 1, 1, 4))]
    before = layer.get_weights()
    expected = layer(x) if batch == 1 else plain(x, training=True)

    @tf.function(input_signature=signature, autograph=False)
    def train(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, x)

    y, gradient = train(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    if batch == 1:
        gamma, _, _, variance = before
        np.testing.assert_allclose(gradient[0, 0, 0], gamma / np.sqrt(variance + 1e-5), rtol=1e-5)
        for value, other in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(value, other)
    else:
        for value, other in zip(layer.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 1, 4), (2, 1, 1, 4), (1, 1, 3, 4)])
def test_several_values_are_normalized_by_their_own_statistics(shape):
    layer, plain = layers.BatchNormalization(moving_if_single=True), layers.BatchNormalization()
    x = random(*shape)
    np.testing.assert_allclose(layer(x, training=True), plain(x, training=True), atol=1e-6)


def test_single_values_of_two_replicas_that_share_are_two(mirrored):
    with mirrored.scope():
        layer = layers.BatchNormalization(synchronized=True, moving_if_single=True)
        layer.build((None, 1, 1, 4))
    x = random(2, 1, 1, 4)
    whole = layers.BatchNormalization()(x, training=True)
    parts = mirrored.experimental_distribute_values_from_function(
        lambda context: x[context.replica_id_in_sync_group :][:1]
    )
    result = mirrored.run(tf.function(lambda x: layer(x, training=True)), args=(parts,))
    result = np.concatenate(mirrored.experimental_local_results(result))
    np.testing.assert_allclose(result, whole, rtol=1e-4, atol=1e-5)
