import keras
import numpy as np
import pytest

from kseg.heads.projection import projection


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_projection_is_conv_relu_norm_then_linear(layers):
    inputs = keras.Input((None, None, 4))
    options = {} if layers == 2 else {"hidden_layers": layers}
    outputs = projection(inputs, embedding_dim=3, name="embedding_c2", **options)
    model = keras.Model(inputs, outputs)
    weights = {weight.path: weight for weight in model.weights}
    rng = np.random.default_rng(0)
    for weight in weights.values():
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) * rng.choice([-1, 1], weight.shape[-1:]))
    for index in range(1, layers + 1):
        variance = weights[f"embedding_c2_norm{index}/moving_variance"]
        variance.assign(np.abs(variance.numpy()))
    values = {path.removeprefix("embedding_c2_"): w.numpy() for path, w in weights.items()}

    x = rng.normal(size=(2, 3, 5, 4))
    expected = x
    for index in range(1, layers + 1):
        kernel, bias = values[f"conv{index}/kernel"][0, 0], values[f"conv{index}/bias"]
        expected = np.maximum(expected @ kernel + bias, 0)
        norm = {key: values[f"norm{index}/{key}"] for key in ("gamma", "beta", "moving_mean")}
        std = np.sqrt(values[f"norm{index}/moving_variance"] + 1e-5)
        expected = norm["gamma"] * (expected - norm["moving_mean"]) / std + norm["beta"]
    expected = expected @ values["linear/kernel"][0, 0] + values["linear/bias"]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_one_hidden_layer_has_the_parameters_of_contextrast():
    # 70.39 M - 70.01 M in Table 7 of its supplement.
    parameters = 0
    for channels in (48, 96, 192, 384):
        inputs = keras.Input((None, None, channels))
        model = keras.Model(inputs, projection(inputs, hidden_layers=1, name="embedding"))
        parameters += sum(weight.shape.num_elements() for weight in model.trainable_weights)
    assert round(parameters / 1e6, 2) == 0.38
