import keras

from kseg.contrast.memory_bank import MemoryBank


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

    Attributes:
        bank: `MemoryBank`, or None: it has none, or `prepare` was not called.

    Returns:
        dict from the name of a term to a float32 scalar: this replica's share of it, so that the
        sum over replicas is the term of the global batch.
    """

    def __init__(self, *, name, dtype="float32", **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.bank = None

    @property
    def stages(self):
        """Names of the maps that need a projector: `outputs` holds `embedding_<stage>` of each."""
        return []

    def prepare(self, outputs):
        """Makes the weights that depend on the segmenter, once, before the first call.

        Args:
            outputs: dict of symbolic outputs.

        Raises:
            ValueError: if they lack what the objective reads.
        """

    def _make_bank(self, num_rings, capacity, dim, **arguments):
        """Makes `bank`, a `MemoryBank` as its constructor does, or checks the one that is there.

        Raises:
            ValueError: if there is one of another width: it belongs to another segmenter.
        """
        if self.bank is None:
            name = f"{self.name}_bank"
            self.bank = MemoryBank(num_rings, capacity, dim, name=name, **arguments)
        elif self.bank.dim != dim:
            raise ValueError(
                f"The memory bank of {self.name!r} holds embeddings of {self.bank.dim} channels. "
                f"Received: outputs with {dim}. Make a new objective for another segmenter"
            )

    def _prepared_bank(self):
        """Gives the bank that `prepare` made.

        Raises:
            ValueError: if it did not.
        """
        if self.bank is None:
            raise ValueError(
                f"{self.name!r} contrasts with a memory bank, which `prepare` makes. Received: a "
                "call before it. Call prepare(segmenter.output) first, as SegmentationTrainer does"
            )
        return self.bank

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


def output(outputs, name, objective):
    """Gives one of a segmenter's outputs.

    Args:
        outputs: dict.
        name: str, its key.
        objective: `Objective` that reads it, for the message.

    Returns:
        tensor.

    Raises:
        ValueError: if it is missing.
    """
    if name not in outputs:
        raise ValueError(
            f"{objective.name!r} reads the output {name!r} of the segmenter. Received: "
            f"{sorted(outputs)}. build_segmenter(..., projections=objective.stages) gives the "
            "embeddings of an objective's stages"
        )
    return outputs[name]
