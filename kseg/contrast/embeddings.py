"""The embeddings of a stage, projected as a whole map or only at the pixels that are taken."""

import collections.abc

from keras import ops

from kseg.backend import replicas
from kseg.backend.products import matmul
from kseg.contrast.global_batch import gather_shares, replica_share, take_rows
from kseg.contrast.objective import output
from kseg.contrast.tiles import on_accelerator

# Inputs of a linear layer with this many times as many outputs are summed before it is applied, on
# a CPU: products of accelerators are less precise, which has not been measured.
_WIDE = 2
# The least squared norm, as a share of the usual one, that a quadratic form in float32 resolves.
_ROUNDING = 1e-6


class Embeddings:
    """A projected map, or a feature map with its projector.

    The second kind projects only what is taken. A projector works pixel by pixel except for its
    batch norms, if it has any: these normalize by the statistics of the pixels that are projected
    together, the drawn ones instead of the whole batch, and update their moving statistics with
    them.

    Args:
        features: float tensor `(batch, height, width, channels)`, static shape.
        projector: `kseg.heads.projection.Projector`; None: `features` are embeddings already.
        training: bool, whether the projector's batch norms use the statistics of the pixels that
            are projected together (True), or the moving ones.

    Attributes:
        shape: tuple `(batch, height, width, dim)`, that of the projected map.
    """

    def __init__(self, features, projector=None, *, training=False):
        self._features = features
        self._projector = projector
        self._training = training
        # The projected map and the same before its normalization, computed at most once.
        self._map = self._raw_map = None
        dim = features.shape[-1] if projector is None else projector.dim
        self.shape = (*features.shape[:3], dim)
        is_wide = projector is not None and dim >= _WIDE * features.shape[-1]
        self._widening = projector.linear if is_wide and not on_accelerator() else None

    def take(self, positions, *, cross_replica=True):
        """Takes the embeddings of some pixels.

        With several replicas and batch norms, each projects every R-th of the pixels, which
        balances the work however they are distributed over the images. Without batch norms only
        embeddings are sent to the other replicas: each projects as many rows as it takes, of which
        those of other replicas do not count.

        Args:
            positions, cross_replica: as in `take_rows`, indices into the flattened map. Unused
                rows, of position -1, do not enter statistics.

        Returns:
            tensor `(count, dim)`; gradients flow to the replica that a pixel came from.
        """
        count = positions.shape[0]
        pixels = self.shape[0] * self.shape[1] * self.shape[2]
        depends = self._projector is not None and self._projector.depends_on_training
        shared = cross_replica and replicas.num_replicas() > 1 and depends
        if self._projector is None or count >= pixels * (replicas.num_replicas() if shared else 1):
            # With as many rows as pixels, projecting the whole map costs no more.
            rows = ops.reshape(self.projected(), (pixels, self.shape[-1]))
            return take_rows(rows, positions, cross_replica=cross_replica)
        features, project = self._features, self._project
        if not depends and self._raw_map is not None and features.shape[-1] > self.shape[-1]:
            # The gradient of a look-up has the width of what is looked up.
            features, project = self._raw_map, self._projector.normalization
        rows = ops.reshape(features, (pixels, features.shape[-1]))
        if not depends:
            return take_rows(rows, positions, cross_replica=cross_replica, transform=project)
        rows = take_rows(rows, positions, cross_replica=cross_replica)
        used = positions >= 0
        if shared:
            share, inside = replica_share(count)
            rows = ops.take(rows, share, axis=0)
            used = ops.logical_and(inside, ops.take(used, share))
        rows = self._project(rows, used)
        return gather_shares(rows, count) if shared else rows

    def _project(self, rows, used=None):
        """Projects `(count, channels)`; with `used`, bool `(count,)`, the others do not count."""
        # A map of one column, since layers expect maps.
        mask = None if used is None else used[None, :, None]
        return self._projector(rows[None, :, None], mask=mask, training=self._training)[0, :, 0]

    def projected(self):
        """Returns the projected map `(batch, height, width, dim)`."""
        if self._projector is None:
            return self._features
        if self._map is None:
            normalization = self._projector.normalization
            self._map = self._raw() if normalization is None else normalization(self._raw())
        return self._map

    def weighted_sums(self, weights):
        """Sums the embeddings of all pixels with weights.

        Args:
            weights: float32 tensor `(rows, pixels)`, pixels in the order of the flattened map.

        Returns:
            float32 tensor `(rows, dim)`.
        """
        if self._widening is not None and self._raw_map is None:
            return self._sums_without_map(weights)
        normalization = self._projector and self._projector.normalization
        pixels = self._raw() if normalization else self.projected()
        pixels = ops.cast(ops.reshape(pixels, (-1, self.shape[-1])), "float32")
        if normalization:  # Scales the weights instead of the map, which is wider.
            weights = weights * ops.reshape(normalization.factors(pixels), (1, -1))
        # In this order the gradient with respect to the pixels is a product, not its transpose.
        return ops.matmul(weights, pixels)

    def _sums_without_map(self, weights):
        """Computes `weighted_sums` from the inputs of a linear layer that are much narrower.

        The sum of projections is the projection of a sum, and the squared norm of `h W + b`, by
        which each is divided first, a quadratic form of `h`. Equal but where a projection nearly
        cancels: it is divided by at least a thousandth of the usual norm.
        """
        linear = self._widening
        kernel = ops.convert_to_tensor(linear.kernel)
        kernel = ops.cast(ops.reshape(kernel, kernel.shape[-2:]), "float32")
        inputs = ops.cast(ops.reshape(self._features, (-1, kernel.shape[0])), "float32")
        form = matmul(kernel, kernel, transpose_b=True)
        slope, constant = matmul(inputs, form), 0.0
        if linear.use_bias:
            bias = ops.cast(ops.convert_to_tensor(linear.bias), "float32")
            slope = slope + 2.0 * ops.matmul(kernel, bias)
            constant = ops.sum(ops.square(bias))
        squared_norm = ops.sum(inputs * slope, axis=-1) + constant
        # If a projection is nearly zero, rounding decides even the sign of the form.
        usual = ops.sum(ops.square(inputs), axis=-1) * (ops.trace(form) / kernel.shape[0])
        least = ops.stop_gradient(_ROUNDING * (usual + constant))
        least = ops.maximum(least, self._projector.normalization.epsilon**2)
        weights = weights * ops.rsqrt(ops.maximum(squared_norm, least))
        sums = ops.matmul(ops.matmul(weights, inputs), kernel)
        if linear.use_bias:
            sums = sums + ops.sum(weights, axis=1, keepdims=True) * bias
        return sums

    def _raw(self):
        if self._raw_map is None:
            project = self._projector.without_normalization
            self._raw_map = project(self._features, training=self._training)
        return self._raw_map

    def detached(self):
        """Returns embeddings to store, without gradients and with the moving statistics."""
        if self._map is not None and not self._projector.depends_on_training:
            return Embeddings(ops.stop_gradient(self._map))
        return Embeddings(ops.stop_gradient(self._features), self._projector)


def embeddings_of(outputs, stage, objective):
    """Returns the embeddings of a stage.

    Args:
        outputs: dict of the segmenter's outputs; `embedding_<stage>` is a float tensor
            `(batch, height, width, dim)`, in `MapOutputs` also an `Embeddings`.
        stage: str, name of a map.
        objective: `Objective` that reads them, for the error message.

    Returns:
        `Embeddings`.

    Raises:
        ValueError: if they are missing.
    """
    name = f"embedding_{stage}"
    if isinstance(outputs, MapOutputs) and isinstance(outputs.unread(name), Embeddings):
        return outputs.unread(name)
    return Embeddings(output(outputs, name, objective))


class MapOutputs(dict):
    """Outputs of a segmenter, some of them `Embeddings`, whose maps are projected when read.

    Whatever reads them as a dict gets tensors; `embeddings_of` gets the `Embeddings`.
    """

    def unread(self, name):
        """Returns an output as it is: an `Embeddings` or a tensor; None if it is missing."""
        return super().get(name)

    def __getitem__(self, name):
        return _tensor(super().__getitem__(name))

    def __iter__(self):
        # Without a method of its own, `dict(outputs)` and `{**outputs}` would bypass `__getitem__`.
        return super().__iter__()

    def get(self, name, default=None):
        """Returns an output, or `default` if it is missing."""
        return _tensor(super().get(name, default))

    def items(self):
        """Returns a view of all names and tensors."""
        return collections.abc.ItemsView(self)

    def values(self):
        """Returns a view of all tensors."""
        return collections.abc.ValuesView(self)

    def __or__(self, other):
        return {**self, **other}

    def __ror__(self, other):
        return {**other, **self}


def _tensor(found):
    return found.projected() if isinstance(found, Embeddings) else found
