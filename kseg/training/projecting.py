"""Outputs of a segmenter for objectives, with the projection of drawn pixels deferred."""

from kseg.contrast.embeddings import Embeddings, MapOutputs
from kseg.segmenters import without_projections


class ObjectiveOutputs:
    """Calls a segmenter without the projectors of stages of which only drawn pixels are needed.

    These are the stages that every objective using them lists in `sampled_stages`. If all of them
    list it in `drawn_stages`, too, the whole projector is left out, else its layers after the last
    batch norm.

    Args:
        segmenter: functional keras model from images to a dict.
        objectives: list of `kseg.contrast.objective.Objective`.

    Attributes:
        trunk: keras model: the segmenter with maps instead of these embeddings, or itself.

    Raises:
        ValueError: as `kseg.segmenters.without_projections`.
    """

    def __init__(self, segmenter, objectives):
        stages = {s for o in objectives for s in o.stages}
        sampled = {s for s in stages if _all_list(objectives, s, "sampled_stages")}
        drawn = {s for s in sampled if _all_list(objectives, s, "drawn_stages")}
        self.trunk, self._projectors = without_projections(
            segmenter, sorted(drawn), sorted(sampled - drawn)
        )

    def __call__(self, images, *, training):
        """Computes the outputs for images; see `of`."""
        return self.of(self.trunk(images, training=training), training=training)

    def of(self, outputs, *, training):
        """Adds the projectors to the outputs of the trunk.

        Args:
            outputs: dict of tensors.
            training: bool, whether batch norms of projectors use the statistics of drawn pixels.

        Returns:
            `MapOutputs`: `outputs` with an `Embeddings` in place of each map to project.
        """
        deferred = {
            name: Embeddings(outputs[name], projector, training=training)
            for name, projector in self._projectors.items()
        }
        return MapOutputs({**outputs, **deferred})


def _all_list(objectives, stage, kind):
    return all(stage in getattr(o, kind) for o in objectives if stage in o.stages)
