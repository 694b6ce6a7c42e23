"""The embeddings of a stage, projected as a whole map or only at the pixels that are taken."""

from keras import ops

from kseg.backend import replicas
from kseg.contrast.global_batch import gather_shares, replica_share, take_rows
from kseg.contrast.objective import output


class Embeddings:
    """A projected map, or a feature map with its projector.

    The second kind projects only what is taken. A projector works pixel by pixel except for its
    batch norms: these normalize by the statistics of the pixels that are projected together, the
    drawn ones instead of the whole batch, and update their moving statistics with them.

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
        self._map = None  # The projected map, computed at most once.
        dim = features.shape[-1] if projector is None else projector.dim
        self.shape = (*features.shape[:3], dim)

    def take(self, positions, *, cross_replica=True):
        """Takes the embeddings of some pixels.

        With several replicas, each projects every R-th of the pixels, which balances the work
        however they are distributed over the images.

        Args:
            positions, cross_replica: as in `take_rows`, indices into the flattened map. Unused
                rows, of position -1, do not enter statistics.

        Returns:
            tensor `(count, dim)`; gradients flow to the replica that a pixel came from.
        """
        count = positions.shape[0]
        pixels = self.shape[0] * self.shape[1] * self.shape[2]
        shared = cross_replica and replicas.num_replicas() > 1
        if self._projector is None or count >= pixels * (replicas.num_replicas() if shared else 1):
            # With as many rows as pixels, projecting the whole map costs no more.
            rows = ops.reshape(self.projected(), (pixels, self.shape[-1]))
            return take_rows(rows, positions, cross_replica=cross_replica)
        rows = ops.reshape(self._features, (pixels, self._features.shape[-1]))
        rows = take_rows(rows, positions, cross_replica=cross_replica)
        used = positions >= 0
        if shared:
            share, inside = replica_share(count)
            rows = ops.take(rows, share, axis=0)
            used = ops.logical_and(inside, ops.take(used, share))
        # A map of one column, since layers expect maps.
        rows = self._projector(
            rows[None, :, None], mask=used[None, :, None], training=self._training
        )[0, :, 0]
        return gather_shares(rows, count) if shared else rows

    def projected(self):
        """Returns the projected map `(batch, height, width, dim)`."""
        if self._projector is None:
            return self._features
        if self._map is None:
            self._map = self._projector(self._features, training=self._training)
        return self._map

    def detached(self):
        """Returns embeddings to store, without gradients and with the moving statistics."""
        return Embeddings(ops.stop_gradient(self._features), self._projector)


def embeddings_of(outputs, stage, objective):
    """Returns the embeddings of a stage.

    Args:
        outputs: dict of the segmenter's outputs; `embedding_<stage>` is a float tensor
            `(batch, height, width, dim)` or an `Embeddings`.
        stage: str, name of a map.
        objective: `Objective` that reads them, for the error message.

    Returns:
        `Embeddings`.

    Raises:
        ValueError: if they are missing.
    """
    found = output(outputs, f"embedding_{stage}", objective)
    return found if isinstance(found, Embeddings) else Embeddings(found)


class MapOutputs(dict):
    """Outputs of a segmenter for losses: an `Embeddings` is projected when it is read by key."""

    def __getitem__(self, name):
        found = super().__getitem__(name)
        return found.projected() if isinstance(found, Embeddings) else found
