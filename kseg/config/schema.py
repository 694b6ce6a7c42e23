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
    """The type of a section that is chosen by its `name`.

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
        description="If `weights` are unavailable (no network): stop, or warn and start at random.",
    )
    stem: Literal["mean", "repeat"] | None = Field(
        None,
        description="First convolution of `weights` for RGB, on images of other channels. mean: "
        "each channel gets the mean of red, green and blue. repeat: red, green, blue, red, ... in "
        "turn. null: repeat for more than 3 channels, else mean.",
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
    """Residual network; its last stages are dilated where `output_stride` is below 32."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"]
    variant: Literal["v1b", "v1c", "v1d"] = Field(
        "v1b", description="v1b: 7x7 stem. v1c: three 3x3. v1d: and averaging shortcuts."
    )
    stem_channels: int = Field(64, gt=0, description="Channels after the stem.")
    output_stride: Literal[8, 16, 32] = Field(32, description="Stride of c5.")
    multi_grid: list[PositiveSize] | None = Field(
        None, min_length=1, description="Factors of the dilation in c5's blocks, such as [1, 2, 4]."
    )


class SwinBackbone(Backbone):
    """Shifted-window transformer; c2..c5 are its four stages at strides 4, 8, 16, 32."""

    name: Literal["swin_t", "swin_s", "swin_b", "swin_l", "swin_b_384", "swin_l_384"]
    drop_path_rate: float = Field(
        0.3, ge=0, lt=1, description="Stochastic depth of the last block; rises linearly from 0."
    )


class EfficientNetLiteBackbone(Backbone):
    """Inverted residuals with ReLU6; its last stages are dilated below `output_stride` 32."""

    name: Literal["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    output_stride: Literal[8, 16, 32] = Field(32, description="Stride of c5.")
    drop_path_rate: float = Field(
        0.2, ge=0, lt=1, description="Stochastic depth of the last block; rises linearly from 0."
    )


class KerasCVBackbone(Backbone):
    """Any backbone of keras-cv with four pyramid levels: a class with arguments, or a preset."""

    name: Literal["keras_cv"]
    class_name: str | None = Field(None, description="Such as EfficientNetLiteBackbone.")
    arguments: dict[str, Any] = Field({}, description="Arguments of the class or of the preset.")
    preset: str | None = Field(None, description="Such as efficientnetv2_s_imagenet; downloaded.")
    output_stride: Literal[8, 16, 32] = Field(32, description="Stride of c5, by dilation.")
    mean: tuple[float, float, float] = Field(
        (0.0, 0.0, 0.0), description="Mean of the images, 0 to 255."
    )
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field((255.0, 255.0, 255.0))

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
    """Names of all backbones; list of str."""
    annotations = [cls.model_fields["name"].annotation for cls in Backbone.__subclasses__()]
    return [name for annotation in annotations for name in typing.get_args(annotation)]


class OCRHead(Section):
    """Object-contextual representations; its coarse logits are the auxiliary output."""

    name: Literal["ocr"]
    channels: int = Field(512, gt=0, description="Channels of pixel and object features.")
    key_channels: int = Field(256, gt=0, description="Channels of the attention's keys.")
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
    rates: list[PositiveSize] = Field([12, 24, 36], description="Dilation rates, for stride 8.")
    project: bool = Field(False, description="A 1x1 convolution before the last, as torchvision.")
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
        None, description="Weights of the whole network to start from, as `backbone.weights`."
    )
    freeze: list[
        Literal["backbone", "c2", "c3", "c4", "c5", "batch_norms", "backbone_batch_norms"]
    ] = Field(
        [],
        description="Parts that training leaves as they are: the backbone, all that a stage of it "
        "is computed from, all batch norms or the backbone's (with their statistics).",
    )
    embedding_dim: int = Field(
        256, gt=0, description="Channels that the projectors of contrasted stages map to."
    )
    projector_layers: int = Field(
        2, ge=0, description="Hidden layers of a projector: 2 in MS/CS, else 1."
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
    "One for each class, in order, or by name from the pixels of each class in the training split"
)


class CrossEntropy(Loss):
    """Mean cross-entropy of the pixels; weight 0 turns it off."""

    class_weights: ClassWeights = Field(
        None, description=f"{CLASS_WEIGHTS}; here and in `auxiliary`; null: all 1."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Here and in `auxiliary`.")


class OHEM(Loss):
    """Mean cross-entropy of the hard pixels; mostly in place of `cross_entropy`."""

    threshold: float = Field(0.7, ge=0, le=1, description="Probability below which all are kept.")
    min_kept: int = Field(100_000, ge=0, description="Pixels of a batch that are kept at least.")
    class_weights: ClassWeights = Field(None, description=f"{CLASS_WEIGHTS}; null: all 1.")


class Lovasz(Loss):
    """Lovasz-softmax, over the batch as one image."""

    class_weights: ClassWeights = Field(None, description=f"{CLASS_WEIGHTS}; null: all 1.")


class Dice(Loss):
    """One minus the soft Dice coefficient of each class, over the batch as one image."""

    smooth: float = Field(0.0, ge=0, description="Pixels added above and below the fraction.")
    squared: bool = Field(False, description="Square the probabilities below the fraction.")
    class_weights: ClassWeights = Field(None, description=f"{CLASS_WEIGHTS}; null: all 1.")


class Focal(Loss):
    """Cross-entropy with less weight on pixels that are classified well (Lin et al., 2017)."""

    gamma: float = Field(2.0, ge=0, description="Exponent of 1 - p; 0: cross-entropy.")
    class_weights: ClassWeights = Field(None, description=f"{CLASS_WEIGHTS} (alpha); null: all 1.")


class RMI(Loss):
    """Binary cross-entropy and region mutual information (Zhao et al., 2019); a whole loss."""

    region_size: int = Field(3, gt=0, description="Cells along a side of a region.")
    downsampling: int = Field(4, gt=0, description="Pixels along a side of a cell.")
    pixel_weight: float = Field(
        0.5, ge=0, le=1, description="Share of the binary cross-entropy; the rest is the regions'."
    )


class Affinity(Loss):
    """Adaptive affinity fields (Ke et al., 2018); beside `cross_entropy`."""

    distances: list[PositiveSize] = Field(
        [1, 2, 3], min_length=1, description="Of compared pixels, in pixels of the logits."
    )
    margin: float = Field(3.0, gt=0, description="Divergence across an edge that is enough, nats.")
    temperature: float = Field(
        0.1, gt=0, description="Of the weights of the distances: near 0 only the worst counts."
    )


# Losses that are also computed on the evaluation split: those that need only logits, for any image
# size. (Lovasz-softmax, RMI and affinity fields need a single size; auxiliary logits are missing.)
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
        """Checks that each list of class weights has one for each class.

        Args:
            num_classes: int, known once the data is.

        Raises:
            ConfigError: if one has another length.
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
        0, ge=0, description="The weight is 0 before it; memory banks are filled from the start on."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Steps from `start_step` on over which the weight rises linearly."
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
        description="(anchors, keys) of Eq. 4. Every stage in them also needs a scale weight.",
    )
    cross_scale_weight: float = Field(
        1.0, ge=0, description="Weight of Eq. 4 relative to Eq. 3; 0 or no pairs turns it off."
    )
    temperature: float = Field(0.1, gt=0)
    max_anchors: int = Field(10_000, gt=1, description="A_max of Sec. 3.3, per batch and scale.")
    min_count: int = Field(5, gt=0, description="Pixels a class needs at a scale to take part.")
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
        "dataset", description="Keys: a memory bank, or the other centers of the batch."
    )
    centers: Literal["weighted", "hard", "average"] = Field(
        "weighted", description="How a region's features are averaged: Eq. 3, EP + HP, Eq. 2."
    )
    capacity: int = Field(
        1000, gt=0, description="Stored centers of each class; the paper: the training images."
    )
    layout: Literal["dense", "compact"] = Field(
        "dense",
        description="compact: no more slots of a class than training images in which it occurs.",
    )
    temperature: float = Field(0.2, gt=0)
    reduction: Literal["mean", "sum"] = Field(
        "sum",
        description="Over an image's classes, then the mean over images; or the mean of all.",
    )
    storage: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of the bank.")
    cross_replica: bool = Field(True, description="With scope batch: over the global batch.")

    @property
    def stages(self) -> list[str]:
        """Maps that it contrasts: only the one that every network has."""
        return []


class Contextrast(Objective):
    """Anchors with shared context, boundary-aware negatives (Sung et al., CVPR 2024)."""

    name: Literal["contextrast"]
    layer_weights: dict[Stage, Annotated[float, Field(ge=0)]] = Field(
        {"c2": 0.1, "c3": 0.4, "c4": 0.7, "c5": 1.0}, description="lambda_i of Table 8a."
    )
    reference: Stage = Field("c5", description="Layer whose anchors are shared (Table 5).")
    shared_layers: list[Stage] | None = Field(
        None, description="Layers that take part in the sharing; [] none, null all (Table 6)."
    )
    own_weight: float = Field(0.5, ge=0, description="w_l, of the layer's own anchors.")
    shared_weight: float = Field(0.5, ge=0, description="w_h, of the reference's anchors.")
    negatives: Literal["boundary", "random"] = Field(
        "boundary", description="Errors near an edge, or any pixels of other classes."
    )
    hard_fraction: float = Field(
        0.5, gt=0, le=1, description="K: part of a class's errors, those nearest to an edge."
    )
    min_negatives: int = Field(
        64, ge=0, description="Of a class at least; random pixels fill up what errors leave."
    )
    max_samples: int = Field(
        4096, gt=0, description="Positives, and as many negatives, per layer and batch."
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
    """Hard pixels against each other or a memory (Wang et al., ICCV 2021)."""

    name: Literal["pixel_contrast"]
    stage: Stage = Field("features", description="The contrasted map.")
    memory: Literal["none", "pixel", "region", "both"] = Field(
        "none", description="Keys: the other anchors, or remembered pixels, regions or both."
    )
    pixel_capacity: int = Field(1000, gt=0, description="Remembered pixels of each class.")
    region_capacity: int = Field(1000, gt=0, description="Remembered regions of each class.")
    pixels_per_image: int = Field(
        10, gt=0, description="Pixels of a class in an image that a step remembers."
    )
    max_keys: int | None = Field(
        4096,
        gt=0,
        description="Remembered rows that a step draws as keys; null: all are keys.",
    )
    max_anchors: int = Field(1024, gt=1, description="Per batch.")
    max_views: int = Field(100, gt=0, description="Anchors of a class in an image.")
    min_count: int = Field(5, gt=0, description="Pixels a class needs in an image to take part.")
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
        """Stages are known once the objective is built."""
        return []


Contrast = _by_name(MultiScale | RegionContrast | Contextrast | PixelContrast, CustomObjective)


class ColorJitter(Section):
    """Strengths of the photometric distortion; 0 switches one off."""

    brightness: Strength = 0.25
    contrast: Strength = 0.25
    saturation: Strength = 0.25
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.05, description="Fraction of a full turn.")


class Blur(Section):
    """Gaussian blur of some crops."""

    probability: float = Field(0.5, ge=0, le=1)
    sigma: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.1, 2.0), description="Smallest and largest standard deviation, pixels."
    )

    @pydantic.model_validator(mode="after")
    def _sigma_is_ordered(self):
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"`sigma` must be least <= most. Received: {list(self.sigma)}")
        return self


class RareClasses(Section):
    """The choice of the classes that count as rare."""

    classes: list[str] | None = Field(
        None, min_length=1, description="Names of the rare classes; null: by `below`."
    )
    below: float = Field(
        0.02, gt=0, lt=1, description="Rare: a smaller share of the labeled training pixels."
    )


class RareCrops(RareClasses):
    """Some crops have a pixel of a rare class in the middle, as in nnU-Net (Isensee et al.)."""

    probability: float = Field(
        1 / 3, gt=0, le=1, description="Of such a crop, in an image that has a rare class."
    )


class CutMix(Section):
    """Rectangles of some images come from another image of the batch (Yun et al., 2019)."""

    name: Literal["cutmix"]
    probability: float = Field(0.5, gt=0, le=1, description="Share of the images.")
    alpha: float = Field(
        1.0, gt=0, description="Parameter of the Beta distribution of the area that is kept."
    )


class CopyPaste(RareClasses):
    """Pixels of rare classes are pasted from another image of the batch (Ghiasi et al., 2021)."""

    name: Literal["copy_paste"]
    probability: float = Field(
        0.5, gt=0, le=1, description="Share of the images that receive pasted pixels."
    )


class CustomAugmentation(Section):
    """A Keras layer, or a function(batch, seed, **arguments) to a batch."""

    name: Dotted
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of layer or function.")


Augmentation = _by_name(CutMix | CopyPaste, CustomAugmentation)


class Data(Section):
    """The data of training and evaluation."""

    dataset: str = Field(description="A name that `kseg prepare` knows.")
    path: str | None = Field(
        None, description="Prepared folder, local, gs:// or s3://; default: data/<dataset>."
    )
    train_split: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[dict[str, PositiveFloat], Field(min_length=1)]
    ) = Field(
        "train",
        description='A split; several that are one training set, such as ["train", "val"]; or with '
        'how often an epoch shows each image, such as {"train": 1, "train_extra": 0.5}.',
    )
    eval_split: str = "val"
    crop_size: tuple[PositiveSize, PositiveSize] = Field(description="(height, width), pixels.")
    batch_size: int = Field(gt=0, description="Images in a step, over all devices.")
    scale_range: tuple[float, float] = Field(
        (0.5, 2.0), description="Random scale: smallest, largest."
    )
    flip: bool = Field(True, description="Mirror half of the crops.")
    rotation: float = Field(0.0, ge=0, le=180, description="Degrees, to both sides.")
    color_jitter: ColorJitter | None = ColorJitter()
    blur: Blur | None = None
    max_class_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Crops with more of one class are drawn again, 9 times at most.",
    )
    repeat_threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Images with classes that are in fewer images than this share are shown more "
        "often (repeat factor sampling, Gupta et al., 2019).",
    )
    rare_crops: RareCrops | None = None
    augmentations: list[Augmentation] = Field(
        [], description="Of batches of crops, one after the other, before colors are distorted."
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="A training record that is unusable: stop, or take another image."
    )
    max_errors: int = Field(10, ge=0, description="How many records may be skipped.")
    cache: str | None = Field(
        None,
        description='"memory": decoded images in memory; else a local folder that gets a copy of '
        "the training shards.",
    )
    service: str | None = Field(
        None,
        pattern=r"^grpc://.+:\d+$",
        description="A tf.data service that makes the training batches, grpc://host:port.",
    )
    eval_batch_size: int = Field(4, gt=0, description="Where all images have one size; else 1.")

    @pydantic.model_validator(mode="after")
    def _scale_range_is_ordered(self):
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(
                f"`scale_range` must be 0 < least <= most. Received: {[low, high]}. "
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
                'process: it goes neither with `service` nor with `on_error` "skip". Use a folder'
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
        description="Factor of the learning rate in a part of the network (backbone, "
        "head, projectors) or in layers whose names begin so; 0: such weights stay as they are.",
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Swin: multiplies the learning rate of a block once for each block behind it, "
        "and once more; 0.65 to 0.95; null: none.",
    )


class SGD(Optimizer):
    """Stochastic gradient descent; weight decay is added to the gradient (L2), as in the papers."""

    name: Literal["sgd"]
    learning_rate: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0, description="Not on biases and norms.")


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    name: Literal["adamw"]
    learning_rate: float = Field(6e-5, gt=0)
    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="Not on biases and norms.")


class Poly(Section):
    """rate = learning_rate * (1 - step / steps)^power, after a linear warm-up."""

    name: Literal["poly"]
    power: float = Field(0.9, gt=0)
    warmup_steps: int = Field(0, ge=0)
    end_learning_rate: float = Field(0.0, ge=0)


class Linear(Section):
    """Linear decay to `end_learning_rate`, after a linear warm-up."""

    name: Literal["linear"]
    warmup_steps: int = Field(0, ge=0)
    end_learning_rate: float = Field(0.0, ge=0)


class Cosine(Section):
    """Half a cosine down to `end_learning_rate`, after a linear warm-up."""

    name: Literal["cosine"]
    warmup_steps: int = Field(0, ge=0)
    end_learning_rate: float = Field(0.0, ge=0)


class EMA(Section):
    """Weights averaged over the steps, batch norms' statistics included."""

    decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="Weight of the old average; step t has at most (t - 1) / (t + 8).",
    )


class Patience(Section):
    """Ends the training when evaluations no longer get better."""

    evaluations: int = Field(gt=0, description="Evaluations without a better value that end it.")
    watch: Literal["mean_iou", "loss"] = Field(
        "mean_iou", description="Of the evaluation split: mean IoU, or the sum of the losses."
    )
    min_change: float = Field(0.0, ge=0, description="A better value differs by more than this.")


class CallbackEntry(Section):
    """A `kseg.training.callbacks.Callback`: a subclass, or a function that makes one."""

    name: Dotted
    arguments: dict[str, Any] = Field({}, description="Keyword arguments.")


class Train(Section):
    """The training run."""

    steps: int | None = Field(
        None,
        gt=0,
        description="Optimizer steps, without those of `restarts`. Either this or `epochs` is "
        "required.",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="In place of `steps`: passes over the training images; a run's own config "
        "holds the steps that they make.",
    )
    restarts: list[PositiveSize] = Field(
        [],
        max_length=100,
        description="Steps of each further cycle, in which the schedule starts again at its peak; "
        "may be appended to when the run has finished.",
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32",
        description="Of the layers; weights, losses and banks stay float32. mixed_float16 scales "
        "the loss, and leaves out steps whose gradients overflow.",
    )
    jit_compile: bool | Literal["auto"] = Field("auto", description="auto: on GPU yes, CPU no.")
    clip_norm: float | None = Field(None, gt=0, description="Limit of the global gradient norm.")
    accumulate: int = Field(
        1,
        gt=0,
        description="Equal parts of a batch that go through the network one after the other, to "
        "save memory; losses and contrast see the whole batch.",
    )
    ema: EMA | None = Field(
        None, description="Averaged weights for evaluation and export; null: the last ones."
    )
    patience: Patience | None = Field(
        None, description="Early end of the training; null: all steps are made."
    )
    callbacks: list[CallbackEntry] = Field(
        [], max_length=100, description="Called at logs, evaluations, checkpoints and the end."
    )
    profile: tuple[PositiveSize, PositiveSize] | None = Field(
        None, description="First and last step of a trace for TensorBoard, counted from 1."
    )
    devices: int | None = Field(None, gt=0, description="Number of devices; null: all.")
    synchronized_batch_norm: bool = Field(True, description="Where there are several devices.")
    log_every: int = Field(20, gt=0, description="Steps between progress and TensorBoard lines.")
    evaluate_every: int = Field(1000, gt=0, description="Steps; also at the end.")
    checkpoint_every: int = Field(500, gt=0, description="Steps; also at the end.")
    keep_checkpoints: int = Field(2, gt=0, description="Newest ones kept, besides the best.")
    panels: int = Field(4, ge=0, description="Image panels in TensorBoard at each evaluation.")

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
    """One experiment: everything that decides its result."""

    schema_: str | None = Field(None, alias="$schema", exclude=True)
    comment_: str | list[str] | None = Field(
        None, alias="$comment", exclude=True, description="For readers of the file; has no effect."
    )
    extends: str | list[str] | None = Field(
        None,
        exclude=True,
        description="Config file(s) whose values hold where this one is silent; paths are relative "
        "to this file, later ones win.",
    )
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200, description="Name of the run."
    )
    seed: int = Field(0, ge=0, lt=2**31)
    model: Model
    losses: Losses = Losses()
    contrast: list[Contrast] = []
    data: Data
    optimizer: Annotated[SGD | AdamW, Field(discriminator="name")] = SGD(name="sgd")
    schedule: Annotated[Poly | Linear | Cosine, Field(discriminator="name")] = Poly(name="poly")
    train: Train

    @pydantic.model_validator(mode="after")
    def _parts_fit(self):
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
        backbone = self.model.backbone.name
        if self.optimizer.layer_decay is not None and not backbone.startswith("swin_"):
            raise ValueError(
                f"`optimizer.layer_decay` is for Swin backbones. Received: {backbone!r}. Use "
                "`optimizer.learning_rate_factors`"
            )
        if self.optimizer.layer_decay is not None and {"backbone", "c5"} & {*self.model.freeze}:
            raise ValueError(
                "`optimizer.layer_decay` needs blocks of the backbone that are trained. Received: "
                f"`model.freeze` {self.model.freeze}. Set `optimizer.layer_decay` to null"
            )
        patience = self.train.patience
        of_losses = [getattr(self.losses, name) for name in VALIDATED_LOSSES]
        if patience and patience.watch == "loss" and not any(x and x.weight for x in of_losses):
            raise ValueError(
                '`train.patience.watch` "loss" needs a loss that is computed on the evaluation '
                f"split, one of {', '.join(VALIDATED_LOSSES)}, with a weight above 0. Use "
                '"mean_iou"'
            )
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
        """The resolved config, every default written out."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def json_schema() -> str:
    """The JSON schema of a config file, as text; no key is required, since files may extend."""
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
