"""Size and speed of the networks at the papers' crops; backbones against timm's in PyTorch.

The first table has the weights, FLOPs, times and memory of each network's training step and of its
prediction of one image. The second, with `--torch`, has forward pass and training step of backbones
alone, with timm's beside them. Times are the shortest of several rounds. The third, with
`--primitives`, has what of them is spent in oneDNN, which PyTorch uses, too.
"""

import argparse
import os
import time

START = time.perf_counter()  # Before anything heavy is imported.

import _measuring  # noqa: E402
import _networks  # noqa: E402

from kseg.commands import console  # noqa: E402

# Backbones for which timm has the same network: arguments of kseg's, and the size of the image.
PEERS = {
    "hrnet_w48": ({}, (256, 512)),
    "resnet101": ({"output_stride": 8}, (256, 512)),
    "swin_t": ({"drop_path_rate": 0.0}, (512, 512)),
}
TOY_PEERS = {"resnet18": ({}, (64, 96))}
COLUMNS = (
    "M weights",
    "GFLOPs",
    "build s",
    "to 1st step s",
    "step s",
    "image s",
    "peak GB",
)


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help=f"some of: {', '.join(dict.fromkeys([*_networks.NETWORKS, *PEERS]))}",
    )
    parser.add_argument("--batch", type=_measuring.positive, default=2, help="images a step")
    parser.add_argument("--classes", type=_measuring.positive, default=19)
    parser.add_argument("--rounds", type=_measuring.positive, default=3)
    _networks.add_precision_argument(parser)
    _measuring.add_torch_argument(parser)
    parser.add_argument(
        "--primitives",
        action="store_true",
        help="the share of oneDNN's convolutions and matrix products, and of its other "
        "primitives, in forward pass and step of the backbones, on a CPU",
    )
    toy = {"classes": 5, "rounds": 1}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def tables(arguments):
    """Returns the networks and the backbones to choose from."""
    if arguments.toy:
        return _networks.TOY_NETWORKS, TOY_PEERS
    return _networks.NETWORKS, PEERS


def compare(arguments):
    """Prints the tables."""
    networks, peers = tables(arguments)
    names = _measuring.choose(arguments.only, dict.fromkeys([*networks, *peers]))
    if chosen := [name for name in names if name in networks]:
        compare_networks(arguments, chosen)
    if arguments.torch and (chosen := [name for name in names if name in peers]):
        compare_backbones(arguments, chosen)
    if arguments.primitives and (chosen := [name for name in names if name in peers]):
        compare_primitives(arguments, chosen)


def compare_networks(arguments, names):
    """Prints the table of networks."""
    networks, _ = tables(arguments)
    print(f"networks at the papers' crops, batch {arguments.batch}, {arguments.precision}")
    print(f"{'':<16}{'crop':>12}" + "".join(f"{column:>15}" for column in COLUMNS))
    for name in names:
        found = _measuring.in_new_process(measure, arguments, part="network", name=name)
        size = "x".join(map(str, networks[name]["size"]))
        cells = "".join(f"{found[column]:>15}" for column in COLUMNS)
        print(f"{name:<16}{size:>12}{cells}", flush=True)


def compare_backbones(arguments, names):
    """Prints the table of backbones and timm's."""
    _, peers = tables(arguments)
    print(
        f"backbones alone, and timm's in PyTorch: seconds, batch {arguments.batch}, "
        f"{arguments.precision} (timm: float32)"
    )
    columns = ("forward", "timm", "ratio", "step", "timm", "ratio")
    print(f"{'':<16}{'image':>12}" + "".join(f"{column:>10}" for column in columns))
    for name in names:
        _, size = peers[name]
        ours = _measuring.in_new_process(measure, arguments, part="backbone", name=name)
        theirs = _measuring.in_torch(
            *(arguments.torch, "backbone", name, *size),
            *(arguments.batch, arguments.rounds, os.cpu_count()),
        )
        cells = [
            cell
            for key in ("forward", "step")
            for cell in (ours[key], theirs[key], ours[key] / theirs[key])
        ]
        size = "x".join(map(str, size))
        print(f"{name:<16}{size:>12}" + "".join(f"{cell:>10.3f}" for cell in cells), flush=True)


def compare_primitives(arguments, names):
    """Prints the table of oneDNN's shares."""
    print(
        f"share of oneDNN's primitives, one operation at a time, batch {arguments.batch}, "
        f"{arguments.precision}"
    )
    columns = ("seconds", "products", "other", "all else")
    print(f"{'':<24}" + "".join(f"{column:>14}" for column in columns))
    for name in names:
        # In a process of its own for a toy, too: oneDNN reads its settings when it is first used.
        found = _measuring.in_new_process(
            measure, arguments, always=True, part="primitives", name=name
        )
        for key, (seconds, products, others) in found.items():
            shares = products / seconds, others / seconds
            cells = "".join(f"{100 * share:>12.0f} %" for share in (*shares, 1 - sum(shares)))
            print(f"{name + ', ' + key:<24}{seconds:>14.3f}{cells}", flush=True)


def measure(arguments):
    """Measures a network, or a backbone alone."""
    parts = {
        "network": measure_network,
        "backbone": measure_backbone,
        "primitives": measure_primitives,
    }
    return parts[arguments.part](arguments)


def measure_network(arguments):
    """Measures the training step of a network and its prediction of one image."""
    import tensorflow as tf

    from kseg.analysis.complexity import count_parameters
    from kseg.analysis.measuring import PeakMemory, best_seconds
    from kseg.segmenters import inference_model

    networks, _ = tables(arguments)
    network = networks[arguments.name]
    batch = _networks.random_batch(arguments, network["size"])
    imported = time.perf_counter()
    with PeakMemory() as memory:
        trainer, step = _networks.build_step(argparse.Namespace(**vars(arguments), **network))
        built = time.perf_counter()
        float(step(batch)["loss"])
        first = time.perf_counter()
        seconds = best_seconds(lambda: float(step(batch)["loss"]), arguments.rounds)
    model = inference_model(trainer.segmenter)
    predict = tf.function(lambda image: model(image, training=False), autograph=False)
    image = batch["image"][:1]
    predict(image)
    forward = best_seconds(lambda: predict(image).numpy(), arguments.rounds)
    found = {
        "M weights": count_parameters(trainer.segmenter) / 1e6,
        "GFLOPs": _networks.forward_gflops(model, network["size"], "uint8"),
        "build s": built - imported,
        "to 1st step s": first - START,
        "step s": seconds,
        "image s": forward,
        "peak GB": memory.megabytes / 1e3,
    }
    return {key: round(value, 2) for key, value in found.items()}


def measure_backbone(arguments):
    """Measures forward pass and training step of a backbone alone."""
    from kseg.analysis.measuring import best_seconds

    found = {}
    for key, function in backbone_functions(arguments).items():
        function()
        found[key] = best_seconds(function, arguments.rounds)
    return found


def measure_primitives(arguments):
    """Measures the seconds of a call, of oneDNN's products in it and of its other primitives.

    Products are convolutions, matrix products and the gradients of both.
    """
    os.environ["ONEDNN_VERBOSE"] = "profile_exec"
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    found = {}
    for key, function in backbone_functions(arguments).items():
        function()
        runs = [_measuring.seconds_in_onednn(function) for _ in range(arguments.rounds)]
        seconds, primitives = min(runs, key=lambda run: run[0])
        kinds = "convolution", "inner_product", "matmul", "gemm_api"
        products = sum(primitives.get(kind, 0.0) for kind in kinds)
        found[key] = seconds, products, sum(primitives.values()) - products
    return found


def backbone_functions(arguments):
    """Builds a backbone; returns a dict with functions that call it, `forward` and `step`."""
    import keras
    import tensorflow as tf

    from kseg.backbones import build_backbone
    from kseg.training.optimizers import SGD

    keras.config.set_dtype_policy(arguments.precision)
    backbone_arguments, size = tables(arguments)[1][arguments.name]
    model = build_backbone(arguments.name, **backbone_arguments)
    optimizer = SGD(0.01, decay_rate=5e-4)
    optimizer.build(model.trainable_variables)
    image = tf.random.stateless_normal((arguments.batch, *size, 3), [0, 0])
    # The maps that timm computes.
    stages = list(model.strides) if arguments.name.startswith("hrnet") else ["c5"]

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

    return {"forward": lambda: float(predict()[0]), "step": lambda: float(train())}


if __name__ == "__main__":
    console.run(main)
