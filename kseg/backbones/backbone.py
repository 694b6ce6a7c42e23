"""The model class of all backbones, which carries strides and normalization through saving."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import keras

from kseg.layers import IMAGENET_MEAN, IMAGENET_STD


@keras.saving.register_keras_serializable(package="kseg")
class Backbone(keras.Model):
    """A functional model from normalized images to feature maps, with known strides.

    The input is a float tensor `(batch, height, width, channels)`, of 3 channels unless the images
    are not RGB, the output a dict
    `{"c2": ..., "c5": ...}` of float tensors `(batch, ceil(height / stride),
    ceil(width / stride), channels)`, from fine to coarse.

    Args:
        *args, **kwargs: as in `keras.Model`: `inputs`, `outputs`, `name`.
        strides: dict from the name of each output to its stride in input pixels.
        mean, std: three floats each, in units of 0 to 255: the normalization that the weights
            expect, which the segmenter applies. Defaults to ImageNet's.
    """

    # Keras rebuilds a functional subclass only if its constructor takes (*args, **kwargs).
    def __init__(self, *args, strides=None, mean=IMAGENET_MEAN, std=IMAGENET_STD, **kwargs):
        super().__init__(*args, **kwargs)
        self.strides = dict(strides or {})
        self.mean = tuple(mean)
        self.std = tuple(std)

    def get_config(self):
        ours = {"strides": dict(self.strides), "mean": self.mean, "std": self.std}
        return {**super().get_config(), **ours}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        ours = {key: config.pop(key) for key in ("strides", "mean", "std")}
        backbone = super().from_config(config, custom_objects=custom_objects)
        backbone.strides = ours["strides"]
        backbone.mean, backbone.std = tuple(ours["mean"]), tuple(ours["std"])
        return backbone
