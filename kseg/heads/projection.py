"""The projector of contrastive learning, from a feature map to embeddings."""

import functools
import inspect

import keras

from kseg.layers import BatchNormalization, Conv2D, UnitNormalization


def projection(x, *, embedding_dim=256, hidden_layers=2, synchronized_batch_norm=False, name):
    """Projects a feature map to embeddings of unit norm, pixel by pixel.

    Each hidden layer is a 1x1 convolution, ReLU and batch norm, in this order; a linear 1x1
    convolution follows. The hidden width, which the papers do not specify, is that of the input.
    The batch norm's momentum is 0.9 as everywhere in kseg; the public code of MS/CS has 0.9997,
    which does not converge in short runs.

    Sources: Pissas et al., "Multi-scale and Cross-scale Contrastive Learning for Semantic
    Segmentation", ECCV 2022, Sec. 4, "Contrastive Losses": two hidden layers. Sung et al.,
    CVPR 2024, supplement, Table 7: 0.38 M parameters, which matches one hidden layer for each
    branch of HRNet-W48.

    Args:
        x: symbolic float tensor `(batch, height, width, channels)`.
        embedding_dim: int, channels of the embeddings.
        hidden_layers: int >= 0.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        name: str, prefix of the layer names.

    Returns:
        symbolic float32 tensor `(batch, height, width, embedding_dim)`, rows of unit L2 norm.
    """
    conv = functools.partial(Conv2D, kernel_size=1, use_bias=True)
    for index in range(1, hidden_layers + 1):
        x = conv(x.shape[-1], activation="relu", name=f"{name}_conv{index}")(x)
        x = BatchNormalization(synchronized=synchronized_batch_norm, name=f"{name}_norm{index}")(x)
    x = conv(embedding_dim, name=f"{name}_linear")(x)
    return UnitNormalization(name=name)(x)


class Projector:
    """The layers of a model that make embeddings of a map, to be called on some of its pixels.

    These are the layers that end in the embeddings, that nothing else reads, and that process each
    pixel on its own, apart from the statistics of batch norms.

    Args:
        model: functional keras model to a dict.
        name: str, the key of the embeddings `(batch, height, width, dim)` among its outputs.
        statistics: bool. False: only layers after the last batch norm or dropout, whose result for
            a pixel does not depend on the others.

    Attributes:
        source: symbolic tensor, the map that is projected.
        dim: int, channels of the embeddings.
        depends_on_training: bool, whether there is a batch norm or a dropout among the layers.
        normalization: the last layer, if it is a `UnitNormalization`, or None.
        linear: the layer before it, if it is the only other one and computes nothing but
            `h W + b` with its `kernel` and `bias`, or None.
    """

    def __init__(self, model, name, *, statistics=True):
        nodes = [node for level in model._nodes_by_depth.values() for node in level]
        read = [id(x) for node in nodes for x in node.input_tensors]
        returned = {id(x) for key, x in model.output.items() if key != name}
        self.source = model.output[name]
        self.dim = self.source.shape[-1]
        self._layers = []
        readers = 0  # Of the embeddings themselves, which the caller reads.
        while read.count(id(self.source)) == readers and id(self.source) not in returned:
            layer, index, _ = self.source._keras_history
            inputs = layer._inbound_nodes[index].input_tensors if layer._inbound_nodes else ()
            if len(inputs) != 1 or not _is_pixelwise(layer):
                break
            if not statistics and isinstance(layer, _DEPENDING):
                break
            self._layers.insert(0, layer)
            (self.source,), readers = inputs, 1
        self.depends_on_training = any(isinstance(layer, _DEPENDING) for layer in self._layers)
        last = self._layers[-1] if self._layers else None
        self.normalization = last if isinstance(last, UnitNormalization) else None
        self.linear = None
        if self.normalization and len(self._layers) == 2 and _is_linear(self._layers[0]):
            self.linear = self._layers[0]

    def __call__(self, features, *, training, mask=None):
        """Projects features.

        Args:
            features: float tensor `(batch, height, width, channels)` of any size.
            training: bool, whether batch norms use the statistics of these features.
            mask: bool tensor `(batch, height, width)`, True where features count in these
                statistics; None: everywhere.

        Returns:
            tensor `(batch, height, width, dim)`.
        """
        features = self.without_normalization(features, training=training, mask=mask)
        return features if self.normalization is None else self.normalization(features)

    def without_normalization(self, features, *, training, mask=None):
        """Projects features as in a call, by all layers but `normalization`."""
        options = {"training": training, "mask": mask if training else None}
        for layer in self._layers[:-1] if self.normalization else self._layers:
            taken = inspect.signature(layer.call).parameters.keys() & options.keys()
            features = layer(features, **{key: options[key] for key in taken})
            if getattr(features, "_keras_mask", None) is not None:
                features._keras_mask = None  # Otherwise Keras warns of convolutions after it.
        return features


_DEPENDING = BatchNormalization | keras.layers.Dropout


def _is_pixelwise(layer):
    layers = keras.layers
    # A subclass with a computation of its own may do anything, and the losses of activities belong
    # to the model.
    known = {cls.call for cls in _POINTWISE + _CONDITIONAL}
    if type(layer).call not in known or layer.activity_regularizer is not None:
        return False
    if isinstance(layer, layers.Conv2D):
        return set(layer.kernel_size) == set(layer.strides) == {1}
    if isinstance(layer, BatchNormalization | layers.LayerNormalization):
        return layer.axis in (-1, 3, [-1], [3])
    if isinstance(layer, layers.UnitNormalization):
        return layer.axis in (-1, 3)
    return isinstance(layer, _POINTWISE) and not isinstance(layer, layers.SpatialDropout2D)


def _is_linear(layer):
    # No subclass, which may compute with another kernel than its own, as a quantized layer does.
    if type(layer) not in (Conv2D, keras.layers.Conv2D, keras.layers.Dense):
        return False
    plain = layer.quantization_mode is None and getattr(layer, "groups", 1) == 1
    return plain and layer.activation is keras.activations.linear


_POINTWISE = (
    UnitNormalization,
    keras.layers.Dense,
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.Dropout,
)
# The batch norm of Keras is not among them: it does not take a mask without pixels.
_CONDITIONAL = (
    Conv2D,
    keras.layers.Conv2D,
    BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.UnitNormalization,
)
