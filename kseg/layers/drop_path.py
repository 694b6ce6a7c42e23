"""Stochastic depth."""

# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import keras
from keras import ops

from kseg.backend import replicas


@keras.saving.register_keras_serializable(package="kseg")
class DropPath(keras.layers.Layer):
    """Drops the residual branch of whole samples in training (Huang et al., ECCV 2016).

    Args:
        rate: float in [0, 1), how likely a sample is set to 0. What is kept is scaled up by
            `1 / (1 - rate)`, which keeps the expected value.
        seed: int or None.

    Call arguments:
        inputs: float tensor `(batch, ...)`.
        training: bool.

    Returns:
        float tensor like `inputs`.
    """

    def __init__(self, rate, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=None):
        if not training or self.rate == 0:
            return inputs
        scales = drop_path_scales(inputs, self.rate, self.seed_generator)
        return inputs * ops.cast(scales[0], inputs.dtype)

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def drop_path_scales(inputs, rate, seed_generator, branches=1):
    """Draws by what stochastic depth multiplies the samples of residual branches.

    Args:
        inputs: tensor `(batch, height, width, channels)`, this replica's.
        rate: float in [0, 1).
        seed_generator: `keras.random.SeedGenerator`, in the same state on all replicas, which draw
            for the global batch and take their part.
        branches: int, drawn at once.

    Returns:
        float32 tensor `(branches, batch, 1, 1, 1)`: 0, or `1 / (1 - rate)`.
    """
    kept, batch = 1.0 - rate, ops.shape(inputs)[0]
    shape = (branches, replicas.num_replicas() * batch, 1, 1, 1)
    draw = keras.random.uniform(shape, seed=seed_generator)
    if replicas.num_replicas() > 1:
        start = (0, replicas.replica_id() * batch, 0, 0, 0)
        draw = ops.slice(draw, start, (branches, batch, 1, 1, 1))
    return ops.cast(draw < kept, "float32") / kept
