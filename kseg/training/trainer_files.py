"""Files and printed text of a trainer: its configuration, state and summary."""

import keras
from keras import ops

from kseg.runs.checkpoints import random_states
from kseg.segmenters import inference_model
from kseg.training.summary import summary_of_terms


class TrainerFiles:
    """Mix-in for a Keras model with the attributes of a `SegmentationTrainer`."""

    def get_config(self):
        """Returns the constructor's arguments; `from_config` takes them."""
        save = keras.saving.serialize_keras_object
        losses = self._given_losses
        if losses is not None:
            losses = {name: [save(loss), weight] for name, (loss, weight) in losses.items()}
        objectives = [
            [save(objective), save(weight) if callable(weight) else weight]
            for objective, weight in zip(self.objectives, self.objective_weights, strict=True)
        ]
        return {
            **super().get_config(),
            "segmenter": save(self.segmenter),
            "losses": losses,
            "objectives": objectives,
            "clip_norm": self.clip_norm,
            "distortion": None if self.distortion is None else save(self.distortion),
            "averaged": None if self.averaged is None else save(self.averaged),
            "ema_decay": self.ema_decay,
            "accumulate": self.accumulate,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the trainer from the result of `get_config`."""

        def load(value):
            if isinstance(value, dict):
                return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
            return value

        config = dict(config)
        if config["losses"] is not None:
            pairs = config["losses"].items()
            config["losses"] = {name: (load(loss), weight) for name, (loss, weight) in pairs}
        config["objectives"] = [(load(o), load(weight)) for o, weight in config["objectives"]]
        for name in ("segmenter", "distortion", "averaged"):
            config[name] = load(config[name])
        return cls(**config)

    def _random_states(self):
        """Returns the states of all random generators, which Keras does not save."""
        layers = (self.segmenter, *self.objectives)
        return [v for layer in layers for v in random_states(layer)]

    def save_own_variables(self, store):
        """Writes the state that belongs to no layer."""
        for number, state in enumerate(self._random_states()):
            store[f"random_state_{number}"] = ops.convert_to_numpy(state)

    def load_own_variables(self, store):
        """Reads the state written by `save_own_variables`."""
        for number, state in enumerate(self._random_states()):
            state.assign(store[f"random_state_{number}"])

    def summary(self, line_length=None, positions=None, print_fn=None, **arguments):
        """Prints Keras' summary, followed by all terms, their weights, and memory banks."""
        super().summary(line_length, positions, print_fn, **arguments)
        for line in summary_of_terms(self):
            (print_fn or print)(line)

    def export(self, filepath, format="tf_saved_model", **arguments):
        """Exports, as in Keras, the model from images to what `predict` returns."""
        inference_model(self.evaluated).export(filepath, format=format, **arguments)

    def get_compile_config(self):
        """Returns the arguments of `compile`; `compile_from_config` takes them."""
        config = super().get_compile_config()
        if config:
            loss, weights = self._compiled_loss
            config["loss"] = keras.saving.serialize_keras_object(loss)
            config["loss_weights"] = weights
        return config

    def compile_from_config(self, config):
        """Compiles with the arguments that were saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
