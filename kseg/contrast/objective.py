"""The base class of contrastive objectives, and their access to a segmenter's outputs."""

import keras

from kseg.contrast.memory_bank import MemoryBank


class Objective(keras.layers.Layer):
    """A contrastive loss on the outputs of a segmenter, optionally with a memory bank.

    `objective(outputs, labels)` returns its terms. The training step instead calls `contrast`,
    which also returns what to store, and, after computing the gradients, `remember`. (Nothing may
    be kept in attributes between the two calls: the replicas of a strategy share them.)

    Call arguments:
        outputs: dict of the segmenter's outputs, with static shapes except for the batch.
        labels: int tensor `(batch, height, width)`, at the size of the images; values outside
            `[0, num_classes)` are ignored.
        training: bool; the terms are the same either way.

    Attributes:
        bank: `MemoryBank`, or None if the objective has none or before `prepare`.

    Returns:
        dict from the name of a term to a float32 scalar: this replica's share, so that the sum over
        replicas is the term of the global batch.
    """

    def __init__(self, *, name, dtype="float32", **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.bank = None

    @property
    def stages(self):
        """Names of the maps that need a projector: `embedding_<stage>` is an output for each."""
        return []

    @property
    def sampled_stages(self):
        """Those of `stages` that are read by `kseg.contrast.embeddings.embeddings_of`.

        Unless another objective reads such a stage as a map, a training step computes the layers of
        its projector after the last batch norm for the pixels that are taken, and for the map only
        if it is read.
        """
        return self.drawn_stages

    @property
    def drawn_stages(self):
        """Those of `sampled_stages` whose whole projector sees only the pixels that are taken.

        Its batch norms then normalize by the statistics of these.
        """
        return []

    def prepare(self, outputs):
        """Creates the weights that depend on the segmenter; call it once, before the first call.

        Args:
            outputs: dict of symbolic outputs.

        Raises:
            ValueError: if an output that the objective reads is missing.
        """

    def _make_bank(self, num_rings, capacity, dim, **arguments):
        """Creates `bank` with the arguments of `MemoryBank`, or checks the existing one.

        Raises:
            ValueError: if the existing bank has another width, from another segmenter.
        """
        if self.bank is None:
            name = f"{self.name}_bank"
            self.bank = MemoryBank(num_rings, capacity, dim, name=name, **arguments)
        elif self.bank.dim != dim:
            raise ValueError(
                f"The memory bank of {self.name!r} holds embeddings of {self.bank.dim} channels. "
                f"Received: outputs with {dim}. Create a new objective for another segmenter"
            )

    def _prepared_bank(self):
        """Returns the bank that `prepare` created.

        Raises:
            ValueError: if `prepare` was not called.
        """
        if self.bank is None:
            raise ValueError(
                f"{self.name!r} contrasts with a memory bank, which `prepare` creates. Received: a "
                "call before that. Call prepare(segmenter.output) first, as SegmentationTrainer "
                "does"
            )
        return self.bank

    def contrast(self, outputs, labels):
        """Computes the terms.

        Args:
            outputs, labels: as in the call.

        Returns:
            `(terms, found)`: the dict of terms, and the argument of `remember`.
        """
        raise NotImplementedError(f"{type(self).__name__} computes no terms")

    def remember(self, found):
        """Stores the second result of `contrast` on this replica; does nothing without a bank."""

    def call(self, outputs, labels, training=None):
        """Computes the terms without storing anything."""
        return self.contrast(outputs, labels)[0]


PROJECTIONS = ("map", "drawn")


def check_projection(projection):
    """Raises ValueError unless `projection` is one of `PROJECTIONS`."""
    if projection not in PROJECTIONS:
        raise ValueError(f"`projection` must be one of {PROJECTIONS}. Received: {projection=}")


def output(outputs, name, objective):
    """Returns one of a segmenter's outputs.

    Args:
        outputs: dict of the segmenter's outputs.
        name: str, a key of it.
        objective: `Objective` that reads the output, for the error message.

    Returns:
        tensor.

    Raises:
        ValueError: if it is missing.
    """
    if name not in outputs:
        raise ValueError(
            f"{objective.name!r} reads the output {name!r} of the segmenter. Received: "
            f"{sorted(outputs)}. build_segmenter(..., projections=objective.stages) adds the "
            "embeddings of an objective's stages"
        )
    return outputs[name]
