"""Time and memory of the InfoNCE kernel, forward and backward, against the plain formula.

The plain formula materialises the matrix of similarities; it is left out where that matrix has more
than 2^26 entries. Times are the shortest of several rounds, because other work on the machine only
ever adds to them. Memory is what a call needs above its inputs.
"""

import _measuring

from kseg.commands import console

PLAIN = "plain formula"
VARIANTS = ["sum, sorted rows", "sum, random rows", "sum, keys detached", "each anchor's"]
LARGEST_PLAIN = 2**26  # Entries of the matrix of similarities.


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument("--anchors", type=_measuring.positive, default=8192)
    parser.add_argument(
        "--keys", type=_measuring.positive, nargs="+", default=[8192, 32768, 262_144]
    )
    parser.add_argument("--dim", type=_measuring.positive, default=256)
    parser.add_argument("--classes", type=_measuring.positive, default=19)
    parser.add_argument("--block-size", type=_measuring.positive, default=1024)
    parser.add_argument("--rounds", type=_measuring.positive, default=3)
    toy = {"anchors": 64, "keys": [96], "dim": 8, "classes": 3, "block_size": 32, "rounds": 1}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints seconds, megabytes and the ratio of times to the plain formula."""
    print("forward and backward to anchors and keys; extra memory above the inputs")
    print(f"{'anchors x keys x dim':>24}  {'':<26}{'seconds':>8}{'extra MB':>10}{'time ratio':>12}")
    for keys in arguments.keys:
        size = f"{arguments.anchors} x {keys} x {arguments.dim}"
        plain = None
        variants = [PLAIN] if arguments.anchors * keys <= LARGEST_PLAIN else []
        for variant in variants + VARIANTS:
            found = _measuring.in_new_process(measure, arguments, keys=keys, variant=variant)
            plain = found["seconds"] if variant == PLAIN else plain
            ratio = f"{found['seconds'] / plain:.2f}" if plain else "-"
            print(
                f"{size:>24}  {variant:<26}{found['seconds']:>8.2f}{found['megabytes']:>10.0f}"
                f"{ratio:>12}",
                flush=True,
            )


def measure(arguments):
    """Measures one variant with one number of keys."""
    import numpy as np
    import tensorflow as tf

    from kseg.analysis.measuring import PeakMemory, best_seconds
    from kseg.contrast.info_nce import info_nce

    rng = np.random.default_rng(0)

    def rows(count):
        x = rng.standard_normal((count, arguments.dim), dtype="float32")
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        labels = rng.integers(0, arguments.classes, count)
        labels = labels if "random" in arguments.variant else np.sort(labels)
        return tf.constant(x), tf.constant(labels, "int32")

    anchors, anchor_labels = rows(arguments.anchors)
    keys, key_labels = rows(arguments.keys)
    detached = "detached" in arguments.variant

    @tf.function(autograph=False)
    def compute(anchors, keys):
        sources = [anchors] if detached else [anchors, keys]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            if arguments.variant == PLAIN:
                loss = plain_formula(anchors, anchor_labels, keys, key_labels)
            else:
                loss, _ = info_nce(
                    *(anchors, anchor_labels, keys, key_labels),
                    detach_keys=detached,
                    reduction="sum" if arguments.variant.startswith("sum") else "none",
                    block_size=arguments.block_size,
                )
            total = tf.reduce_sum(loss) / arguments.anchors
        return total, tape.gradient(total, sources)

    compute.get_concrete_function(anchors, keys)
    with PeakMemory() as memory:
        seconds = best_seconds(lambda: float(compute(anchors, keys)[0]), arguments.rounds)
    return {"seconds": seconds, "megabytes": memory.megabytes}


def plain_formula(anchors, anchor_labels, keys, key_labels):
    """Computes `info_nce` from the matrix of similarities.

    Args:
        anchors, keys: float32 tensors `(rows, dim)`.
        anchor_labels, key_labels: int32 tensors `(rows,)`.

    Returns:
        float32 tensor `(num_anchors,)`.
    """
    import tensorflow as tf

    similarities = tf.matmul(anchors, keys, transpose_b=True) / 0.1
    same = anchor_labels[:, None] == key_labels[None, :]
    negatives = tf.where(same, -1e30, similarities)
    negatives = tf.reduce_logsumexp(negatives, axis=1, keepdims=True)
    positive = tf.cast(same, "float32")
    terms = tf.nn.softplus(negatives - similarities) * positive
    return tf.reduce_sum(terms, axis=1) / tf.maximum(tf.reduce_sum(positive, axis=1), 1.0)


if __name__ == "__main__":
    console.run(main)
