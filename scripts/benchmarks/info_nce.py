"""Time and memory of the InfoNCE kernel, forward and backward, against the plain formula.

The plain formula materialises the matrix of similarities; it and the three matrix products, which
are all the arithmetic that cannot be saved, are left out where that matrix has more than 2^26
entries. Times are processor times of all threads, the shortest of several
rounds, because other work on the machine only ever adds to them. Memory is what a call needs above
its inputs.
"""

import _measuring

from kseg.commands import console

PLAIN, PRODUCTS = "plain formula", "three products alone"
VARIANTS = ["sum, sorted rows", "sum, random rows", "sum, keys detached", "each anchor's"]
VARIANTS += ["each anchor's, random rows"]
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
    parser.add_argument(
        "--block-size", type=_measuring.positive, help="default: as `info_nce` chooses"
    )
    parser.add_argument("--rounds", type=_measuring.positive, default=3)
    toy = {"anchors": 64, "keys": [96], "dim": 8, "classes": 3, "block_size": 32, "rounds": 1}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints processor time, megabytes, and ratios to the plain formula and the products."""
    print("forward and backward to anchors and keys; extra memory above the inputs")
    print(
        f"{'anchors x keys x dim':>24}  {'':<26}{'ms':>8}{'extra MB':>10}"
        f"{'to plain':>10}{'to products':>13}"
    )
    for keys in arguments.keys:
        size = f"{arguments.anchors} x {keys} x {arguments.dim}"
        baselines = {PLAIN: None, PRODUCTS: None}
        variants = [*baselines] if arguments.anchors * keys <= LARGEST_PLAIN else []
        for variant in variants + VARIANTS:
            found = _measuring.in_new_process(measure, arguments, keys=keys, variant=variant)
            if variant in baselines:
                baselines[variant] = found["seconds"]
            plain, products = (
                f"{found['seconds'] / baseline:.2f}" if baseline else "-"
                for baseline in baselines.values()
            )
            milliseconds = 1e3 * found["seconds"]
            print(
                f"{size:>24}  {variant:<26}{milliseconds:>8.1f}{found['megabytes']:>10.0f}"
                f"{plain:>10}{products:>13}",
                flush=True,
            )


def measure(arguments):
    """Measures one variant with one number of keys."""
    import time

    import numpy as np
    import tensorflow as tf

    from kseg.analysis.measuring import PeakMemory
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
            if arguments.variant == PRODUCTS:
                similarities = tf.matmul(anchors, keys, transpose_b=True)
                to_anchors = tf.matmul(similarities, keys)
                to_keys = tf.matmul(similarities, anchors, transpose_a=True)
                return tf.reduce_sum(to_anchors), (to_anchors, to_keys)
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
        rounds = []
        for _ in range(1 + arguments.rounds):  # The first one builds the graph.
            start = time.process_time()
            float(compute(anchors, keys)[0])
            rounds.append(time.process_time() - start)
    return {"seconds": min(rounds[1:]), "megabytes": memory.megabytes}


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
