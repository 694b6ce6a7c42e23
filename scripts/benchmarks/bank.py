"""Memory and time of RegionContrast's memory bank, by layout and storage.

The dense layout gives each class a slot for every image of the data set; the compact layout gives
it one for every image that shows the class. The classes follow a long tail. The defaults are the
sizes of ADE20K. Times are the shortest of two calls: forward, backward and writing to a full bank.
"""

import math

import _measuring

from kseg.commands import console

VARIANTS = ("compact, float32", "compact, bfloat16", "dense, bfloat16", "dense, float32")
BLOCK = 30  # Width and height of a block of one label, in pixels of the map.


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument(
        "--images",
        type=_measuring.positive,
        default=20_210,
        help="largest number of slots of a class",
    )
    parser.add_argument("--classes", type=_measuring.positive, default=150)
    parser.add_argument(
        "--classes-per-image", type=float, default=9.5, help="mean number of classes in an image"
    )
    parser.add_argument("--batch", type=_measuring.positive, default=16, help="images a step")
    parser.set_defaults(block=BLOCK, dim=256)
    toy = {"images": 20, "classes": 5, "classes_per_image": 2.5, "batch": 2, "block": 4, "dim": 8}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints slots, megabytes and seconds of each variant."""
    print(
        f"RegionContrast, full bank, forward, backward and writing: {arguments.classes} classes, "
        f"{arguments.images} images of {arguments.classes_per_image} classes, "
        f"batch {arguments.batch}"
    )
    print(f"{'layout, storage':<22}{'slots':>10}{'bank MB':>10}{'seconds':>10}")
    for variant in VARIANTS:
        found = _measuring.in_new_process(measure, arguments, variant=variant)
        print(
            f"{variant:<22}{found['slots']:>10}{found['megabytes']:>10.0f}{found['seconds']:>10.2f}",
            flush=True,
        )


def measure(arguments):
    """Measures one layout with one storage."""
    import numpy as np
    import tensorflow as tf

    from kseg.analysis.measuring import best_seconds
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
    labels = blocks.repeat(arguments.block, axis=1).repeat(arguments.block, axis=2)
    labels = tf.constant(labels, "int32")

    def normal(channels):
        return tf.constant(rng.standard_normal((*labels.shape, channels), dtype="float32"))

    outputs = {"features": normal(arguments.dim), "logits": normal(arguments.classes)}
    objective.prepare(outputs)
    bank = objective.bank
    # The slots hold zeros: neither time nor memory depends on their values.
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


if __name__ == "__main__":
    console.run(main)
