"""Measures speed and memory beside what they are to be compared with, in the same run.

    python scripts/benchmark.py info_nce    the loss kernel against the plain formula
    python scripts/benchmark.py contrast    each method against cross-entropy only
    python scripts/benchmark.py bank        the layouts of a memory bank of ADE20K's size
    python scripts/benchmark.py startup     process start to the end of the first training step
    python scripts/benchmark.py models      size and speed of the networks, PyTorch's beside them
    python scripts/benchmark.py serving     a forward pass in each runtime, PyTorch beside them
    python scripts/benchmark.py pipeline    records to batches, the usual way beside it

Times are the best of several rounds, because other work on the machine only ever adds to them.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time

START = time.perf_counter()

import _input_path  # noqa: E402
import _serving  # noqa: E402

from kseg.analysis import measuring  # noqa: E402
from kseg.analysis.measuring import PeakMemory, best_seconds, fill_banks  # noqa: E402
from kseg.commands import console  # noqa: E402 - the clock starts before anything heavy.
from kseg.errors import UserError  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("info_nce", help="kernel against the plain formula")
    command.add_argument("--anchors", type=int, default=8192)
    command.add_argument("--keys", type=int, nargs="+", default=[8192, 32768, 262_144])
    command.add_argument("--dim", type=int, default=256)
    command.add_argument("--classes", type=int, default=19)
    command.add_argument("--block-size", type=int, default=1024)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--variant", help=argparse.SUPPRESS)  # One measurement, as JSON.
    command.set_defaults(function=benchmark_info_nce)

    command = commands.add_parser("contrast", help="each method against cross-entropy only")
    add_network_arguments(command, "hrnet_w18", (256, 512), 4)
    command.add_argument("--rounds", type=int, default=6)
    command.add_argument("--variant", help=argparse.SUPPRESS)
    command.set_defaults(function=benchmark_contrast)

    command = commands.add_parser("bank", help="the layouts of a memory bank")
    command.add_argument("--images", type=int, default=20_210, help="slots of a class")
    command.add_argument("--classes", type=int, default=150)
    command.add_argument("--classes-per-image", type=float, default=9.5)
    command.add_argument("--batch", type=int, default=16)
    command.add_argument("--variant", help=argparse.SUPPRESS)
    command.set_defaults(function=benchmark_bank)

    command = commands.add_parser("startup", help="time to the first step")
    add_network_arguments(command, "hrnet_w48", (128, 256), 2)
    command.add_argument("--variant", help=argparse.SUPPRESS)
    command.set_defaults(function=benchmark_startup)

    command = commands.add_parser("models", help="size and speed of the networks")
    command.add_argument("--only", nargs="+", metavar="NAME", help="some of the networks")
    command.add_argument("--batch", type=int, default=2)
    command.add_argument("--classes", type=int, default=19)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"])
    command.add_argument("--torch", help="an interpreter that has torch and timm: times these too")
    command.add_argument("--variant", help=argparse.SUPPRESS)
    command.set_defaults(function=benchmark_models)

    command = commands.add_parser("serving", help="forward time in each runtime, on a CPU")
    command.add_argument("--only", nargs="+", metavar="NAME", default=_serving.SERVED)
    command.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    command.add_argument("--classes", type=int, default=19)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--threads", type=int, default=os.cpu_count())
    command.add_argument("--torch", help="an interpreter that has torch and timm: times these too")
    command.add_argument("--variant", help=argparse.SUPPRESS)
    command.add_argument("--folder", help=argparse.SUPPRESS)
    command.set_defaults(function=benchmark_serving)

    command = commands.add_parser("pipeline", help="records to batches against the usual way")
    command.add_argument("--images", type=int, default=8, help="of each set, all different")
    command.add_argument("--samples", type=int, default=240)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--steps", type=int, default=10_000, help="over which memory is watched")
    command.add_argument("--data", help="a prepared folder to measure in place of the made sets")
    command.add_argument("--split", default="train")
    command.add_argument("--crop", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    command.add_argument("--scale", type=float, nargs=2, default=(0.5, 2.0))
    command.set_defaults(function=_input_path.compare)
    return parser.parse_args()


def add_network_arguments(command, backbone, size, batch):
    command.add_argument("--backbone", default=backbone)
    command.add_argument("--head", default="ocr")
    command.add_argument("--size", type=int, nargs=2, default=size, metavar=("H", "W"))
    command.add_argument("--batch", type=int, default=batch)
    command.add_argument("--classes", type=int, default=8)
    command.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"])


def in_new_process(*arguments):
    """Runs this script once more with `arguments`; memory and start-up are measured cleanly."""
    try:
        return measuring.in_new_process(__file__, *arguments)
    except subprocess.CalledProcessError:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed") from None


def benchmark_info_nce(arguments):
    if arguments.variant:
        return measure_info_nce(arguments)
    print("forward and backward to anchors and keys; extra memory above the inputs")
    print(f"{'anchors x keys x dim':>24}  {'':<26}{'seconds':>8}{'extra MB':>10}{'time ratio':>12}")
    for keys in arguments.keys:
        size = f"{arguments.anchors} x {keys} x {arguments.dim}"
        plain = None
        variants = ["sum, sorted rows", "sum, random rows", "sum, keys detached", "each anchor's"]
        if arguments.anchors * keys <= 2**26:
            variants.insert(0, "plain formula")
        for variant in variants:
            found = in_new_process(
                *("info_nce", "--anchors", arguments.anchors, "--keys", keys),
                *("--dim", arguments.dim, "--classes", arguments.classes),
                *("--block-size", arguments.block_size, "--rounds", arguments.rounds),
                *("--variant", variant),
            )
            plain = found["seconds"] if variant == "plain formula" else plain
            ratio = f"{found['seconds'] / plain:.2f}" if plain else "-"
            print(
                f"{size:>24}  {variant:<26}{found['seconds']:>8.2f}{found['megabytes']:>10.0f}"
                f"{ratio:>12}",
                flush=True,
            )


def measure_info_nce(arguments):
    import numpy as np
    import tensorflow as tf

    from kseg.contrast.info_nce import info_nce

    rng = np.random.default_rng(0)

    def rows(count):
        x = rng.standard_normal((count, arguments.dim), dtype="float32")
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        labels = rng.integers(0, arguments.classes, count)
        return tf.constant(x), labels if "random" in arguments.variant else np.sort(labels)

    anchors, anchor_labels = rows(arguments.anchors)
    keys, key_labels = rows(arguments.keys[0])
    labels = tf.constant(anchor_labels, "int32"), tf.constant(key_labels, "int32")
    detached = "detached" in arguments.variant

    def plain_formula(anchors, anchor_labels, keys, key_labels):
        s = tf.matmul(anchors, keys, transpose_b=True) / 0.1
        same = anchor_labels[:, None] == key_labels[None, :]
        neg = tf.reduce_logsumexp(tf.where(same, -1e30, s), axis=1, keepdims=True)
        positive = tf.cast(same, "float32")
        terms = tf.nn.softplus(neg - s) * positive
        return tf.reduce_sum(terms, axis=1) / tf.maximum(tf.reduce_sum(positive, axis=1), 1.0)

    @tf.function(autograph=False)
    def compute(anchors, keys):
        sources = [anchors] if detached else [anchors, keys]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            if arguments.variant == "plain formula":
                loss = plain_formula(anchors, labels[0], keys, labels[1])
            else:
                loss, _ = info_nce(
                    *(anchors, labels[0], keys, labels[1]),
                    detach_keys=detached,
                    reduction="sum" if arguments.variant.startswith("sum") else "none",
                    block_size=arguments.block_size,
                )
            total = tf.reduce_sum(loss) / arguments.anchors
        return total, tape.gradient(total, sources)

    compute.get_concrete_function(anchors, keys)
    with PeakMemory() as memory:
        seconds = best_seconds(lambda: float(compute(anchors, keys)[0]), arguments.rounds)
    print(json.dumps({"seconds": seconds, "megabytes": memory.megabytes}))


def build_objectives(arguments, contrast):
    import pydantic

    from kseg.config import schema
    from kseg.training import objectives

    entries = [pydantic.TypeAdapter(schema.Contrast).validate_python(entry) for entry in contrast]
    return objectives.build_objectives(entries, num_classes=arguments.classes, seed=0)


def build_step(arguments, contrast=()):
    import keras
    import tensorflow as tf

    from kseg.segmenters import build_segmenter
    from kseg.training import trainer as trainer_module
    from kseg.training.optimizers import SGD

    keras.config.set_dtype_policy(arguments.precision)
    objectives = build_objectives(arguments, contrast)
    segmenter = build_segmenter(
        arguments.backbone,
        arguments.head,
        arguments.classes,
        backbone_arguments=getattr(arguments, "backbone_arguments", None),
        head_arguments=getattr(arguments, "head_arguments", None),
        projector_layers=2 if any(entry["name"] == "multi_scale" for entry in contrast) else 1,
        projections=sorted({stage for objective, _ in objectives for stage in objective.stages}),
    )
    trainer = trainer_module.SegmentationTrainer(segmenter, objectives=objectives)
    optimizer = SGD(0.01, decay_rate=5e-4)
    optimizer.build(segmenter.trainable_variables)
    trainer.compile(optimizer=optimizer)
    return trainer, trainer_module.build_step(trainer, tf.distribute.get_strategy())


def street_batch(arguments):
    """A batch of the synthetic street scenes, enlarged to the size asked for."""
    import pipelines
    from pipelines import loader

    pipelines.prepare_once("synthetic", "data/synthetic")
    height, width = arguments.size
    scale = max(height / 144, width / 256)
    dataset = loader.training_dataset(
        "data/synthetic",
        "train",
        batch_size=arguments.batch,
        crop_size=arguments.size,
        seed=0,
        scale_range=(scale, scale),
    )
    return next(iter(dataset))


# The methods as their configs have them by default.
METHODS = {
    "cross-entropy only": [],
    "MS/CS": [{"name": "multi_scale"}],
    "RegionContrast": [{"name": "region_contrast"}],
    "Contextrast": [{"name": "contextrast"}],
    "pixel contrast": [{"name": "pixel_contrast"}],
    "with memory": [{"name": "pixel_contrast", "memory": "both"}],
}


def benchmark_contrast(arguments):
    if arguments.variant:
        kind, method = arguments.variant.split(":")
        measure = {"peak": measure_peak, "kernel": measure_objective}[kind]
        return print(json.dumps(measure(arguments, method)))
    from kseg.analysis.complexity import count_parameters

    batch = street_batch(arguments)
    steps = {}
    for method, contrast in METHODS.items():
        trainer, step = build_step(arguments, contrast)
        fill_banks(trainer.objectives)
        float(step(batch)["loss"])
        steps[method] = trainer, step
    times = {method: [] for method in METHODS}
    for _ in range(arguments.rounds):  # In turns, so that noise hits all alike.
        for method, (_, step) in steps.items():
            times[method].append(best_seconds(lambda step=step: float(step(batch)["loss"]), 1))
    height, width = arguments.size
    plain = {}
    print(
        f"training step of {arguments.head} on {arguments.backbone}, {arguments.batch} x {height} "
        f"x {width}, {arguments.precision}, banks full"
    )
    print(f"{'':<22}{'seconds':>9}{'ratio':>8}{'peak MB':>9}{'M weights':>11}{'GFLOPs':>9}")
    for method, (trainer, _) in steps.items():
        found = {
            "seconds": min(times[method]),
            "peak": in_new_process(*again(arguments, f"peak:{method}"))["megabytes"],
            "weights": count_parameters(trainer.segmenter) / 1e6,
            "flops": forward_gflops(trainer.segmenter, arguments.size),
        }
        plain = plain or found
        print(
            f"{method:<22}{found['seconds']:>9.3f}{found['seconds'] / plain['seconds']:>8.3f}"
            f"{found['peak']:>9.0f}{found['weights']:>11.3f}{found['flops']:>9.2f}   "
            + ", ".join(f"{k} {100 * (found[k] / plain[k] - 1):+.2f} %" for k in found),
            flush=True,
        )
    print("\nobjectives alone, forward and backward; extra memory above inputs and gradients")
    print(
        f"{'':<22}" + "".join(f"{f'batch {b}: s':>14}{'MB':>8}" for b in kernel_batches(arguments))
    )
    for method in list(METHODS)[1:]:
        cells = ""
        for size in kernel_batches(arguments):
            found = in_new_process(*again(arguments, f"kernel:{method}", batch=size))
            cells += f"{found['seconds']:>14.3f}{found['megabytes']:>8.0f}"
        print(f"{method:<22}{cells}", flush=True)


def kernel_batches(arguments):
    return [factor * arguments.batch for factor in (1, 2, 4)]


def again(arguments, variant, batch=None):
    """Arguments of this script for one measurement of `benchmark_contrast` in a new process."""
    return (
        *("contrast", "--backbone", arguments.backbone, "--head", arguments.head),
        *("--size", *arguments.size, "--batch", batch or arguments.batch),
        *("--classes", arguments.classes, "--precision", arguments.precision),
        *("--variant", variant),
    )


def benchmark_bank(arguments):
    if arguments.variant:
        return print(json.dumps(measure_bank(arguments)))
    print(
        f"RegionContrast, full bank, forward, backward and writing: {arguments.classes} classes, "
        f"{arguments.images} images of {arguments.classes_per_image} classes, "
        f"batch {arguments.batch}"
    )
    print(f"{'layout, storage':<22}{'slots':>10}{'bank MB':>10}{'seconds':>10}")
    for variant in ("compact, float32", "compact, bfloat16", "dense, bfloat16", "dense, float32"):
        found = in_new_process(
            *("bank", "--images", arguments.images, "--classes", arguments.classes),
            *("--classes-per-image", arguments.classes_per_image, "--batch", arguments.batch),
            *("--variant", variant),
        )
        print(
            f"{variant:<22}{found['slots']:>10}{found['megabytes']:>10.0f}{found['seconds']:>10.2f}",
            flush=True,
        )


def measure_bank(arguments):
    import numpy as np
    import tensorflow as tf

    from kseg.contrast.region_contrast import RegionContrast

    layout, storage = arguments.variant.split(", ")
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, arguments.classes + 1)  # A long tail.
    frequency /= frequency.sum()
    images = frequency * arguments.images * arguments.classes_per_image
    images = [int(count) for count in np.clip(images, 1, arguments.images)]
    objective = RegionContrast(
        arguments.classes,
        capacity=arguments.images if layout == "dense" else images,
        storage=storage,
    )
    blocks = rng.choice(arguments.classes, (arguments.batch, 4, 4), p=frequency)
    labels = tf.constant(blocks.repeat(30, axis=1).repeat(30, axis=2), "int32")
    shape = labels.shape
    outputs = {
        "features": tf.constant(rng.standard_normal((*shape, 256), dtype="float32")),
        "logits": tf.constant(rng.standard_normal((*shape, arguments.classes), dtype="float32")),
    }
    objective.prepare(outputs)
    bank = objective.bank
    # The slots hold zeros: neither time nor memory depends on what they hold.
    full = [arguments.images] * arguments.classes if layout == "dense" else images
    bank.count.assign(full)

    @tf.function(autograph=False)
    def compute():
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            terms, found = objective.contrast(outputs, labels)
        gradient = tape.gradient(terms["centers"], outputs["features"])
        objective.remember(found)
        return terms["centers"], gradient

    compute()
    return {
        "seconds": best_seconds(lambda: float(compute()[0]), 2),
        "slots": sum(full),
        "megabytes": math.prod(bank.entries.shape) * (4 if storage == "float32" else 2) / 1e6,
    }


def forward_gflops(segmenter, size):
    import tensorflow as tf

    from kseg.analysis.complexity import count_flops

    image = tf.TensorSpec((1, *size, 3))
    return count_flops(lambda x: segmenter(x, training=False), image) / 1e9


def measure_peak(arguments, method):
    batch = street_batch(arguments)
    with PeakMemory() as memory:
        trainer, step = build_step(arguments, METHODS[method])
        fill_banks(trainer.objectives)
        for _ in range(2):
            float(step(batch)["loss"])
    return {"megabytes": memory.megabytes}


def measure_objective(arguments, method):
    """An objective on random outputs of HRNet's sizes, without a network."""
    import numpy as np
    import tensorflow as tf

    labels = street_batch(arguments)["label"]
    ((objective, _),) = build_objectives(arguments, METHODS[method])
    rng = np.random.default_rng(0)

    def output(stride, channels):
        shape = (arguments.batch, *(size // stride for size in arguments.size), channels)
        return tf.constant(rng.standard_normal(shape, dtype="float32"))

    outputs = {"logits": output(4, arguments.classes), "features": output(4, 256)}
    for stage in objective.stages:
        stride = {"c2": 4, "c3": 8, "c4": 16, "c5": 32, "features": 4}[stage]
        outputs[f"embedding_{stage}"] = tf.math.l2_normalize(output(stride, 256), axis=-1)
    objective.prepare(outputs)
    fill_banks([objective])

    @tf.function(autograph=False)
    def compute(outputs):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            terms, found = objective.contrast(outputs, labels)
            total = tf.add_n(list(terms.values()))
        gradients = tape.gradient(total, outputs, unconnected_gradients="zero")
        objective.remember(found)
        return total, gradients

    compute.get_concrete_function(outputs)
    with PeakMemory() as memory:
        seconds = best_seconds(lambda: float(compute(outputs)[0]), 5)
    return {"seconds": seconds, "megabytes": memory.megabytes}


def benchmark_startup(arguments):
    if arguments.variant:
        return measure_startup(arguments)
    height, width = arguments.size
    print(
        f"{arguments.head} on {arguments.backbone}, {arguments.batch} x {height} x {width}: "
        "seconds from process start to the end of the first training step"
    )
    columns = ("import", "build", "trace", "first step", "in all", "graph nodes")
    print(f"{'':<34}" + "".join(f"{c:>12}" for c in columns))
    for variant in ("kseg", "kseg with multi-scale contrast", "plain Keras layers and fit"):
        found = in_new_process(
            *("startup", "--backbone", arguments.backbone, "--head", arguments.head),
            *("--size", height, width, "--batch", arguments.batch),
            *("--classes", arguments.classes, "--precision", arguments.precision),
            *("--variant", variant),
        )
        print(f"{variant:<34}" + "".join(f"{found.get(c, '-'):>12}" for c in columns), flush=True)


def measure_startup(arguments):
    from kseg.training import trainer  # noqa: F401 - counted as import.

    times = {"import": time.perf_counter() - START}
    batch = random_batch(arguments, arguments.size)
    if arguments.variant.startswith("plain"):
        fit_plainly(arguments, batch)
    else:
        method = "MS/CS" if "contrast" in arguments.variant else "cross-entropy only"
        _, step = build_step(arguments, METHODS[method])
        times["build"] = time.perf_counter() - START - sum(times.values())
        graph = step.get_concrete_function(batch).graph.as_graph_def()
        times["trace"] = time.perf_counter() - START - sum(times.values())
        float(step(batch)["loss"])
        times["first step"] = time.perf_counter() - START - sum(times.values())
        functions = sum(len(function.node_def) for function in graph.library.function)
        times["graph nodes"] = len(graph.node) + functions
    found = {k: v if k == "graph nodes" else round(v, 1) for k, v in times.items()}
    print(json.dumps({**found, "in all": round(time.perf_counter() - START, 1)}))


def fit_plainly(arguments, batch):
    """The same network of stock Keras layers, trained by stock Keras: what one would write."""
    import keras
    import tensorflow as tf

    from kseg import layers
    from kseg.segmenters import build_segmenter

    keras.config.set_dtype_policy(arguments.precision)

    class PlainConvNorm:
        def __init__(self, filters, size, *, strides=1, relu=True, use_bias=False, name, **_):
            self._parts = (filters, size, strides, relu, use_bias, name)

        def __call__(self, x, residual=None):
            filters, size, strides, relu, use_bias, name = self._parts
            if strides > 1:
                x = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
            x = keras.layers.Conv2D(
                *(filters, size, strides, "valid" if strides > 1 else "same"),
                use_bias=use_bias,
                name=f"{name}_conv",
            )(x)
            x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
            if residual is not None:
                x = keras.layers.Add(name=f"{name}_add")([x, residual])
            return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x

    for module in list(sys.modules.values()):  # Builders hold the class under its own name.
        if getattr(module, "ConvNorm", None) is layers.ConvNorm and module is not layers:
            module.ConvNorm = PlainConvNorm
    segmenter = build_segmenter(arguments.backbone, arguments.head, arguments.classes)
    logits = keras.layers.Resizing(*arguments.size)(segmenter.output["logits"])
    model = keras.Model(segmenter.input, logits)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    dataset = tf.data.Dataset.from_tensors((batch["image"], batch["label"]))
    model.fit(dataset, verbose=0)


def _network(head, backbone, size, backbone_arguments=None, head_arguments=None):
    return {
        "head": head,
        "backbone": backbone,
        "size": size,
        "backbone_arguments": backbone_arguments or {},
        "head_arguments": head_arguments or {},
    }


CITYSCAPES, ADE20K = (512, 1024), (512, 512)  # The papers' crops.
DILATED = {"variant": "v1c", "output_stride": 8}
NETWORKS = {
    "deeplabv3_r50": _network("deeplabv3", "resnet50", CITYSCAPES, DILATED),
    "deeplabv3_r101": _network("deeplabv3", "resnet101", CITYSCAPES, DILATED),
    "ocrnet_r50": _network("ocr", "resnet50", CITYSCAPES, DILATED, {"source": "deepest"}),
    "hrnet_w18": _network("hrnet", "hrnet_w18", CITYSCAPES),
    "hrnet_w48": _network("hrnet", "hrnet_w48", CITYSCAPES),
    "ocrnet_w48": _network("ocr", "hrnet_w48", CITYSCAPES),
    "upernet_r101": _network("upernet", "resnet101", ADE20K, {"variant": "v1c"}),
    "upernet_swin_t": _network("upernet", "swin_t", ADE20K),
    "upernet_swin_s": _network("upernet", "swin_s", ADE20K),
    "upernet_swin_b": _network("upernet", "swin_b", ADE20K),
    "upernet_swin_l": _network("upernet", "swin_l", ADE20K),
}
# Backbones alone, for which timm has the same network: name -> arguments here and size.
PEERS = {
    "hrnet_w48": ({}, (256, 512)),
    "resnet101": ({"output_stride": 8}, (256, 512)),
    "swin_t": ({"drop_path_rate": 0.0}, (512, 512)),
}


def benchmark_models(arguments):
    if arguments.variant:
        kind, name = arguments.variant.split(":")
        return (
            measure_backbone(arguments, name)
            if kind == "peer"
            else measure_network(arguments, name)
        )
    shared = ("--batch", arguments.batch, "--classes", arguments.classes)
    shared += ("--rounds", arguments.rounds, "--precision", arguments.precision)
    names = arguments.only or [*NETWORKS, *PEERS]
    unknown = set(names) - {*NETWORKS, *PEERS}
    if unknown:
        raise UserError(
            f"--only names no network: {', '.join(sorted(unknown))}. Choose from "
            f"{', '.join([*NETWORKS, *PEERS])}"
        )
    networks = [name for name in names if name in NETWORKS]
    if networks:
        print(f"networks at the papers' crops, batch {arguments.batch}, {arguments.precision}")
        columns = (
            "M weights",
            "GFLOPs",
            "build s",
            "to 1st step s",
            "step s",
            "image s",
            "peak GB",
        )
        print(f"{'':<16}{'crop':>12}" + "".join(f"{c:>15}" for c in columns))
        for name in networks:
            found = in_new_process("models", *shared, "--variant", f"network:{name}")
            size = "x".join(map(str, NETWORKS[name]["size"]))
            print(f"{name:<16}{size:>12}" + "".join(f"{found[c]:>15}" for c in columns), flush=True)
    peers = [name for name in names if name in PEERS] if arguments.torch else []
    if peers:
        print(
            f"backbones alone, and timm's in PyTorch: seconds, batch {arguments.batch}, "
            f"{arguments.precision} (timm: float32)"
        )
        columns = ("forward", "timm", "ratio", "step", "timm", "ratio")
        print(f"{'':<16}{'image':>12}" + "".join(f"{c:>10}" for c in columns))
        for name in peers:
            _, size = PEERS[name]
            ours = in_new_process("models", *shared, "--variant", f"peer:{name}")
            command = [arguments.torch, str(pathlib.Path(__file__).with_name("_torch_peers.py"))]
            command += ["backbone", name, *map(str, size)]
            command += [str(arguments.batch), str(arguments.rounds)]
            result = subprocess.run(
                [*command, str(os.cpu_count())], stdout=subprocess.PIPE, text=True, check=True
            )
            theirs = json.loads(result.stdout.splitlines()[-1])
            cells = [
                cell
                for key in ("forward", "step")
                for cell in (ours[key], theirs[key], ours[key] / theirs[key])
            ]
            size = "x".join(map(str, size))
            print(f"{name:<16}{size:>12}" + "".join(f"{c:>10.3f}" for c in cells), flush=True)


def random_batch(arguments, size):
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    shape = (arguments.batch, *size)
    return {
        "image": tf.constant(rng.integers(0, 256, (*shape, 3)), "uint8"),
        "label": tf.constant(rng.integers(0, arguments.classes, shape), "uint8"),
    }


def measure_network(arguments, name):
    import tensorflow as tf

    from kseg.analysis.complexity import count_flops, count_parameters
    from kseg.segmenters import inference_model

    network = NETWORKS[name]
    batch = random_batch(arguments, network["size"])
    imported = time.perf_counter()
    with PeakMemory() as memory:
        trainer, step = build_step(argparse.Namespace(**vars(arguments), **network))
        built = time.perf_counter()
        float(step(batch)["loss"])
        first = time.perf_counter()
        seconds = best_seconds(lambda: float(step(batch)["loss"]), arguments.rounds)
    model = inference_model(trainer.segmenter)
    predict = tf.function(lambda image: model(image, training=False), autograph=False)
    image = batch["image"][:1]
    predict(image)
    forward = best_seconds(lambda: predict(image).numpy(), arguments.rounds)
    flops = count_flops(
        lambda image: model(image, training=False), tf.TensorSpec((1, *network["size"], 3), "uint8")
    )
    found = {
        "M weights": count_parameters(trainer.segmenter) / 1e6,
        "GFLOPs": flops / 1e9,
        "build s": built - imported,
        "to 1st step s": first - START,
        "step s": seconds,
        "image s": forward,
        "peak GB": memory.megabytes / 1e3,
    }
    print(json.dumps({key: round(value, 2) for key, value in found.items()}))


def measure_backbone(arguments, name):
    import keras
    import tensorflow as tf

    from kseg.backbones import build_backbone
    from kseg.training.optimizers import SGD

    keras.config.set_dtype_policy(arguments.precision)
    backbone_arguments, size = PEERS[name]
    model = build_backbone(name, **backbone_arguments)
    optimizer = SGD(0.01, decay_rate=5e-4)
    optimizer.build(model.trainable_variables)
    image = tf.random.stateless_normal((arguments.batch, *size, 3), [0, 0])
    stages = list(model.strides) if name.startswith("hrnet") else ["c5"]  # What timm computes.

    @tf.function(autograph=False)
    def predict():
        outputs = model(image, training=False)
        return [tf.reduce_sum(outputs[stage]) for stage in stages]

    @tf.function(autograph=False)
    def train():
        with tf.GradientTape() as tape:
            outputs = model(image, training=True)
            maps = [tf.cast(outputs[stage], "float32") for stage in stages]
            loss = tf.add_n([tf.reduce_mean(tf.square(x)) for x in maps])
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    found = {}
    for key, function in (
        ("forward", lambda: float(predict()[0])),
        ("step", lambda: float(train())),
    ):
        function()
        found[key] = best_seconds(function, arguments.rounds)
    print(json.dumps(found))


def benchmark_serving(arguments):
    unknown = set(arguments.only) - set(NETWORKS)
    if unknown:
        raise UserError(
            f"--only names no network: {', '.join(sorted(unknown))}. Choose from "
            f"{', '.join(NETWORKS)}"
        )
    if arguments.variant == "export":
        name = arguments.only[0]
        network = {key: x for key, x in NETWORKS[name].items() if key != "size"}
        return _serving.export_network(arguments, **network)
    if arguments.variant:
        return _serving.time_runtime(arguments)
    for name in arguments.only:
        _serving.compare_runtimes(arguments, name)


if __name__ == "__main__":
    arguments = parse_arguments()
    console.run(lambda: arguments.function(arguments))
