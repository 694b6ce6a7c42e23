"""Networks, methods, batches and training steps that several benchmarks measure."""

import tempfile

import _measuring

CITYSCAPES, ADE20K = (512, 1024), (512, 512)  # The papers' crops.
DILATED = {"variant": "v1c", "output_stride": 8}
# The methods with the defaults of a config.
METHODS = {
    "cross-entropy only": [],
    "MS/CS": [{"name": "multi_scale"}],
    "RegionContrast": [{"name": "region_contrast"}],
    "Contextrast": [{"name": "contextrast"}],
    "pixel contrast": [{"name": "pixel_contrast"}],
    "with memory": [{"name": "pixel_contrast", "memory": "both"}],
    "MS/CS, drawn": [{"name": "multi_scale", "projection": "drawn"}],
    "pixel contrast, drawn": [{"name": "pixel_contrast", "projection": "drawn"}],
    "with memory, drawn": [
        {"name": "pixel_contrast", "memory": "both", "projection": "drawn"},
    ],
}
# MS/CS at the strides of a dilated network, whose c4 is of the size of c3.
DILATED_MULTI_SCALE = {
    "scale_weights": {"c2": 1.0, "c3": 0.7, "c5": 0.7},
    "cross_scale_pairs": [["c2", "c5"], ["c2", "c3"]],
}


def _network(head, backbone, size, backbone_arguments=None, head_arguments=None):
    return {
        "head": head,
        "backbone": backbone,
        "size": size,
        "backbone_arguments": backbone_arguments or {},
        "head_arguments": head_arguments or {},
    }


NETWORKS = {
    "deeplabv3_r50": _network("deeplabv3", "resnet50", CITYSCAPES, DILATED),
    "deeplabv3_r101": _network("deeplabv3", "resnet101", CITYSCAPES, DILATED),
    "ocrnet_r50": _network("ocr", "resnet50", CITYSCAPES, DILATED, {"source": "deepest"}),
    "hrnet_w18": _network("hrnet", "hrnet_w18", CITYSCAPES),
    "hrnet_w48": _network("hrnet", "hrnet_w48", CITYSCAPES),
    "ocrnet_w48": _network("ocr", "hrnet_w48", CITYSCAPES),
    "upernet_lite2": _network(
        *("upernet", "efficientnet_lite2", (360, 480)), {}, {"channels": 64, "aux_channels": 32}
    ),
    "upernet_r101": _network("upernet", "resnet101", ADE20K, {"variant": "v1c"}),
    "upernet_swin_t": _network("upernet", "swin_t", ADE20K),
    "upernet_swin_s": _network("upernet", "swin_s", ADE20K),
    "upernet_swin_b": _network("upernet", "swin_b", ADE20K),
    "upernet_swin_l": _network("upernet", "swin_l", ADE20K),
}
# For `--toy`.
TINY_RESNET = {"blocks": (1, 1, 1, 1), "channels": (8, 16, 32, 64), "stem_channels": 8}
TOY_NETWORKS = {
    "deeplabv3_toy": _network(
        *("deeplabv3", "resnet18", (64, 96), {**TINY_RESNET, "output_stride": 8}),
        {"channels": 16, "aspp_channels": 16, "aux_channels": 16},
    ),
}
TOY_MULTI_SCALE = {
    "scale_weights": {"c2": 1.0, "c5": 1.0},
    "cross_scale_pairs": [["c2", "c5"]],
}
TOY_ARGUMENTS = {
    "backbone": "resnet18",
    "backbone_arguments": TINY_RESNET,
    "head": "hrnet",
    "head_arguments": {},
    "size": (64, 96),
    "batch": 2,
}


def add_arguments(parser, backbone, size, batch):
    """Adds the options of one network and its batch.

    Args:
        parser: `argparse.ArgumentParser`.
        backbone: str, the default.
        size: `(height, width)`, the default.
        batch: int, the default.
    """
    parser.add_argument("--backbone", default=backbone, help=f"default: {backbone}")
    parser.add_argument("--head", default="ocr", help="default: ocr")
    parser.add_argument(
        "--size", type=_measuring.positive, nargs=2, default=size, metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--batch", type=_measuring.positive, default=batch, help="images a step")
    parser.add_argument("--classes", type=_measuring.positive, default=8)
    add_precision_argument(parser)
    parser.set_defaults(backbone_arguments={}, head_arguments={}, max_anchors=None)


def add_precision_argument(parser):
    """Adds `--precision`."""
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"])


def contrast_of(arguments, method):
    """Returns the section `contrast` of a method's config.

    Args:
        arguments: with `toy`, which makes MS/CS smaller, `backbone_arguments` and `max_anchors`,
            the anchors of MS/CS or None: its default.
        method: str, of `METHODS`.

    Returns:
        list of dicts.
    """
    settings = {}
    if arguments.toy:
        settings = TOY_MULTI_SCALE
    elif arguments.backbone_arguments.get("output_stride") == 8:
        settings = DILATED_MULTI_SCALE
    if arguments.max_anchors:
        settings = {**settings, "max_anchors": arguments.max_anchors}
    return [
        {**entry, **(settings if entry["name"] == "multi_scale" else {})}
        for entry in METHODS[method]
    ]


def build_objectives(arguments, contrast):
    """Builds the objectives of a config's section `contrast`.

    Args:
        arguments: with `classes`.
        contrast: list of dicts.

    Returns:
        list of `(objective, switch)`, see `kseg.training.build.build_objectives`.
    """
    import pydantic

    from kseg.config import schema
    from kseg.training import build

    entries = [pydantic.TypeAdapter(schema.Contrast).validate_python(entry) for entry in contrast]
    return build.build_objectives(entries, num_classes=arguments.classes, seed=0)


def build_step(arguments, contrast=(), losses=None, training_pixels=None):
    """Builds a network and its training step.

    Args:
        arguments: with `backbone`, `head` and their arguments, `classes`, `precision`.
        contrast: list of dicts, as in a config.
        losses: `kseg.config.schema.Losses`; None: the defaults.
        training_pixels: as for `kseg.training.build.build_losses`.

    Returns:
        `(trainer, step)`: `kseg.training.trainer.SegmentationTrainer`, and a function of a batch
        that returns a dict of losses.

    Raises:
        UserError: if the network cannot be built.
    """
    import keras
    import tensorflow as tf

    from kseg.errors import as_user_error
    from kseg.segmenters import build_segmenter
    from kseg.training import build
    from kseg.training import trainer as trainer_module
    from kseg.training.optimizers import SGD

    keras.config.set_dtype_policy(arguments.precision)
    objectives = build_objectives(arguments, contrast)
    with as_user_error("The network"):
        segmenter = build_segmenter(
            arguments.backbone,
            arguments.head,
            arguments.classes,
            backbone_arguments=arguments.backbone_arguments,
            head_arguments=arguments.head_arguments,
            projector_layers=2 if any(entry["name"] == "multi_scale" for entry in contrast) else 1,
            projections=sorted({s for objective, _ in objectives for s in objective.stages}),
        )
    if losses is not None:
        losses = build.build_losses(
            losses, segmenter, num_classes=arguments.classes, training_pixels=training_pixels
        )
    trainer = trainer_module.SegmentationTrainer(segmenter, losses=losses, objectives=objectives)
    optimizer = SGD(0.01, decay_rate=5e-4)
    optimizer.build(segmenter.trainable_variables)
    trainer.compile(optimizer=optimizer)
    return trainer, trainer_module.build_step(trainer, tf.distribute.get_strategy())


def street_batch(arguments):
    """Reads a batch of the synthetic street scenes, enlarged to a size.

    Args:
        arguments: with `size`, `batch` and `toy`. Unless it is a toy, the scenes are those of
            `data/synthetic`, made if they are missing.

    Returns:
        dict of tensors: `image` uint8 `(batch, height, width, 3)`, `label` uint8.
    """
    import pipelines
    from pipelines import loader

    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{scratch}/synthetic" if arguments.toy else "data/synthetic"
        few = {"train_images": 4, "val_images": 1, "progress": False} if arguments.toy else {}
        pipelines.prepare_once("synthetic", folder, **few)
        height, width = arguments.size
        scale = max(height / 144, width / 256)
        dataset = loader.training_dataset(
            folder,
            "train",
            batch_size=arguments.batch,
            crop_size=tuple(arguments.size),
            seed=0,
            scale_range=(scale, scale),
        )
        return next(iter(dataset))


def random_batch(arguments, size):
    """Creates a batch of random pixels and labels.

    Args:
        arguments: with `batch`, `classes`.
        size: `(height, width)`.

    Returns:
        dict of tensors: `image` uint8 `(batch, height, width, 3)`, `label` uint8.
    """
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    shape = (arguments.batch, *size)
    return {
        "image": tf.constant(rng.integers(0, 256, (*shape, 3)), "uint8"),
        "label": tf.constant(rng.integers(0, arguments.classes, shape), "uint8"),
    }


def forward_gflops(model, size, dtype="float32"):
    """Counts the GFLOPs of a forward pass of one image.

    Args:
        model: keras model.
        size: `(height, width)`.
        dtype: str, of the image.

    Returns:
        float.
    """
    import tensorflow as tf

    from kseg.analysis.complexity import count_flops

    tf.get_logger().setLevel("ERROR")  # TensorFlow's profiler calls its own deprecated functions.
    image = tf.TensorSpec((1, *size, 3), dtype)
    return count_flops(lambda x: model(x, training=False), image) / 1e9
