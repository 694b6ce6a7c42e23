"""Segmenters: a backbone, a head and projectors in one model, and its inference view."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import keras

from kseg.backbones import build_backbone
from kseg.backend.precision import dtype_policy_scope
from kseg.backend.variables import shared_variable_kernels
from kseg.dotted import is_dotted
from kseg.heads import build_head
from kseg.heads.projection import Projector, projection
from kseg.layers import ImageNormalization, ResizeLike


@shared_variable_kernels()
def build_segmenter(
    backbone,
    head,
    num_classes,
    *,
    backbone_arguments=None,
    head_arguments=None,
    projections=(),
    maps=(),
    embedding_dim=256,
    projector_layers=2,
    synchronized_batch_norm=False,
    pixel_format=None,
    name="segmenter",
):
    """Combines a backbone, a head and projectors into one model.

    Args:
        backbone: str, a name known to `build_backbone`, or a `Backbone`.
        head: str, a name known to `build_head`, or a function as described in `kseg.heads`.
        num_classes: int > 0.
        backbone_arguments: dict or None, arguments of the backbone's builder; only with a name.
        head_arguments: dict or None, arguments of the head.
        projections: names of the maps to contrast, each of which gets its own projector: stages of
            the backbone, such as `("c2", "c3", "c4", "c5")`, `"features"`, or maps that the head
            adds.
        maps: names of further maps to return unchanged: stages of the backbone, or maps that the
            head adds.
        embedding_dim: int, channels of the embeddings.
        projector_layers: int >= 0, hidden layers of a projector.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas. The weights
            are the same either way.
        pixel_format: `kseg.pixel_format.PixelFormat` of the images, whose mean and std are the
            normalization; None: RGB in 0 to 255, normalized as the backbone's weights expect.
        name: str, the model's name.

    Returns:
        functional `keras.Model` from `image`, uint8 or float `(batch, height, width, 3)` RGB in 0
        to 255, or `(batch, height, width, channels)` of the `pixel_format`, of any size,
        to a dict: `logits` float32 `(batch, h, w, num_classes)` at the head's stride,
        `aux_logits` likewise if the head has them, `features`
        `(batch, h, w, channels)`, the maps named in `maps`, and for each projection
        `embedding_<name>` float32 `(batch, h, w, embedding_dim)` with rows of unit L2 norm, at the
        size of its map.

    Raises:
        ValueError: if a name is unknown, arguments are given for a built backbone, or a backbone
            does not take the channels.
    """
    channels = 3 if pixel_format is None else pixel_format.channels
    if isinstance(backbone, str):
        given = {"synchronized_batch_norm": synchronized_batch_norm, **(backbone_arguments or {})}
        if channels != 3:
            given["input_channels"] = channels
        backbone = build_backbone(backbone, **given)
    elif backbone_arguments:
        raise ValueError(
            "`backbone_arguments` have no effect on a backbone that is already built. "
            f"Received: {backbone_arguments=}. Pass the backbone's name instead."
        )

    if backbone.input_shape[-1] != channels:
        raise ValueError(
            f"The backbone {backbone.name!r} must take images of {channels} channels. Received one "
            f"of {backbone.input_shape[-1]}. Build it with `input_channels={channels}`"
        )
    # float32: Keras casts whole numbers to it.
    image = keras.Input((None, None, channels), name="image")
    mean, std = (
        (backbone.mean, backbone.std) if pixel_format is None else pixel_format.normalization
    )
    normalization = ImageNormalization(
        mean=mean,
        std=std,
        pixel_format=pixel_format and pixel_format.to_dict(),
        name="image_normalization",
    )
    stages = backbone(normalization(image))
    head_maps = build_head(
        head,
        stages,
        num_classes,
        **{"synchronized_batch_norm": synchronized_batch_norm, **(head_arguments or {})},
    )
    outputs = {
        key: head_maps[key] for key in ("logits", "aux_logits", "features") if key in head_maps
    }
    sources = {**stages, **head_maps}
    sources = {key: x for key, x in sources.items() if key not in ("logits", "aux_logits")}
    for stage in maps:
        if stage not in sources:
            raise ValueError(
                f"Cannot return {stage!r}: there is no such map. Choose from {sorted(sources)}."
            )
        outputs[stage] = sources[stage]
    for source in projections:
        if source not in sources:
            raise ValueError(
                f"Cannot project {source!r}: there is no such map. Choose from {sorted(sources)}."
            )
        outputs[f"embedding_{source}"] = projection(
            sources[source],
            embedding_dim=embedding_dim,
            hidden_layers=projector_layers,
            synchronized_batch_norm=synchronized_batch_norm,
            name=f"embedding_{source}",
        )
    return keras.Model(image, outputs, name=name)


def segmenter_from_config(
    model,
    num_classes,
    *,
    precision,
    projections=(),
    maps=(),
    synchronized_batch_norm=False,
    pixel_format=None,
):
    """Builds the segmenter that a config describes, with newly initialized weights.

    Args:
        model: `kseg.config.schema.Model`, the section `model` of an experiment.
        num_classes: int > 0.
        precision: str, the network's dtype policy, which overrides Keras' global one.
        projections, maps, synchronized_batch_norm, pixel_format: as in `build_segmenter`.

    Returns:
        keras model, see `build_segmenter`.

    Raises:
        ValueError: if the network cannot be built from these arguments.
    """
    # The caller that starts a run loads the weights, from `model.backbone.weights`.
    arguments = model.backbone.model_dump(exclude={"name", "weights", "weights_if_missing", "stem"})
    head_arguments = model.head.model_dump(exclude={"name"})
    if is_dotted(model.backbone.name):
        arguments = arguments["arguments"]
    if is_dotted(model.head.name):
        head_arguments = head_arguments["arguments"]
    if model.backbone.name == "keras_cv":
        arguments["load_weights"] = False
    with dtype_policy_scope(precision):
        return build_segmenter(
            model.backbone.name,
            model.head.name,
            num_classes,
            backbone_arguments=arguments,
            head_arguments=head_arguments,
            projections=projections,
            maps=maps,
            embedding_dim=model.embedding_dim,
            projector_layers=model.projector_layers,
            synchronized_batch_norm=synchronized_batch_norm,
            pixel_format=pixel_format,
        )


def pixel_format_of(model):
    """Returns the format of the images that a segmenter or its inference view takes.

    Args:
        model: from `build_segmenter` or `inference_model`.

    Returns:
        `kseg.pixel_format.PixelFormat`; None: RGB in 0 to 255.
    """
    found = [layer for layer in model.layers if isinstance(layer, ImageNormalization)]
    return found[0].pixel_format if found else None


def without_projections(segmenter, drawn, sampled=()):
    """Splits a segmenter before some projectors, or before their last layers; weights are shared.

    Args:
        segmenter: model from `build_segmenter`, or another functional model to a dict.
        drawn: names of the maps to return unprojected.
        sampled: names of the maps to return as they are after the last batch norm of their
            projector; those whose projector cannot be split are returned projected.

    Returns:
        `(trunk, projectors)`: the segmenter with the map of each stage in place of its
        `embedding_<stage>`, and a dict from these names to `kseg.heads.projection.Projector`.

    Raises:
        ValueError: if an output is missing; for a stage in `drawn`, if it has no projector that can
            be split off, or the model has a `call` of its own.
    """
    if not drawn and not sampled:
        return segmenter, {}
    outputs, projectors = dict(segmenter.output), {}
    for stage in (*drawn, *sampled):
        name = f"embedding_{stage}"
        if name not in outputs:
            raise ValueError(
                f"There is no projector without an output {name!r}. Received: {sorted(outputs)}. "
                "build_segmenter(..., projections=objective.stages) adds the embeddings of an "
                "objective's stages"
            )
        projector = Projector(segmenter, name, statistics=stage in drawn)
        if projector.source is not segmenter.output[name]:
            projectors[name], outputs[name] = projector, projector.source
        elif stage in drawn:
            raise ValueError(
                f"{name!r} must end in layers that process each pixel on its own, outside of a "
                f"nested model. Received: none in {segmenter.name!r}. Build the projector by "
                'kseg.heads.projection.projection, or use projection="map"'
            )
    if not projectors:
        return segmenter, {}
    trunk = keras.Model(segmenter.input, outputs, name=f"{segmenter.name}_trunk")
    if type(segmenter).call is not type(trunk).call:
        if not drawn:
            return segmenter, {}
        raise ValueError(
            "A model with a `call` of its own cannot be split before its projectors. Received: "
            f'{type(segmenter).__name__}. Use projection="map"'
        )
    return trunk, projectors


def inference_model(segmenter):
    """Reduces a segmenter to its logits at image size; the weights are shared.

    Args:
        segmenter: model from `build_segmenter`.

    Returns:
        `InferenceModel` from images, as the segmenter accepts them, to float32 logits
        `(batch, height, width, num_classes)`, resized bilinearly to the size of the image.
    """
    image = segmenter.input
    resize = ResizeLike(dtype="float32", name="logits_resize")
    logits = resize(segmenter.output["logits"], like=image)
    return InferenceModel(image, logits, name=f"{segmenter.name}_inference")


@keras.saving.register_keras_serializable(package="kseg")
class InferenceModel(keras.Model):
    """A functional model that always runs its batch norms and dropouts in inference mode.

    It can be compiled and evaluated. `fit` raises ValueError, since batch-norm statistics would not
    be updated.
    """

    # Keras rebuilds a functional subclass only if its constructor takes (*args, **kwargs).
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)

    def train_step(self, *arguments, **named):
        raise ValueError(
            f"{self.name!r} is for inference: its batch norms and dropouts are frozen. Received: a "
            "call of fit or train_on_batch. Train the segmenter that it was made from, whose "
            "weights it shares: SegmentationTrainer(segmenter)"
        )
