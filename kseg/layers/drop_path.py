"""Stochastic depth, with the same draws for one replica and for several."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import keras
from keras import ops

from kseg.backend import replicas


@keras.saving.register_keras_serializable(package="kseg")
class DropPath(keras.layers.Layer):
    """Drops the residual branch of whole samples in training (Huang et al., ECCV 2016).

    Args:
        rate: float in [0, 1), the probability of setting a sample to 0. The others are multiplied
            by `1 / (1 - rate)`, which preserves the expected value.
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
    """Draws the factors by which stochastic depth multiplies samples of residual branches.

    Args:
        inputs: tensor `(batch, height, width, channels)` of this replica.
        rate: float in [0, 1).
        seed_generator: `keras.random.SeedGenerator`, in the same state on all replicas: each draws
            for the global batch and keeps its own part.
        branches: int, number of branches to draw for.

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
