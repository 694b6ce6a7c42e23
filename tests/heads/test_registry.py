import keras
import numpy as np
import pytest

from kseg.heads import build_head


def features():
    return {f"c{level}": keras.Input((None, None, 2)) for level in (2, 3, 4, 5)}


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"name='ocrr'.*'hrnet', 'ocr'"):
        build_head("ocrr", features(), 3)


def test_number_of_classes():
    with pytest.raises(ValueError, match="num_classes=0"):
        build_head("ocr", features(), 0)


def test_unknown_argument():
    with pytest.raises(TypeError, match="widht"):
        build_head("ocr", features(), 3, widht=2)


def test_a_missing_stage():
    stages = features()
    del stages["c2"]
    with pytest.raises(ValueError, match=r"Received: \['c3', 'c4', 'c5'\], without \['c2'\]"):
        build_head("upernet", stages, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "pooled"),
    [
        ("deeplabv3", {"aspp_channels": 4, "rates": (1, 2, 3)}, "deeplabv3_aspp_pool"),
        ("upernet", {}, "upernet_psp0"),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_training_on_one_image_sees_what_inference_will(name, arguments, pooled, batch):
    """A batch norm over a single value would return its offset alone, with a variance of 0."""
    stages = {
        f"c{i}": keras.Input((2 ** (6 - i), 2 ** (6 - i), 4), batch_size=batch)
        for i in (2, 3, 4, 5)
    }
    outputs = build_head(name, stages, 3, channels=4, aux_channels=4, **arguments)
    model = keras.Model(stages, outputs)
    layer = model.get_layer(pooled)
    inside = keras.Model(stages, layer.output)
    rng = np.random.default_rng(0)
    images = {stage: rng.normal(size=x.shape).astype("float32") for stage, x in stages.items()}
    before = [weight.numpy() for weight in layer.normalization.non_trainable_weights]
    trained, predicted = (inside(images, training=training).numpy() for training in (True, False))
    after = [weight.numpy() for weight in layer.normalization.non_trainable_weights]
    same = all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
    assert same == (batch == 1)
    if batch == 1:
        np.testing.assert_allclose(trained, predicted, atol=1e-6)
        assert trained.std() > 0
