"""An adapter for keras-cv's backbones. keras-cv is archived: no other module of kseg imports it."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import keras
from keras import ops

from kseg.backbones.backbone import Backbone
from kseg.layers import BatchNormalization, ceil_divide, pad_to_multiple

STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


def build_keras_cv(
    *,
    class_name=None,
    arguments=None,
    preset=None,
    load_weights=True,
    output_stride=32,
    mean=(0.0, 0.0, 0.0),
    std=(255.0, 255.0, 255.0),
    synchronized_batch_norm=False,
    input_channels=3,
    name="keras_cv",
):
    """Adapts a keras-cv backbone to kseg.

    Supports ResNetV2, EfficientNetV2, EfficientNetLite, MobileNetV3, CSPDarkNet, DenseNet, MiT and
    any other with four pyramid levels. Batch norms are replaced by those of `kseg.layers` with the
    same weights and settings: one fused kernel, optionally synchronized. An image whose sides are
    not multiples of 32 is padded with zeros at the bottom and right, and the maps are cropped.

    Args:
        class_name: str, a class of `keras_cv.models`, such as `"EfficientNetLiteBackbone"`; with
            `arguments`. Either this or `preset`.
        arguments: dict, arguments of the class (for a preset: those to override), except
            `include_rescaling`. Some classes accept images of one size only, and MiT square ones
            only: pass `"input_shape": (512, 512, 3)`, with sides that are multiples of 32.
        preset: str, a preset of keras-cv, such as `"efficientnetv2_s_imagenet"`, which is
            downloaded.
        load_weights: bool, whether to load a preset's weights or only its architecture.
        output_stride: 8, 16 or 32, the stride of `c5`. Below 32 the last stages are dilated instead
            of strided, as in `build_resnet`. Requires a network with separate padding layers before
            its strided convolutions, such as EfficientNetLite.
        mean, std: three floats each, in units of 0 to 255: the normalization that the weights
            expect. The default divides by 255, as keras-cv does.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        input_channels: int, channels of the images; weights of a preset are for 3.
        name: str, the model's name.

    Returns:
        `Backbone` with outputs `c2` to `c5` at strides 4, 8, 16, 32, none above `output_stride`.
        Any input size, unless `input_shape` fixes it.

    Raises:
        ValueError: if not exactly one of `class_name` and `preset` is given, the class is unknown
            or does not take the arguments, the preset is not available, the network does not
            support the `output_stride`, or there are fewer than four pyramid levels.
    """
    if (class_name is None) == (preset is None):
        raise ValueError(
            "A keras_cv backbone needs a `class_name` (with `arguments`) or a `preset`, not both. "
            f"Received: {class_name=}, {preset=}"
        )
    arguments = {
        "input_shape": (None, None, input_channels),
        **(arguments or {}),
        "include_rescaling": False,
    }
    arguments["input_shape"] = (*arguments["input_shape"][:2], input_channels)
    if preset is not None:
        source = _from_preset(preset, load_weights, arguments)
    else:
        source = _from_class(class_name, arguments)
    levels = sorted(source.pyramid_level_inputs)
    if len(levels) < 4:
        raise ValueError(
            "A keras_cv backbone must have four pyramid levels. "
            f"{class_name or preset} has {levels}"
        )
    # The deepest four: P2 to P5, or P1 to P4 in MiT, which counts its stages from 1.
    outputs = {
        stage: source.get_layer(source.pyramid_level_inputs[level]).output
        for stage, level in zip(STRIDES, levels[-4:], strict=True)
    }
    network = keras.Model(source.input, outputs, name=f"{name}_network")
    dilated = _dilate(network, output_stride)
    clone = keras.models.clone_model(
        network,
        clone_function=lambda layer: (
            dilated.get(layer.name) or _with_our_batch_norm(layer, synchronized_batch_norm)
        ),
        recursive=True,
    )
    clone.set_weights(network.get_weights())

    strides = {stage: min(stride, output_stride) for stage, stride in STRIDES.items()}
    image = keras.Input(arguments["input_shape"], name="image")
    stages = clone(PadToMultiple(32, name=f"{name}_pad")(image))
    outputs = {
        stage: CropToStride(stride, name=f"{name}_{stage}_crop")(stages[stage], image)
        for stage, stride in strides.items()
    }
    return Backbone(image, outputs, strides=strides, mean=mean, std=std, name=name)


def _classes():
    import keras_cv

    base = keras_cv.models.Backbone
    return {
        name: cls
        for name, cls in vars(keras_cv.models).items()
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base
    }


def _from_class(class_name, arguments):
    classes = _classes()
    if class_name not in classes:
        raise ValueError(
            f"keras_cv.models has no backbone {class_name!r}. Choose from {sorted(classes)}"
        )
    try:
        return classes[class_name](**arguments)
    except Exception as error:  # Layers raise errors of any type for unusable arguments.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"keras_cv.models.{class_name} cannot be built: {reason}") from error


def _from_preset(preset, load_weights, arguments):
    # The base class lists no presets; each class lists its own.
    owners = {name: cls for cls in _classes().values() for name in cls.presets}
    if preset not in owners:
        raise ValueError(f"keras_cv has no preset {preset!r}. Choose from {sorted(owners)}")
    try:
        return owners[preset].from_preset(preset, load_weights=load_weights, **arguments)
    except Exception as error:  # keras-cv raises a bare Exception when a download fails.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"keras_cv cannot load the preset {preset!r}: {reason}. Presets are downloaded; use "
            "`class_name` and `arguments` on a machine without network access"
        ) from None


def _with_our_batch_norm(layer, synchronized):
    if type(layer) is not keras.layers.BatchNormalization:
        return layer
    config = layer.get_config()
    config.pop("synchronized", None)
    return BatchNormalization(synchronized=synchronized, **config)


def _dilate(network, output_stride):
    """Builds the dilated layers that limit a network's output stride.

    Where a stride of 2 is removed, position 2 i of the dilated network sees the same pixels as
    position i of the strided one.

    Args:
        network: functional model.
        output_stride: 8, 16 or 32.

    Returns:
        dict from a layer's name to its replacement.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"`output_stride` must be 8, 16 or 32. Received: {output_stride=}")
    if output_stride == 32:
        return {}
    strides, replaced, paddings = {}, {}, {}
    for layer in network.layers:
        sources = [tensor._keras_history.operation for tensor in _listed(layer.input)]
        before = max((strides.get(source.name, 1) for source in sources), default=1)
        step = getattr(layer, "strides", 1)
        step = step if isinstance(step, int) else step[0]
        strides[layer.name] = before * step
        size = getattr(layer, "kernel_size", (1,))[0]
        rate = max(before // output_stride, 1)
        if isinstance(layer, keras.layers.ZeroPadding2D):
            paddings[layer.name] = layer
        if before * step <= output_stride or (step == 1 and (rate == 1 or size == 1)):
            continue
        padding = paddings.get(sources[0].name)
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D) or (
            step > 1 and size > 1 and padding is None
        ):
            raise ValueError(
                "`output_stride` below 32 needs a network whose strided convolutions are padded by "
                f"separate layers. Received: {output_stride=}, and {layer.name!r} is not such a "
                "convolution. Use 32"
            )
        config = layer.get_config()
        config.update(strides=(1, 1), dilation_rate=(rate, rate))
        replaced[layer.name] = type(layer).from_config(config)
        if padding is not None:
            config = padding.get_config()
            config["padding"] = [
                (first * rate, rate * (size - 1) - first * rate) for first, _ in padding.padding
            ]
            replaced[padding.name] = keras.layers.ZeroPadding2D.from_config(config)
    return replaced


def _listed(tensors):
    return tensors if isinstance(tensors, list | tuple) else [tensors]


@keras.saving.register_keras_serializable(package="kseg")
class PadToMultiple(keras.layers.Layer):
    """Appends rows and columns of zeros until both sides are multiples of a number.

    Args:
        multiple: int > 0.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.

    Returns:
        float tensor `(batch, height', width', channels)`.
    """

    def __init__(self, multiple, **kwargs):
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, inputs):
        return pad_to_multiple(inputs, self.multiple)

    def compute_output_spec(self, inputs):
        sides = [s if s is None else s + -s % self.multiple for s in inputs.shape[1:3]]
        shape = (inputs.shape[0], *sides, inputs.shape[3])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable(package="kseg")
class CropToStride(keras.layers.Layer):
    """Crops a map to the part that covers an image as it was before `PadToMultiple`.

    Args:
        stride: int > 0, stride of the map in pixels of the image.

    Call arguments:
        inputs: float tensor `(batch, any, any, channels)`.
        image: tensor `(batch, height, width, any)`, read only for its size.

    Returns:
        float tensor `(batch, ceil(height / stride), ceil(width / stride), channels)`.
    """

    def __init__(self, stride, **kwargs):
        super().__init__(**kwargs)
        self.stride = stride

    def call(self, inputs, image):
        height, width = (ceil_divide(size, self.stride) for size in ops.shape(image)[1:3])
        return inputs[:, :height, :width]

    def compute_output_spec(self, inputs, image):
        sides = [s if s is None else -(-s // self.stride) for s in image.shape[1:3]]
        shape = (inputs.shape[0], *sides, inputs.shape[3])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "stride": self.stride}
