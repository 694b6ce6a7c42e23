"""XLA compiles every head in mixed precision, with the gradients of the plain graph.

It is what `train.precision: "mixed_bfloat16"` trains with on a single GPU.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.reduction import global_ratio
from kseg.segmenters import build_segmenter
from tests.tiny_networks import tiny_backbone

HEADS = {
    "hrnet": {},
    "ocr": {"channels": 8, "key_channels": 4, "dropout": 0.0},
    "deeplabv3": {"channels": 8, "aspp_channels": 8, "aux_channels": 8, "dropout": 0.0},
    "upernet": {"channels": 8, "aux_channels": 8, "pool_sizes": [1, 2], "dropout": 0.0},
}


@pytest.mark.parametrize("head", HEADS)
def test_gradients_in_bfloat16(head):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    segmenter = build_segmenter(tiny_backbone(), head, 3, head_arguments=HEADS[head])
    rng = np.random.default_rng(0)
    image = tf.constant(rng.integers(0, 256, (2, 64, 96, 3)), "uint8")
    labels = tf.constant(rng.integers(0, 3, (2, 64, 96)), "int32")

    def value_and_gradients(image, labels):
        with tf.GradientTape() as tape:
            outputs = segmenter(image)  # By the moving statistics, which keep rounding small.
            loss = global_ratio(*cross_entropy(labels, outputs["logits"]))
            if "aux_logits" in outputs:
                loss += 0.4 * global_ratio(*cross_entropy(labels, outputs["aux_logits"]))
        variables = segmenter.trainable_variables
        return loss, [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]

    (loss, plain), (compiled_loss, compiled) = (
        tf.function(value_and_gradients, jit_compile=jit_compile, autograph=False)(image, labels)
        for jit_compile in (False, True)
    )
    np.testing.assert_allclose(compiled_loss, loss, rtol=1e-2)
    plain, compiled = (
        np.concatenate([np.ravel(g) for g in result]) for result in (plain, compiled)
    )
    # Each layer rounds to 8 bits; XLA's wrong gradients of resizing differ by orders of magnitude.
    assert np.linalg.norm(compiled - plain) < 0.1 * np.linalg.norm(plain)
