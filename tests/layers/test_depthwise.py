import itertools

import numpy as np
import pytest
import tensorflow as tf

from kseg.layers import Conv2D, ConvNorm
from kseg.layers.depthwise import DepthwiseConv2D, DepthwiseConvNorm

RANDOM = np.random.default_rng(5)


def random(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def convolve(x, kernel, stride, rate=1):
    """A loop over output and kernel positions, with one weight per channel."""
    size = kernel.shape[0]
    # TensorFlow's "same": the total padding needed, with the odd zero at the end.
    needed = [(-(-n // stride) - 1) * stride + rate * (size - 1) + 1 - n for n in x.shape[1:3]]
    top, left = (max(n, 0) // 2 for n in needed)
    height, width = (-(-n // stride) for n in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, x.shape[3]))
    for row, column, i, j in itertools.product(*map(range, (height, width, size, size))):
        source = row * stride + i * rate - top, column * stride + j * rate - left
        if 0 <= source[0] < x.shape[1] and 0 <= source[1] < x.shape[2]:
            y[:, row, column] += x[:, source[0], source[1]] * kernel[i, j, :, 0]
    return y


@pytest.mark.parametrize("implementation", ["grouped", "shifted", None])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride, rate", [(1, 1), (2, 1), (1, 2)])
def test_equals_a_loop(size, stride, rate, implementation):
    layer = DepthwiseConv2D(size, strides=stride, dilation_rate=rate, implementation=implementation)
    for shape in ((2, 8, 6, 3), (1, 7, 9, 3), (1, 4, 5, 3)):
        x = random(*shape)
        y = layer(x)
        expected = convolve(x, np.asarray(layer.kernel), stride, rate)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        assert layer.compute_output_shape(shape) == y.shape
    assert layer.kernel.shape == (size, size, 3, 1)
    assert len(layer.weights) == 1


@pytest.mark.parametrize("implementation", ["grouped", "shifted"])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("shape", [(8, 12), (7, 10), (9, 13), (11, 6)])
def test_removed_stride_keeps_the_strided_outputs(shape, rate, size, implementation):
    layer = DepthwiseConv2D(
        size, dilation_rate=rate, removed_stride=True, implementation=implementation
    )
    x = random(1, *shape, 2)
    y = layer(x)
    assert y.shape == x.shape
    expected = convolve(x[:, ::rate, ::rate], np.asarray(layer.kernel), 2)
    np.testing.assert_allclose(y[:, :: 2 * rate, :: 2 * rate], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride, rate", [(1, 1), (2, 1), (1, 2)])
def test_implementations_have_equal_gradients(stride, rate):
    x, gradients = tf.constant(random(2, 9, 8, 4)), []
    kernel, upstream = random(5, 5, 4, 1), None
    for implementation in ("grouped", "shifted"):
        layer = DepthwiseConv2D(
            5, strides=stride, dilation_rate=rate, implementation=implementation
        )
        layer.build(x.shape)
        layer.kernel.assign(kernel)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            upstream = random(*y.shape) if upstream is None else upstream
            loss = tf.reduce_sum(y * upstream)
        gradients.append(tape.gradient(loss, [x, layer.kernel.value]))
    for grouped, shifted in zip(*gradients, strict=True):
        np.testing.assert_allclose(shifted, grouped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["grouped", "shifted"])
@pytest.mark.parametrize(
    "arguments", [{"strides": 2}, {"dilation_rate": 2, "removed_stride": True}]
)
def test_size_known_at_run_time(implementation, arguments):
    layer = DepthwiseConvNorm(3, implementation=implementation, **arguments)
    layer.build((None, None, None, 2))
    signature = [tf.TensorSpec((None, None, None, 2))]
    function = tf.function(lambda x: layer(x), input_signature=signature, autograph=False)
    for size in ((6, 7), (5, 4)):
        x = random(1, *size, 2)
        np.testing.assert_allclose(function(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["grouped", "shifted"])
def test_bfloat16(implementation):
    layer = DepthwiseConvNorm(5, implementation=implementation, dtype="mixed_bfloat16")
    plain = DepthwiseConvNorm(5, implementation=implementation)
    x = random(2, 8, 8, 3)
    layer.build(x.shape)
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    y = layer(x)
    assert y.dtype == "bfloat16"
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    np.testing.assert_allclose(tf.cast(y, "float32"), plain(x), rtol=0.03, atol=0.03)


def test_norm_and_relu6():
    layer = DepthwiseConvNorm(3, max_value=6.0, epsilon=1e-3)
    x = 20 * random(1, 4, 4, 2)
    layer.build(x.shape)
    layer.normalization.moving_variance.assign([0.5, 2.0])
    plain = convolve(x, np.asarray(layer.convolution.kernel), 1)
    expected = np.clip(plain / np.sqrt(np.array([0.5, 2.0]) + 1e-3), 0, 6)
    assert (expected == 6).any()
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
    rebuilt = DepthwiseConvNorm.from_config(layer.get_config())
    assert rebuilt.get_config() == layer.get_config()


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (6, 7)])
def test_a_full_convolution_padded_as_in_tensorflow(size):
    layer = Conv2D(4, 3, strides=2, tensorflow_padding=True)
    x = random(1, *size, 2)
    y = layer(x)
    kernel = np.asarray(layer.kernel)
    expected = sum(convolve(x[..., [i] * 4], kernel[:, :, i, :, None], 2) for i in range(2))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == y.shape


def test_config_of_the_whole_layer():
    layer = ConvNorm(4, 3, tensorflow_padding=True, max_value=6.0, epsilon=0.1)
    rebuilt = ConvNorm.from_config(layer.get_config())
    assert rebuilt.convolution.tensorflow_padding
    assert (rebuilt.max_value, rebuilt.normalization.epsilon) == (6.0, 0.1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel_size": 4}, r"Received: kernel_size=\(4, 4\)"),
        ({"kernel_size": 3, "strides": 3}, r"strides=\(3, 3\)"),
        ({"kernel_size": 3, "strides": 2, "removed_stride": True}, r"strides=\(2, 2\)"),
        ({"kernel_size": 3, "implementation": "x"}, "'grouped', 'shifted'.*implementation='x'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DepthwiseConv2D(**arguments)
