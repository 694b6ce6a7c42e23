"""`fit` and `evaluate` of a trainer: data in whole batches where objectives need them."""

import inspect

import keras
import tensorflow as tf

from kseg.training import batches


class TrainerData:
    """Mix-in for a Keras model with `objectives`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._replica_sizes = {"fit": None, "evaluate": None}
        self._shows_mean_iou = False

    def fit(self, *args, **kwargs):
        """Fits as in Keras; with objectives, leaves out batches that are smaller than the first."""
        arguments = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        x, size = arguments.get("x"), arguments.get("batch_size")
        validation = arguments.get("validation_data")
        _refuse_class_weight(arguments.get("class_weight"))
        if self.objectives and batches.are_arrays(x):
            parts = (x, arguments.pop("y", None), arguments.pop("sample_weight", None))
            fraction = arguments.pop("validation_split", 0.0)
            if fraction and validation is None:
                parts, validation = batches.split_arrays(parts, fraction)
            arguments.pop("batch_size", None)
            shuffle = bool(arguments.get("shuffle", True))
            arguments["x"] = batches.dataset_of_arrays(*parts, size, shuffle=shuffle, whole=True)
            arguments["shuffle"] = False  # Otherwise Keras warns that it cannot shuffle.
        if validation is not None:
            size = arguments.get("validation_batch_size") or size
            arguments["validation_data"] = self._evaluation_data(validation, size)
        else:  # With `validation_split`, Keras evaluates batches of its own.
            self._store_size("evaluate", None)
        arguments["x"] = self._set_size("fit", arguments.get("x"))
        return super().fit(**arguments)

    def evaluate(self, *args, **kwargs):
        """Evaluates as in Keras."""
        cached = {k: kwargs.pop(k) for k in list(kwargs) if k.startswith("_")}  # From `fit`.
        arguments = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        if not cached:
            names = ("x", "y", "sample_weight")
            parts = tuple(arguments.pop(name, None) for name in names)
            data = self._evaluation_data(parts, arguments.get("batch_size"))
            if isinstance(data[0], tf.data.Dataset):
                arguments.pop("batch_size", None)
            arguments.update(zip(names, data, strict=False))
        self._shows_mean_iou = True
        try:
            return super().evaluate(**arguments, **cached)
        finally:
            self._shows_mean_iou = False

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Takes a step as in Keras; with objectives, a new batch size needs a new graph."""
        _refuse_class_weight(class_weight)
        self._store_size("fit", self._size_of_batch(x))
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Evaluates a batch as in Keras; with objectives, a new batch size needs a new graph."""
        self._store_size("evaluate", self._size_of_batch(x))
        return super().test_on_batch(x, y, sample_weight, return_dict=return_dict)

    def _size_of_batch(self, x):
        return len(keras.tree.flatten(x)[0]) if self.objectives else None

    def _evaluation_data(self, data, batch_size):
        """Prepares evaluation data, in whole batches if objectives or replicas need them.

        Returns:
            tuple: the data in up to three parts, or a single data set.
        """
        parts = tuple(data) if isinstance(data, tuple | list) else (data,)
        count = self.distribute_strategy.num_replicas_in_sync
        if self.objectives or count > 1:
            if batches.are_arrays(parts[0]):
                parts = (batches.dataset_of_arrays(*(*parts, None, None)[:3], batch_size),)
            if isinstance(parts[0], tf.data.Dataset):
                parts = (batches.padded(parts[0], count),)
        return (self._set_size("evaluate", parts[0]), *parts[1:])

    def _set_size(self, use, x):
        """Stores the static size of each replica's batches; returns the data."""
        count = self.distribute_strategy.num_replicas_in_sync
        if count > 1 and self.steps_per_execution > 1:
            raise ValueError(
                "`steps_per_execution` needs a single replica: with several, the loop of Keras "
                f"fails in TensorFlow. Received: {self.steps_per_execution} and {count} replicas"
            )
        x, size = batches.batch_size(x, draw=bool(self.objectives))
        if use == "fit" and self.objectives and size:
            x = batches.without_smaller(x, size)
        self._store_size(use, size // count if size and size % count == 0 else None)
        return x

    def _store_size(self, use, size):
        """Stores the static size of each replica's batches, or None, which is part of a graph."""
        if size != self._replica_sizes[use]:
            self._replica_sizes[use] = size
            self.train_function, self.test_function = (
                (None, self.test_function) if use == "fit" else (self.train_function, None)
            )


def _refuse_class_weight(class_weight):
    """Rejects the class weights of `fit`, which Keras applies to images of one class each."""
    if class_weight is not None:
        raise ValueError(
            "`class_weight` is for images of one class each. Received: "
            f"class_weight={class_weight}. Use a loss with class weights, such as "
            "kseg.losses.CrossEntropy(class_weights=[...]), one for each class"
        )
