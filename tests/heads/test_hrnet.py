import keras
import numpy as np

from kseg.heads import build_head


def test_a_constant_map_gives_the_same_logits_everywhere():
    features = {
        level: keras.Input((None, None, channels))
        for level, channels in {"c2": 2, "c3": 3, "c4": 4, "c5": 5}.items()
    }
    outputs = build_head("hrnet", features, 6)
    model = keras.Model(features, outputs)
    sizes = {"c2": (9, 7), "c3": (5, 4), "c4": (3, 2), "c5": (2, 1)}
    maps = {
        level: np.ones((2, *size, 1), "float32") * np.arange(1, features[level].shape[-1] + 1)
        for level, size in sizes.items()
    }
    outputs = model(maps)
    assert outputs["features"].shape == (2, 9, 7, 2 + 3 + 4 + 5)
    assert outputs["logits"].shape == (2, 9, 7, 6)
    logits = keras.ops.convert_to_numpy(outputs["logits"])
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:1, :1, :1], logits.shape), rtol=1e-4)
