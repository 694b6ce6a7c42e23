"""Outputs of a segmenter for objectives, with the projection of drawn pixels deferred."""

from kseg.contrast.embeddings import Embeddings
from kseg.segmenters import without_projections


class ObjectiveOutputs:
    """Calls a segmenter without the projectors of stages of which only drawn pixels are needed.

    These are the stages that every objective using them lists in `drawn_stages`.

    Args:
        segmenter: functional keras model from images to a dict.
        objectives: list of `kseg.contrast.objective.Objective`.

    Attributes:
        trunk: keras model: the segmenter with maps instead of these embeddings, or itself.

    Raises:
        ValueError: as `kseg.segmenters.without_projections`.
    """

    def __init__(self, segmenter, objectives):
        mapped = {s for o in objectives for s in o.stages if s not in o.drawn_stages}
        drawn = {s for o in objectives for s in o.drawn_stages} - mapped
        self.trunk, self._projectors = without_projections(segmenter, sorted(drawn))

    def __call__(self, images, *, training):
        """Computes the outputs for images; see `of`."""
        return self.of(self.trunk(images, training=training), training=training)

    def of(self, outputs, *, training):
        """Adds the projectors to the outputs of the trunk.

        Args:
            outputs: dict of tensors.
            training: bool, whether batch norms of projectors use the statistics of drawn pixels.

        Returns:
            dict: `outputs` with an `Embeddings` in place of each map to project.
        """
        deferred = {
            name: Embeddings(outputs[name], projector, training=training)
            for name, projector in self._projectors.items()
        }
        return {**outputs, **deferred}
