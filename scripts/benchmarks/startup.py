"""Seconds from process start to the end of the first training step, against plain Keras.

Plain Keras is the same network of stock Keras layers, trained by `fit`. Each variant is a process
of its own; it reports the seconds of its imports, of building, tracing and the first step, and
the processor seconds of all threads together, to which other work on the machine adds little.
"""

import contextlib
import sys
import time

START = time.perf_counter()  # Before anything heavy is imported.

import _measuring  # noqa: E402
import _networks  # noqa: E402

from kseg.commands import console  # noqa: E402

VARIANTS = ("kseg", "kseg with multi-scale contrast", "plain Keras layers and fit")
COLUMNS = ("import", "build", "trace", "first step", "in all", "processor", "graph nodes")


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    _networks.add_arguments(parser, "hrnet_w48", (128, 256), 2)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="VARIANT")
    toy = _networks.TOY_ARGUMENTS
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints the seconds of each phase."""
    height, width = arguments.size
    print(
        f"{arguments.head} on {arguments.backbone}, {arguments.batch} x {height} x {width}: "
        "seconds from process start to the end of the first training step"
    )
    print(f"{'':<34}" + "".join(f"{column:>12}" for column in COLUMNS))
    for variant in arguments.only:
        found = _measuring.in_new_process(measure, arguments, variant=variant)
        cells = "".join(f"{found.get(column, '-'):>12}" for column in COLUMNS)
        print(f"{variant:<34}{cells}", flush=True)


def measure(arguments):
    """Measures the start of this process."""
    from kseg.training import trainer  # noqa: F401 - counted as import.

    times = {"import": time.perf_counter() - START}
    batch = _networks.random_batch(arguments, arguments.size)
    if arguments.variant.startswith("plain"):
        fit_plainly(arguments, batch)
    else:
        method = "MS/CS" if "contrast" in arguments.variant else "cross-entropy only"
        _, step = _networks.build_step(arguments, _networks.contrast_of(arguments, method))
        times["build"] = time.perf_counter() - START - sum(times.values())
        graph = step.get_concrete_function(batch).graph.as_graph_def()
        times["trace"] = time.perf_counter() - START - sum(times.values())
        float(step(batch)["loss"])
        times["first step"] = time.perf_counter() - START - sum(times.values())
        functions = sum(len(function.node_def) for function in graph.library.function)
        times["graph nodes"] = len(graph.node) + functions
    found = {k: v if k == "graph nodes" else round(v, 1) for k, v in times.items()}
    found["processor"] = round(time.process_time(), 1)
    return {**found, "in all": round(time.perf_counter() - START, 1)}


def fit_plainly(arguments, batch):
    """Trains the same network of stock Keras layers by `fit`."""
    import keras
    import tensorflow as tf

    from kseg.errors import as_user_error
    from kseg.segmenters import build_segmenter

    keras.config.set_dtype_policy(arguments.precision)
    with plain_layers(), as_user_error("The network"):
        segmenter = build_segmenter(
            arguments.backbone,
            arguments.head,
            arguments.classes,
            backbone_arguments=arguments.backbone_arguments,
            head_arguments=arguments.head_arguments,
        )
    logits = keras.layers.Resizing(*arguments.size)(segmenter.output["logits"])
    model = keras.Model(segmenter.input, logits)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    dataset = tf.data.Dataset.from_tensors((batch["image"], batch["label"]))
    model.fit(dataset, shuffle=False, verbose=0)


@contextlib.contextmanager
def plain_layers():
    """Makes the builders use stock Keras layers instead of `kseg.layers.ConvNorm` in the block."""
    import keras

    from kseg.layers import ConvNorm

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

    # Builders hold the class under its own name.
    holders = [m for m in list(sys.modules.values()) if vars(m).get("ConvNorm") is ConvNorm]
    for module in holders:
        module.ConvNorm = PlainConvNorm
    try:
        yield
    finally:
        for module in holders:
            module.ConvNorm = ConvNorm


if __name__ == "__main__":
    console.run(main)
