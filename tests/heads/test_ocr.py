import keras
import numpy as np
import pytest

from kseg.heads.ocr import ObjectAttention, ObjectRegions


def test_object_regions_by_hand():
    # Two pixels; class 0 weights them 3 : 1, class 1 equally.
    pixels = np.array([4.0, 8.0], "float32").reshape((1, 1, 2, 1))
    logits = np.array([[np.log(3.0), 7.0], [0.0, 7.0]], "float32").reshape((1, 1, 2, 2))
    objects = ObjectRegions()(pixels, logits)
    assert objects.shape == (1, 2, 1, 1)
    np.testing.assert_allclose(objects[0, :, 0, 0], [(3 * 4 + 8) / 4, 6.0], rtol=1e-6)


def test_object_regions_of_many_bfloat16_pixels():
    # 2^18 equal weights: their sum in bfloat16 would stop growing after 2^8.
    pixels = keras.ops.ones((1, 512, 512, 1), dtype="bfloat16")
    objects = ObjectRegions()(pixels, keras.ops.zeros((1, 512, 512, 2)))
    assert objects.dtype == "float32"
    np.testing.assert_allclose(objects[0, :, 0, 0], [1.0, 1.0], rtol=1e-4)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_object_attention_by_hand(policy):
    # q . k / sqrt(4) = log 3 and 0: the weights are 3/4 and 1/4.
    query = np.array([np.log(9.0), 0.0, 0.0, 0.0], "float32").reshape((1, 1, 1, 4))
    key = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], "float32").reshape((1, 2, 1, 4))
    value = np.array([[4.0], [8.0]], "float32").reshape((1, 2, 1, 1))
    context = ObjectAttention(dtype=policy)(query, key, value)
    assert context.dtype == policy.removeprefix("mixed_")
    rtol = 1e-6 if policy == "float32" else 2e-2
    np.testing.assert_allclose(np.asarray(context, "float32"), [[[[5.0]]]], rtol=rtol)
