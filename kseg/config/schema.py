"""The schema of an experiment: the keys of a config, with types, rules and defaults."""

import itertools
import json
import re
import typing
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from kseg.errors import UserError, option

Stage = Literal["c2", "c3", "c4", "c5", "fpn_c2", "fpn_c3", "fpn_c4", "fpn_c5", "features"]
Strength = Annotated[float, Field(ge=0, lt=1)]
PositiveSize = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
_DOTTED = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def _check_dotted(name):
    if len(name) > 200 or not re.match(_DOTTED, name):
        raise ValueError(f"must be package.module:attribute. Received: {name!a:.200}")
    return name


Dotted = Annotated[
    str,
    pydantic.AfterValidator(_check_dotted),
    Field(
        description="`package.module:attribute`, imported when the experiment starts.",
        json_schema_extra={"pattern": _DOTTED},
    ),
]


def _by_name(known, custom):
    """Builds the type of a section whose class is selected by its `name`.

    Args:
        known: union of sections whose names are literals.
        custom: section whose name is dotted.
    """

    def kind(value):
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
        return "custom" if isinstance(name, str) and ":" in name else "known"

    return Annotated[
        Annotated[Annotated[known, Field(discriminator="name")], pydantic.Tag("known")]
        | Annotated[custom, pydantic.Tag("custom")],
        pydantic.Discriminator(kind),
    ]


class ConfigError(UserError):
    """A config file or an override that breaks the schema."""


class Section(pydantic.BaseModel):
    """A part of the config: immutable, every key known."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _no_bool_is_a_number(cls, values):
        """Rejects true for 1 and 1 for true, which pydantic converts into each other."""
        if not isinstance(values, dict):
            return values
        problems = [
            {"type": PydanticCustomError("value_error", problem), "loc": (key,), "input": value}
            for key, value in values.items()
            if key in cls.model_fields
            and (problem := _confusion(value, _plain_kinds(cls.model_fields[key].annotation)))
        ]
        if problems:
            raise pydantic.ValidationError.from_exception_data(cls.__name__, problems)
        return values


def _confusion(value, kinds):
    """Describes a bool where the types of a key have only numbers, or the reverse; else None."""
    for item in _plain_values(value):
        if isinstance(item, bool) and bool not in kinds and kinds & {int, float}:
            return f"must be a number. Received: {json.dumps(value)}"
        if bool in kinds and isinstance(item, int | float | str) and type(item) not in kinds:
            return f"must be true or false. Received: {json.dumps(value)}"
    return None


def _plain_kinds(annotation):
    """Returns the set of plain types, and `Any`, that a type contains, not those of sections."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return set(map(type, parts))
    if not parts:
        return {annotation}
    return set().union(*map(_plain_kinds, parts))


def _plain_values(value):
    """Yields a value, or those in its lists and dicts."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _plain_values(item)
    else:
        yield value


class Backbone(Section):
    """Keys shared by all backbones."""

    weights: str | None = Field(
        None,
        description="Pretrained weights to start from: a file (.weights.h5, .keras, .safetensors, "
        ".npz, .pth), hf://owner/name[/file] or keras_cv://preset; null: random.",
    )
    weights_if_missing: Literal["fail", "warn"] = Field(
        "fail",
        description="If `weights` cannot be fetched: stop, or warn and start from random weights.",
    )
    stem: Literal["mean", "repeat"] | None = Field(
        None,
        description="How an RGB first convolution in `weights` is adapted to images of other "
        "channels. mean: each channel gets the mean of the red, green and blue kernels. repeat: "
        "red, green, blue, red, ... null: repeat for more than 3 channels, else mean.",
    )


class HRNetBackbone(Backbone):
    """High-resolution network; c2..c5 are its four branches at strides 4, 8, 16, 32."""

    name: Literal["hrnet_w18_small", "hrnet_w18", "hrnet_w32", "hrnet_w48"]
    interpolation: Literal["bilinear", "nearest"] = Field(
        "bilinear",
        description="How fuse layers upsample: bilinear (segmentation) or nearest (timm).",
    )
    align_corners: bool = Field(False, description="Bilinear convention of the fuse layers.")


class ResNetBackbone(Backbone):
    """Residual network; dilated last stages if `output_stride` is below 32."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"]
    variant: Literal["v1b", "v1c", "v1d"] = Field(
        "v1b",
        description="v1b: 7x7 stem. v1c: stem of three 3x3. v1d: v1c with averaging shortcuts.",
    )
    stem_channels: int = Field(64, gt=0, description="Channels after the stem.")
    output_stride: Literal[8, 16, 32] = Field(32, description="Stride of c5.")
    multi_grid: list[PositiveSize] | None = Field(
        None, min_length=1, description="Dilation factors of the blocks of c5, such as [1, 2, 4]."
    )


class SwinBackbone(Backbone):
    """Shifted-window transformer; c2..c5 are its four stages at strides 4, 8, 16, 32."""

    name: Literal["swin_t", "swin_s", "swin_b", "swin_l", "swin_b_384", "swin_l_384"]
    drop_path_rate: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Stochastic-depth rate of the last block; rises linearly from 0.",
    )


class EfficientNetLiteBackbone(Backbone):
    """Inverted residuals with ReLU6; dilated last stages if `output_stride` is below 32."""

    name: Literal["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    output_stride: Literal[8, 16, 32] = Field(32, description="Stride of c5.")
    drop_path_rate: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Stochastic-depth rate of the last block; rises linearly from 0.",
    )


class KerasCVBackbone(Backbone):
    """Any backbone of keras-cv with four pyramid levels: a class with arguments, or a preset."""

    name: Literal["keras_cv"]
    class_name: str | None = Field(
        None, description="Name of the class, such as EfficientNetLiteBackbone."
    )
    arguments: dict[str, Any] = Field({}, description="Arguments of the class or of the preset.")
    preset: str | None = Field(
        None, description="Name of a preset to download, such as efficientnetv2_s_imagenet."
    )
    output_stride: Literal[8, 16, 32] = Field(32, description="Stride of c5; below 32 by dilation.")
    mean: tuple[float, float, float] = Field(
        (0.0, 0.0, 0.0), description="Mean of each channel, 0 to 255."
    )
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (255.0, 255.0, 255.0), description="Standard deviation of each channel, 0 to 255."
    )

    @pydantic.model_validator(mode="after")
    def _class_or_preset(self):
        if (self.class_name is None) == (self.preset is None):
            raise ValueError(
                "a keras_cv backbone needs `class_name` (with `arguments`) or `preset`, not both. "
                f"Received: class_name={self.class_name!r}, preset={self.preset!r}"
            )
        return self


class CustomBackbone(Backbone):
    """A backbone from outside kseg: a function that returns a `kseg.backbones.Backbone`."""

    name: Dotted
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the function.")


def backbone_names():
    """Returns the names of all backbones; list of str."""
    annotations = [cls.model_fields["name"].annotation for cls in Backbone.__subclasses__()]
    return [name for annotation in annotations for name in typing.get_args(annotation)]


class OCRHead(Section):
    """Object-contextual representations; its coarse logits are the auxiliary output."""

    name: Literal["ocr"]
    channels: int = Field(512, gt=0, description="Channels of pixel and object features.")
    key_channels: int = Field(256, gt=0, description="Channels of the keys of the attention.")
    source: Literal["pyramid", "deepest"] = Field(
        "pyramid", description="pyramid: all stages (HRNet). deepest: c5 and c4 (dilated ResNet)."
    )
    dropout: float = Field(0.05, ge=0, lt=1)
    align_corners: bool = Field(False, description="Bilinear convention of the upsampling.")


class HRNetHead(Section):
    """All stages upsampled to the finest and concatenated, then 1x1 convolutions."""

    name: Literal["hrnet"]
    align_corners: bool = Field(False, description="Bilinear convention of the upsampling.")


class DeepLabV3Head(Section):
    """Atrous spatial pyramid pooling on c5; its auxiliary output comes from c4."""

    name: Literal["deeplabv3"]
    channels: int = Field(256, gt=0, description="Channels of the fused map.")
    aspp_channels: int = Field(256, gt=0, description="Channels of each branch.")
    rates: list[PositiveSize] = Field(
        [12, 24, 36], description="Dilation rates of the branches; the default suits stride 8."
    )
    project: bool = Field(
        False, description="1x1 convolution after concatenating the branches, as in torchvision."
    )
    dropout: float = Field(0.1, ge=0, lt=1)
    aux_channels: int = Field(256, gt=0, description="Channels of the auxiliary head.")


class UPerNetHead(Section):
    """Pyramid pooling and a feature pyramid over c2..c5; its auxiliary output comes from c4."""

    name: Literal["upernet"]
    channels: int = Field(512, gt=0, description="Channels of the pyramid.")
    pool_sizes: list[PositiveSize] = Field([1, 2, 3, 6], description="Bins of pyramid pooling.")
    dropout: float = Field(0.1, ge=0, lt=1)
    aux_channels: int = Field(256, gt=0, description="Channels of the auxiliary head.")
    align_corners: bool = Field(False, description="Bilinear convention of the upsampling.")


class CustomHead(Section):
    """A head from outside kseg: a function as `kseg.heads` describes it."""

    name: Dotted
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the function.")


class Model(Section):
    """The segmentation network."""

    backbone: _by_name(
        EfficientNetLiteBackbone | HRNetBackbone | ResNetBackbone | SwinBackbone | KerasCVBackbone,
        CustomBackbone,
    )
    head: _by_name(DeepLabV3Head | HRNetHead | OCRHead | UPerNetHead, CustomHead)
    weights: str | None = Field(
        None,
        description="Pretrained weights of the whole network; sources as for `backbone.weights`.",
    )
    freeze: list[
        Literal["backbone", "c2", "c3", "c4", "c5", "batch_norms", "backbone_batch_norms"]
    ] = Field(
        [],
        description="Parts that training does not change: the backbone, all layers that a stage of "
        "it is computed from, all batch norms or those of the backbone (with their statistics).",
    )
    embedding_dim: int = Field(
        256, gt=0, description="Channels of the embeddings of contrasted stages."
    )
    projector_layers: int = Field(
        2, ge=0, description="Hidden layers of a projector: 2 in MS/CS, 1 in the other methods."
    )

    @pydantic.model_validator(mode="after")
    def _stages_can_be_frozen(self):
        stages = [part for part in self.freeze if part in ("c2", "c3", "c4", "c5")]
        if stages and self.backbone.name.startswith("hrnet"):
            raise ValueError(
                "`freeze`: the stages c2 to c5 of an HRNet are its four branches, each of which is "
                f"computed from nearly the whole network. Received: {stages}. Use 'backbone', or "
                '`optimizer.learning_rate_factors` such as {"stage2": 0}'
            )
        return self


class Loss(Section):
    """A weighted loss term."""

    weight: float = Field(1.0, ge=0)


ClassWeights = (
    Literal["median_frequency", "sqrt_median_frequency", "log"]
    | list[Annotated[float, Field(ge=0)]]
    | None
)
CLASS_WEIGHTS = (
    "Weight of each class, in order; or the name of a formula of its share of the training pixels"
)


class CrossEntropy(Loss):
    """Cross-entropy, averaged over pixels; weight 0 turns it off."""

    class_weights: ClassWeights = Field(
        None, description=f"{CLASS_WEIGHTS}; also used by `auxiliary`; null: all 1."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the uniform distribution; also used by `auxiliary`."
    )


class OHEM(Loss):
    """Cross-entropy, averaged over hard pixels; usually replaces `cross_entropy`."""

    threshold: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Pixels whose true class has at most this probability are kept.",
    )
    min_kept: int = Field(
        100_000, ge=0, description="Smallest number of pixels of a batch to keep."
    )
    class_weights: ClassWeights = Field(None, description=f"{CLASS_WEIGHTS}; null: all 1.")


class Lovasz(Loss):
    """Lovasz-softmax, with the batch treated as one image."""

    class_weights: ClassWeights = Field(None, description=f"{CLASS_WEIGHTS}; null: all 1.")


class Dice(Loss):
    """One minus the soft Dice coefficient of each class, with the batch treated as one image."""

    smooth: float = Field(0.0, ge=0, description="Pixels added to numerator and denominator.")
    squared: bool = Field(False, description="Square the probabilities in the denominator.")
    class_weights: ClassWeights = Field(None, description=f"{CLASS_WEIGHTS}; null: all 1.")


class Focal(Loss):
    """Cross-entropy with less weight on well-classified pixels (Lin et al., 2017)."""

    gamma: float = Field(2.0, ge=0, description="Exponent of 1 - p; 0: cross-entropy.")
    class_weights: ClassWeights = Field(None, description=f"{CLASS_WEIGHTS} (alpha); null: all 1.")


class RMI(Loss):
    """Binary cross-entropy and region mutual information (Zhao et al., 2019); a complete loss."""

    region_size: int = Field(3, gt=0, description="Cells along a side of a region.")
    downsampling: int = Field(4, gt=0, description="Pixels along a side of a cell.")
    pixel_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of the binary cross-entropy; the mutual information has the rest.",
    )


class Affinity(Loss):
    """Adaptive affinity fields (Ke et al., 2018); used with `cross_entropy`."""

    distances: list[PositiveSize] = Field(
        [1, 2, 3],
        min_length=1,
        description="Distances of compared pixels, in pixels of the logits.",
    )
    margin: float = Field(
        3.0, gt=0, description="Divergence across an edge above which there is no loss, nats."
    )
    temperature: float = Field(
        0.1,
        gt=0,
        description="Temperature of the weights of distances; near 0: only the worst counts.",
    )


# Losses that are also computed on the evaluation split, from logits of any image size.
# (Lovasz-softmax, RMI and affinity fields need a single size; there are no auxiliary logits.)
VALIDATED_LOSSES = ("cross_entropy", "ohem", "dice", "focal")


class Losses(Section):
    """Losses on logits."""

    cross_entropy: CrossEntropy = CrossEntropy()
    ohem: OHEM | None = None
    lovasz: Lovasz | None = None
    dice: Dice | None = None
    focal: Focal | None = None
    rmi: RMI | None = None
    affinity: Affinity | None = None
    auxiliary: Loss | None = Field(
        Loss(weight=0.4), description="Cross-entropy of the auxiliary logits; null: none."
    )

    @pydantic.model_validator(mode="after")
    def _something_is_left(self):
        names = [name for name in type(self).model_fields if name != "auxiliary"]
        if not any(loss.weight for name in names if (loss := getattr(self, name))):
            raise ValueError(
                f"`losses`: one of {', '.join(names[:-1])} and {names[-1]} needs a weight above 0"
            )
        return self

    def check_classes(self, num_classes):
        """Checks that each list of class weights has one weight per class.

        Args:
            num_classes: int, number of classes of the data.

        Raises:
            ConfigError: if a list has another length.
        """
        for name in type(self).model_fields:
            weights = getattr(getattr(self, name), "class_weights", None)
            if isinstance(weights, list) and len(weights) != num_classes:
                raise ConfigError(
                    f"`losses.{name}.class_weights` must have a number for each of the "
                    f"{num_classes} classes. Received: {len(weights)}"
                )


class Objective(Section):
    """Keys shared by all contrastive objectives."""

    weight: float = Field(0.1, ge=0, description="Multiplies every term of the objective.")
    start_step: int = Field(
        0,
        ge=0,
        description="Step before which the weight is 0; memory banks are filled regardless.",
    )
    warmup_steps: int = Field(
        0, ge=0, description="Steps after `start_step` over which the weight rises linearly."
    )


class MultiScale(Objective):
    """Multi- and cross-scale contrast (Pissas et al., ECCV 2022)."""

    name: Literal["multi_scale"]
    scale_weights: dict[Stage, Annotated[float, Field(ge=0)]] = Field(
        {"c2": 1.0, "c3": 0.7, "c4": 0.4, "c5": 0.1},
        description="w_s of Eq. 3 for each contrasted stage, finest first.",
    )
    cross_scale_pairs: list[tuple[Stage, Stage]] = Field(
        [("c2", "c5"), ("c2", "c4")],
        description="Pairs (stage of anchors, stage of keys) of Eq. 4; stages need a scale weight.",
    )
    cross_scale_weight: float = Field(
        1.0, ge=0, description="Weight of Eq. 4 relative to Eq. 3; 0: no cross-scale term."
    )
    temperature: float = Field(0.1, gt=0)
    max_anchors: int = Field(10_000, gt=1, description="A_max of Sec. 3.3, per batch and stage.")
    min_count: int = Field(
        5, gt=0, description="Pixels that a class needs at a stage to be sampled."
    )
    cross_replica: bool = Field(True, description="Contrast over the global batch.")
    projection: Literal["map", "drawn"] = Field(
        "map",
        description="Pixels to project in training: the whole map, or only those that are drawn.",
    )

    @property
    def stages(self) -> list[str]:
        """Maps that it contrasts."""
        return list(self.scale_weights)

    @pydantic.model_validator(mode="after")
    def _pairs_have_weights(self):
        if not self.scale_weights:
            raise ValueError("`scale_weights` must name at least one stage")
        for pair in self.cross_scale_pairs:
            for stage in pair:
                if stage not in self.scale_weights:
                    raise ValueError(
                        f"every stage of `cross_scale_pairs` needs a key in `scale_weights`; "
                        f"{stage!r} of {list(pair)} has none (0 is allowed)"
                    )
        return self


class RegionContrast(Objective):
    """Region centers contrasted with those of the whole data set (Hu et al., ICCV 2021)."""

    name: Literal["region_contrast"]
    scope: Literal["dataset", "batch"] = Field(
        "dataset",
        description="dataset: keys are a memory bank. batch: the other centers of the batch.",
    )
    centers: Literal["weighted", "hard", "average"] = Field(
        "weighted",
        description="Mean over a region. weighted: Eq. 3. hard: EP + HP (Table 2). average: Eq. 2.",
    )
    capacity: int = Field(
        1000,
        gt=0,
        description="Stored centers per class; in the paper, the number of training images.",
    )
    layout: Literal["dense", "compact"] = Field(
        "dense",
        description="compact: at most as many slots for a class as training images contain it.",
    )
    temperature: float = Field(0.2, gt=0)
    reduction: Literal["mean", "sum"] = Field(
        "sum",
        description="sum: over classes, then averaged over images. mean: over all centers.",
    )
    storage: Literal["float32", "bfloat16"] = Field(
        "float32", description="Dtype of the memory bank."
    )
    cross_replica: bool = Field(
        True, description="With scope batch: keys come from the global batch."
    )

    @property
    def stages(self) -> list[str]:
        """Maps that need a projector: none, since it contrasts the features themselves."""
        return []


class Contextrast(Objective):
    """Anchors with shared context, boundary-aware negatives (Sung et al., CVPR 2024)."""

    name: Literal["contextrast"]
    layer_weights: dict[Stage, Annotated[float, Field(ge=0)]] = Field(
        {"c2": 0.1, "c3": 0.4, "c4": 0.7, "c5": 1.0},
        description="lambda_i of each layer (Table 8a).",
    )
    reference: Stage = Field("c5", description="Layer whose anchors are shared (Table 5).")
    shared_layers: list[Stage] | None = Field(
        None,
        description="Layers that mix in the anchors of `reference`; []: none, null: all (Table 6).",
    )
    own_weight: float = Field(0.5, ge=0, description="w_l, of the layer's own anchors.")
    shared_weight: float = Field(0.5, ge=0, description="w_h, of the reference's anchors.")
    negatives: Literal["boundary", "random"] = Field(
        "boundary",
        description="boundary: errors near an edge. random: any pixels of other classes.",
    )
    hard_fraction: float = Field(
        0.5,
        gt=0,
        le=1,
        description="K: share of the errors of a class, nearest to an edge, that may be drawn.",
    )
    min_negatives: int = Field(
        64,
        ge=0,
        description="Smallest number of negatives per class; random pixels make up for few errors.",
    )
    max_samples: int = Field(
        4096, gt=0, description="Number of positives, and of negatives, per layer and batch."
    )
    temperature: float = Field(0.1, gt=0)
    cross_replica: bool = Field(True, description="Contrast over the global batch.")

    @property
    def stages(self) -> list[str]:
        """Maps that it contrasts."""
        return list(self.layer_weights)

    @pydantic.model_validator(mode="after")
    def _layers_exist(self):
        for stage in (self.reference, *(self.shared_layers or ())):
            if stage not in self.layer_weights:
                raise ValueError(
                    f"`reference` and `shared_layers` must be keys of `layer_weights`. Received: "
                    f"{stage!r} and the keys {sorted(self.layer_weights)}"
                )
        return self


class PixelContrast(Objective):
    """Hard pixels contrasted with each other or with a memory (Wang et al., ICCV 2021)."""

    name: Literal["pixel_contrast"]
    stage: Stage = Field("features", description="The contrasted map.")
    memory: Literal["none", "pixel", "region", "both"] = Field(
        "none", description="none: keys are the other anchors. Else stored pixels, regions or both."
    )
    pixel_capacity: int = Field(1000, gt=0, description="Stored pixels per class.")
    region_capacity: int = Field(1000, gt=0, description="Stored regions per class.")
    pixels_per_image: int = Field(
        10, gt=0, description="Pixels of each class and image that a step stores."
    )
    max_keys: int | None = Field(
        4096,
        gt=0,
        description="Stored pixels and regions that a step draws as keys; null: all of them.",
    )
    max_anchors: int = Field(1024, gt=1, description="Largest number of anchors per batch.")
    max_views: int = Field(100, gt=0, description="Largest number of anchors per class and image.")
    min_count: int = Field(
        5, gt=0, description="Pixels that a class needs in an image to be sampled."
    )
    temperature: float = Field(0.1, gt=0)
    base_temperature: float = Field(
        0.07, gt=0, description="The loss is multiplied by temperature / base_temperature."
    )
    cross_replica: bool = Field(True, description="Contrast over the global batch.")
    projection: Literal["map", "drawn"] = Field(
        "map",
        description="Pixels to project in training: the whole map, or only those that are drawn.",
    )

    @property
    def stages(self) -> list[str]:
        """Maps that it contrasts."""
        return [self.stage]


class CustomObjective(Objective):
    """An objective from outside kseg: a subclass of `kseg.contrast.objective.Objective`."""

    name: Dotted
    arguments: dict[str, Any] = Field(
        {}, description="Keyword arguments of the class, besides the number of classes."
    )

    @property
    def stages(self):
        """Empty: the stages are known only once the objective is built."""
        return []


Contrast = _by_name(MultiScale | RegionContrast | Contextrast | PixelContrast, CustomObjective)


class ColorJitter(Section):
    """Strengths of the photometric distortions; 0 turns one off."""

    brightness: Strength = 0.25
    contrast: Strength = 0.25
    saturation: Strength = 0.25
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.05, description="Fraction of a full turn.")


class Blur(Section):
    """Gaussian blur of a random share of the crops."""

    probability: float = Field(0.5, ge=0, le=1, description="Share of the crops.")
    sigma: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.1, 2.0), description="Smallest and largest standard deviation, pixels."
    )

    @pydantic.model_validator(mode="after")
    def _sigma_is_ordered(self):
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"`sigma` must be lowest <= highest. Received: {list(self.sigma)}")
        return self


class RareClasses(Section):
    """The classes that count as rare."""

    classes: list[str] | None = Field(
        None, min_length=1, description="Names of the rare classes; null: chosen by `below`."
    )
    below: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="A class is rare if it has a smaller share of the labeled training pixels.",
    )


class RareCrops(RareClasses):
    """Crops centered on a pixel of a rare class, as in nnU-Net (Isensee et al., 2021)."""

    probability: float = Field(
        1 / 3,
        gt=0,
        le=1,
        description="Share of centered crops among crops of images that have a rare class.",
    )


class CutMix(Section):
    """CutMix: a rectangle comes from another image of the batch (Yun et al., 2019)."""

    name: Literal["cutmix"]
    probability: float = Field(0.5, gt=0, le=1, description="Share of the images.")
    alpha: float = Field(
        1.0, gt=0, description="Parameter of the Beta distribution of the share of area kept."
    )


class CopyPaste(RareClasses):
    """Copy-paste of rare classes from another image of the batch (Ghiasi et al., 2021)."""

    name: Literal["copy_paste"]
    probability: float = Field(
        0.5, gt=0, le=1, description="Share of the images that receive pasted pixels."
    )


class CustomAugmentation(Section):
    """A Keras layer, or a function `(batch, seed, **arguments)` that returns a batch."""

    name: Dotted
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the layer or function.")


Augmentation = _by_name(CutMix | CopyPaste, CustomAugmentation)


class Data(Section):
    """The data of training and evaluation."""

    dataset: str = Field(description="Name of the data set, as in `kseg prepare NAME`.")
    path: str | None = Field(
        None, description="Folder of prepared data, local, gs:// or s3://; null: data/<dataset>."
    )
    train_split: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[dict[str, PositiveFloat], Field(min_length=1)]
    ) = Field(
        "train",
        description='A split; several as one training set, such as ["train", "val"]; or with how '
        'often an epoch shows each image, such as {"train": 1, "train_extra": 0.5}.',
    )
    eval_split: str = Field("val", description="Split that is evaluated.")
    crop_size: tuple[PositiveSize, PositiveSize] = Field(description="(height, width), pixels.")
    batch_size: int = Field(gt=0, description="Images in a step, over all devices.")
    scale_range: tuple[float, float] = Field(
        (0.5, 2.0), description="Smallest and largest random scale."
    )
    flip: bool = Field(True, description="Mirror half of the crops.")
    rotation: float = Field(
        0.0, ge=0, le=180, description="Largest angle of rotation in either direction, degrees."
    )
    color_jitter: ColorJitter | None = ColorJitter()
    blur: Blur | None = None
    max_class_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="A crop in which one class has a larger share is drawn again, at most 9 times.",
    )
    repeat_threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Images with a class that occurs in a smaller share of the images are shown "
        "more often (repeat factor sampling, Gupta et al., 2019).",
    )
    rare_crops: RareCrops | None = None
    augmentations: list[Augmentation] = Field(
        [], description="Applied in order to batches of crops, before colors are distorted."
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="For an unusable training record: stop, or use another image."
    )
    max_errors: int = Field(10, ge=0, description="Largest number of records to skip.")
    cache: str | None = Field(
        None,
        description='"memory": keep decoded images in memory; else a local folder for a copy of '
        "the training shards.",
    )
    service: str | None = Field(
        None,
        pattern=r"^grpc://.+:\d+$",
        description="Address of a tf.data service that makes the training batches, grpc://host:port.",
    )
    eval_batch_size: int = Field(
        4, gt=0, description="Images in an evaluation batch if all have one size; else 1."
    )

    @pydantic.model_validator(mode="after")
    def _scale_range_is_ordered(self):
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(
                f"`scale_range` must be 0 < lowest <= highest. Received: {[low, high]}. "
                "Use [1, 1] for no scaling"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _there_is_another_image(self):
        mixing = [a.name for a in self.augmentations if a.name in ("cutmix", "copy_paste")]
        if mixing and self.batch_size == 1:
            raise ValueError(
                f"`augmentations`: {mixing[0]} takes pixels from another image of the batch. "
                "Received: `batch_size` 1. Use more images"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _splits_differ(self):
        if len(set(self.train_splits)) < len(self.train_splits):
            raise ValueError(
                f"`train_split` must name each split once. Received: {self.train_split}. Use "
                f"{dict.fromkeys(self.train_splits, 1)} with another number to show one more often"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _memory_is_here(self):
        if self.cache == "memory" and (self.service or self.on_error == "skip"):
            raise ValueError(
                '`cache` "memory" reads every image before the first step, in the training '
                'process: it cannot be combined with `service` or `on_error` "skip". Use a folder'
            )
        return self

    @property
    def train_splits(self) -> list[str]:
        """Names of the splits that are trained on."""
        return [self.train_split] if isinstance(self.train_split, str) else list(self.train_split)

    @property
    def folder(self) -> str:
        """The prepared records."""
        return self.path or f"data/{self.dataset}"


class Optimizer(Section):
    """Keys shared by both optimizers."""

    learning_rate_factors: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="Factor of the learning rate of a part of the network (backbone, head, "
        "projectors) or of the layers whose names begin with the key; 0: weights do not change.",
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Swin: with L blocks, block i = 1..L has `layer_decay`^(L + 1 - i) times the "
        "learning rate; usually 0.65 to 0.95; null: no decay.",
    )


class SGD(Optimizer):
    """Stochastic gradient descent; weight decay is added to the gradient (L2), as in the papers."""

    name: Literal["sgd"]
    learning_rate: float = Field(0.01, gt=0, description="Peak of the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0, description="Does not apply to biases and norms.")


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    name: Literal["adamw"]
    learning_rate: float = Field(6e-5, gt=0, description="Peak of the schedule.")
    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="Does not apply to biases and norms.")


class Poly(Section):
    """Polynomial decay to `end_learning_rate`, by (1 - step / steps)^power; linear warm-up."""

    name: Literal["poly"]
    power: float = Field(0.9, gt=0)
    warmup_steps: int = Field(0, ge=0)
    end_learning_rate: float = Field(0.0, ge=0)


class Linear(Section):
    """Linear decay to `end_learning_rate`; linear warm-up."""

    name: Literal["linear"]
    warmup_steps: int = Field(0, ge=0)
    end_learning_rate: float = Field(0.0, ge=0)


class Cosine(Section):
    """Cosine decay to `end_learning_rate` over half a period; linear warm-up."""

    name: Literal["cosine"]
    warmup_steps: int = Field(0, ge=0)
    end_learning_rate: float = Field(0.0, ge=0)


class EMA(Section):
    """Exponential moving average of the weights, including batch-norm statistics."""

    decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="Weight of the old average, at most (t - 1) / (t + 8) in step t.",
    )


class Patience(Section):
    """Early stopping when evaluations no longer improve."""

    evaluations: int = Field(
        gt=0, description="Successive evaluations without improvement that end the training."
    )
    watch: Literal["mean_iou", "loss"] = Field(
        "mean_iou", description="Value on the evaluation split: mean IoU, or the sum of the losses."
    )
    min_change: float = Field(
        0.0, ge=0, description="An improvement exceeds the best value by more than this."
    )


class CallbackEntry(Section):
    """A subclass of `kseg.training.callbacks.Callback`, or a function that returns one."""

    name: Dotted
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the class or function.")


class Train(Section):
    """The training run."""

    steps: int | None = Field(
        None,
        gt=0,
        description="Optimizer steps, not counting `restarts`; required unless `epochs` is given.",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="Passes over the training images, instead of `steps`; converted to steps in "
        "the config of the run.",
    )
    restarts: list[PositiveSize] = Field(
        [],
        max_length=100,
        description="Steps of each further cycle, in which the schedule restarts at its peak; can "
        "be appended to after the run has finished.",
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32",
        description="Precision of the layers; weights, losses and banks stay float32. "
        "mixed_float16 scales the loss, and skips steps whose gradients overflow.",
    )
    jit_compile: bool | Literal["auto"] = Field(
        "auto", description="Compile the step with XLA; auto: on a single GPU."
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Limit of the global norm of the gradients; null: none."
    )
    accumulate: int = Field(
        1,
        gt=0,
        description="Number of equal parts of a batch that the network processes in sequence, to "
        "save memory; losses and contrast see the whole batch.",
    )
    ema: EMA | None = Field(
        None,
        description="Average of weights for evaluation and export; null: the weights themselves.",
    )
    patience: Patience | None = Field(
        None, description="Early stopping; null: all steps are taken."
    )
    callbacks: list[CallbackEntry] = Field(
        [],
        max_length=100,
        description="Called at the start, logs, evaluations, checkpoints and the end.",
    )
    profile: tuple[PositiveSize, PositiveSize] | None = Field(
        None, description="First and last step to trace for TensorBoard, counted from 1."
    )
    devices: int | None = Field(None, gt=0, description="Number of devices to use; null: all.")
    synchronized_batch_norm: bool = Field(
        True, description="Batch-norm statistics of the global batch on several devices."
    )
    log_every: int = Field(
        20, gt=0, description="Steps between progress lines and TensorBoard events."
    )
    evaluate_every: int = Field(
        1000, gt=0, description="Steps between evaluations; there is also one at the end."
    )
    checkpoint_every: int = Field(
        500, gt=0, description="Steps between checkpoints; there is also one at the end."
    )
    keep_checkpoints: int = Field(
        2, gt=0, description="Number of newest checkpoints to keep, besides the best."
    )
    panels: int = Field(
        4, ge=0, description="Number of image panels in TensorBoard at each evaluation."
    )

    @pydantic.model_validator(mode="after")
    def _steps_or_epochs(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                "`train` needs `steps` or `epochs`, and not both. Received: "
                f"steps={json.dumps(self.steps)}, epochs={json.dumps(self.epochs)}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _profiled_steps_are_made(self):
        if self.profile is not None:
            first, last = self.profile
            if first > last or (self.steps and last > self.total_steps):
                raise ValueError(
                    "`train.profile` must be [first, last] with first <= last <= the steps of the "
                    f"run. Received: {list(self.profile)}"
                    + (f" and {self.total_steps} steps" if self.steps else "")
                )
        return self

    @property
    def cycle_ends(self) -> list[int]:
        """The last step of each cycle of the schedule."""
        return list(itertools.accumulate([self.steps, *self.restarts]))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, restarts included."""
        return self.cycle_ends[-1]


class Experiment(Section):
    """An experiment: everything that determines its result."""

    schema_: str | None = Field(None, alias="$schema", exclude=True)
    comment_: str | list[str] | None = Field(
        None,
        alias="$comment",
        exclude=True,
        description="Note for readers of the file; has no effect.",
    )
    extends: str | list[str] | None = Field(
        None,
        exclude=True,
        description="Config file(s) with the values of keys that this file does not set; paths are "
        "relative to this file, and later files override earlier ones.",
    )
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200, description="Name of the run."
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of all randomness: weights, data, sampling."
    )
    model: Model
    losses: Losses = Losses()
    contrast: list[Contrast] = []
    data: Data
    optimizer: Annotated[SGD | AdamW, Field(discriminator="name")] = SGD(name="sgd")
    schedule: Annotated[Poly | Linear | Cosine, Field(discriminator="name")] = Poly(name="poly")
    train: Train

    @pydantic.model_validator(mode="after")
    def _steps_and_sizes_fit(self):
        if self.train.steps and self.schedule.warmup_steps >= self.train.steps:
            raise ValueError(
                f"`schedule.warmup_steps` must be below `train.steps`. Received: "
                f"{self.schedule.warmup_steps} and {self.train.steps}. Use "
                + option("overrides", [f"schedule.warmup_steps={self.train.steps // 10}"])
            )
        if self.data.batch_size % self.train.accumulate:
            raise ValueError(
                "`data.batch_size` must be divisible by `train.accumulate`. Received: "
                f"{self.data.batch_size} and {self.train.accumulate}"
            )
        rmi, crop_size = self.losses.rmi, list(self.data.crop_size)
        if rmi and min(crop_size) < rmi.region_size * rmi.downsampling:
            raise ValueError(
                "`data.crop_size` must hold a region of `losses.rmi`, "
                f"{rmi.region_size} x {rmi.downsampling} pixels. Received: {crop_size}. Use a "
                "larger crop or a smaller losses.rmi.downsampling"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _layer_decay_fits_the_backbone(self):
        if self.optimizer.layer_decay is None:
            return self
        backbone = self.model.backbone.name
        if not backbone.startswith("swin_"):
            raise ValueError(
                f"`optimizer.layer_decay` is for Swin backbones. Received: {backbone!r}. Use "
                "`optimizer.learning_rate_factors`"
            )
        if {"backbone", "c5"} & {*self.model.freeze}:
            raise ValueError(
                "`optimizer.layer_decay` needs blocks of the backbone that are trained. Received: "
                f"`model.freeze` {self.model.freeze}. Set `optimizer.layer_decay` to null"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _watched_loss_is_computed(self):
        patience = self.train.patience
        of_losses = [getattr(self.losses, name) for name in VALIDATED_LOSSES]
        if patience and patience.watch == "loss" and not any(x and x.weight for x in of_losses):
            raise ValueError(
                '`train.patience.watch` "loss" needs a loss that is computed on the evaluation '
                f"split, one of {', '.join(VALIDATED_LOSSES)}, with a weight above 0. Use "
                '"mean_iou"'
            )
        return self

    @pydantic.model_validator(mode="after")
    def _objectives_fit(self):
        names = [objective.name for objective in self.contrast]
        if len(set(names)) < len(names):
            raise ValueError(f"`contrast` names an objective twice: {names}")
        for index, objective in enumerate(self.contrast):
            if self.train.steps and objective.start_step >= self.train.steps:
                raise ValueError(
                    f"`start_step` of {objective.name!r} must be below `train.steps`. Received: "
                    f"{objective.start_step} and {self.train.steps}. Use "
                    + option("overrides", [f"contrast.{index}.start_step={self.train.steps // 10}"])
                )
            if getattr(objective, "scope", None) == "batch" and self.data.batch_size == 1:
                raise ValueError(
                    "`scope` batch of 'region_contrast' contrasts the images of a batch: in one "
                    "image a class has one center, and no positive. Received: `data.batch_size` 1. "
                    'Use more images, or "scope": "dataset"'
                )
            pyramid = [s for s in objective.stages if s.startswith("fpn_")]
            if pyramid and self.model.head.name != "upernet":
                raise ValueError(
                    f"`contrast`: stages fpn_c2 to fpn_c5 are the pyramid of the upernet head. "
                    f"Received: {pyramid} in {objective.name!r} with the head "
                    f"{self.model.head.name!r}. Use c2 to c5"
                )
        return self

    def to_json(self) -> str:
        """Formats the resolved config as JSON, with every default written out."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def json_schema() -> str:
    """Returns the JSON schema of a config file; no key is required, since files may extend."""
    return json.dumps(_relaxed(Experiment.model_json_schema(by_alias=True)), indent=1) + "\n"


def _relaxed(schema):
    if isinstance(schema, list):
        return [_relaxed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _relaxed(value) for key, value in schema.items() if key != "discriminator"}
    if isinstance(schema.get("required"), list):
        del schema["required"]
    if "oneOf" in schema:  # Without its name a section fits several members of a union.
        schema["anyOf"] = schema.pop("oneOf")
    return schema
