"""`fit` and `evaluate` of a trainer: data in whole batches where objectives need them."""

import inspect

import tensorflow as tf

from kseg.training import batches


class TrainerData:
    """Mix-in for a Keras model with `objectives`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._replica_sizes = {"fit": None, "evaluate": None}
        self._shows_mean_iou = False

    def fit(self, *args, **kwargs):
        """Fits as in Keras; with objectives, drops an incomplete last batch of arrays."""
        arguments = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        x, size = arguments.get("x"), arguments.get("batch_size")
        validation = arguments.get("validation_data")
        if self.objectives and batches.are_arrays(x) and arguments.get("class_weight") is None:
            parts = (x, arguments.pop("y", None), arguments.pop("sample_weight", None))
            fraction = arguments.pop("validation_split", 0.0)
            if fraction and validation is None:
                parts, validation = batches.split_arrays(parts, fraction)
            arguments.pop("batch_size", None)
            shuffle = bool(arguments.pop("shuffle", True))
            arguments["x"] = batches.dataset_of_arrays(*parts, size, shuffle=shuffle, whole=True)
        if validation is not None:
            size = arguments.get("validation_batch_size") or size
            arguments["validation_data"] = self._evaluation_data(validation, size)
        self._set_size("fit", arguments.get("x"))
        return super().fit(**arguments)

    def evaluate(self, *args, **kwargs):
        """Evaluates as in Keras."""
        cached = {k: kwargs.pop(k) for k in list(kwargs) if k.startswith("_")}  # From `fit`.
        arguments = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        if not cached:
            parts = tuple(arguments.pop(name, None) for name in ("x", "y", "sample_weight"))
            data = self._evaluation_data(parts, arguments.get("batch_size"))
            if isinstance(data, tf.data.Dataset):
                arguments.pop("batch_size", None)
                data = (data,)
            arguments.update(zip(("x", "y", "sample_weight"), data, strict=False))
        self._shows_mean_iou = True
        try:
            return super().evaluate(**arguments, **cached)
        finally:
            self._shows_mean_iou = False

    def _evaluation_data(self, data, batch_size):
        """Prepares evaluation data, in whole batches if objectives or replicas need them."""
        parts = data if isinstance(data, tuple | list) else (data,)
        x, y, weights = (*parts, None, None)[:3]
        count = self.distribute_strategy.num_replicas_in_sync
        if self.objectives or count > 1:
            if batches.are_arrays(x):
                x = batches.dataset_of_arrays(x, y, weights, batch_size)
            if isinstance(x, tf.data.Dataset):
                x = data = batches.padded(x, count)
        self._set_size("evaluate", x)
        return data

    def _set_size(self, use, x):
        """Stores the static size of each replica's batches; a new size needs a new graph."""
        count = self.distribute_strategy.num_replicas_in_sync
        if count > 1 and self.steps_per_execution > 1:
            raise ValueError(
                "`steps_per_execution` needs a single replica: with several, the loop of Keras "
                f"fails in TensorFlow. Received: {self.steps_per_execution} and {count} replicas"
            )
        size = batches.replica_size(x, count)
        if size != self._replica_sizes[use]:
            self._replica_sizes[use] = size
            self.train_function, self.test_function = (
                (None, self.test_function) if use == "fit" else (self.train_function, None)
            )
