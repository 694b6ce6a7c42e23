import keras


class Objective(keras.layers.Layer):
    """A contrastive loss on the outputs of a segmenter, with what it must remember.

    `objective(outputs, labels)` gives its terms. The training step calls `contrast`, which gives
    in addition what is to be remembered, and, after the gradients are taken, `remember`. (Between
    the two nothing may be kept in attributes: the replicas of a strategy share them.)

    Call arguments:
        outputs: dict of the segmenter's outputs, static shapes but for the batch.
        labels: int tensor `(batch, height, width)`, at the size of the images; values outside
            `[0, num_classes)` are ignored.
        training: bool; the terms are the same either way.

    Returns:
        dict from the name of a term to a float32 scalar: this replica's share of it, so that the
        sum over replicas is the term of the global batch.
    """

    def __init__(self, *, name, dtype="float32", **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)

    @property
    def stages(self):
        """Names of the maps that need a projector: `outputs` holds `embedding_<stage>` of each."""
        return []

    def prepare(self, outputs):
        """Makes the weights that depend on the segmenter, once, before the first call.

        Args:
            outputs: dict of symbolic outputs.
        """

    def contrast(self, outputs, labels):
        """Computes the terms.

        Args:
            outputs, labels: as in the call.

        Returns:
            `(terms, found)`: the dict of terms, and what `remember` takes.
        """
        raise NotImplementedError(f"{type(self).__name__} computes no terms")

    def remember(self, found):
        """Stores what `contrast` found on this replica, or does nothing."""

    def call(self, outputs, labels, training=None):
        """Computes the terms, and remembers nothing."""
        return self.contrast(outputs, labels)[0]
