# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import keras


@keras.saving.register_keras_serializable(package="kseg")
class Backbone(keras.Model):
    """A functional model from normalised images to feature maps, which knows their strides.

    Its input is a float tensor `(batch, height, width, 3)`, its output a dict
    `{"c2": ..., "c5": ...}` of float tensors `(batch, ceil(height / stride),
    ceil(width / stride), channels)`, from fine to coarse.

    Args:
        *args, **kwargs: as in `keras.Model`: `inputs`, `outputs`, `name`.
        strides: dict from the name of each output to its stride in pixels of the input.
    """

    # Keras rebuilds a functional subclass only if its constructor takes (*args, **kwargs).
    def __init__(self, *args, strides=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.strides = dict(strides or {})

    def get_config(self):
        return {**super().get_config(), "strides": dict(self.strides)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        strides = config.pop("strides")
        backbone = super().from_config(config, custom_objects=custom_objects)
        backbone.strides = strides
        return backbone
