import keras
import numpy as np

from kseg.heads.projection import projection


def test_projection_is_conv_relu_norm_twice_then_linear():
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, projection(inputs, embedding_dim=3, name="embedding_c2"))
    weights = {weight.path: weight for weight in model.weights}
    rng = np.random.default_rng(0)
    for weight in weights.values():
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) * rng.choice([-1, 1], weight.shape[-1:]))
    for index in (1, 2):
        variance = weights[f"embedding_c2_norm{index}/moving_variance"]
        variance.assign(np.abs(variance.numpy()))
    values = {path.removeprefix("embedding_c2_"): w.numpy() for path, w in weights.items()}

    x = rng.normal(size=(2, 3, 5, 4))
    expected = x
    for index in (1, 2):
        kernel, bias = values[f"conv{index}/kernel"][0, 0], values[f"conv{index}/bias"]
        expected = np.maximum(expected @ kernel + bias, 0)
        norm = {key: values[f"norm{index}/{key}"] for key in ("gamma", "beta", "moving_mean")}
        std = np.sqrt(values[f"norm{index}/moving_variance"] + 1e-5)
        expected = norm["gamma"] * (expected - norm["moving_mean"]) / std + norm["beta"]
    expected = expected @ values["linear/kernel"][0, 0] + values["linear/bias"]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
