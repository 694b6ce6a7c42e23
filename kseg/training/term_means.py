"""The means of named loss terms, as one Keras metric."""

import keras
import tensorflow as tf


class TermMeans(keras.metrics.Metric):
    """Weighted means of scalars whose names are known only when a step is traced.

    Under a strategy no variable can be created at that time, so the number of names is limited.

    Args:
        capacity: int, the largest number of names.
        name: str.
    """

    def __init__(self, capacity=64, name="terms", **kwargs):
        super().__init__(name=name, **kwargs)
        self.capacity = capacity
        self.names = ()
        self.totals = self.add_variable((capacity,), "zeros", aggregation="sum", name="totals")
        self.weight = self.add_variable((), "zeros", aggregation="sum", name="weight")

    def update_state(self, values, sample_weight=1.0):
        """Adds a step.

        Args:
            values: dict from name to float scalar, the same names in every step.
            sample_weight: float scalar >= 0, the weight of the step.

        Raises:
            ValueError: if there are more names than `capacity`.
        """
        if len(values) > self.capacity:
            raise ValueError(
                f"A training has room for {self.capacity} terms. Received: {len(values)}. Combine "
                "some of them into one loss"
            )
        self.names = tuple(values)
        weight = tf.cast(sample_weight, "float32")
        terms = tf.stack([tf.cast(value, "float32") * weight for value in values.values()])
        self.totals.assign_add(tf.pad(terms, [[0, self.capacity - len(values)]]))
        self.weight.assign_add(weight)

    def result(self):
        """Returns a dict from name to mean, float32 scalars; 0 if the weights add up to 0."""
        totals, weight = (tf.convert_to_tensor(v.value) for v in (self.totals, self.weight))
        means = tf.unstack(tf.math.divide_no_nan(totals, weight))
        return dict(zip(self.names, means, strict=False))
