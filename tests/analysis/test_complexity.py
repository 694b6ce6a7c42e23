import keras
import tensorflow as tf

from kseg.analysis.complexity import count_flops, count_parameters
from kseg.layers import Conv2D


def test_a_convolution_by_hand():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, Conv2D(5, 3, strides=2, use_bias=True)(inputs))
    assert count_parameters(model) == 3 * 3 * 3 * 5 + 5
    spec = tf.TensorSpec((2, 8, 6, 3))
    # 2 x 4 x 3 outputs of 5 channels, each 27 products and sums, and one sum for the bias.
    assert count_flops(model, spec) == 2 * 4 * 3 * 5 * (2 * 27 + 1)


def test_frozen_weights_do_not_count():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(3)])
    model.layers[0].trainable = False
    assert count_parameters(model) == 2 * 3 + 3
