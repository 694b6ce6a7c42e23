"""Lovasz-softmax: a convex surrogate of the mean IoU."""

from keras import ops

from kseg import replicas
from kseg.control_flow import scan
from kseg.losses.cross_entropy import logits_like


def lovasz_softmax(labels, logits):
    """Mean over the classes that are present of the Lovasz extension of the Jaccard loss.

    The whole global batch counts as one image. The errors of a class, `1 - p` at its own pixels and
    p at others, are weighed by how much the Jaccard loss grows with each when the largest come
    first.

    Source: Berman et al., "The Lovasz-Softmax loss", CVPR 2018, Eq. 8, 9 and 11 and Alg. 1, with
    the classes "present". The weights are taken in closed form, not as differences of nearly equal
    numbers.

    Args:
        labels: int tensor `(batch, height, width)`, static shape; values outside
            `[0, num_classes)` are ignored.
        logits: float tensor `(batch, h, w, num_classes)`, resized as in `cross_entropy`.

    Returns:
        float32 scalar: this replica's share of the loss; 0 if no class is present.
    """
    num_classes = logits.shape[-1]
    probabilities = ops.softmax(logits_like(labels, logits), axis=-1)
    probabilities = ops.transpose(ops.reshape(probabilities, (-1, num_classes)))
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    valid = ops.logical_and(labels >= 0, labels < num_classes)
    pixels = labels.shape[0]

    def weights(n):
        """Derivatives of the loss of class n with respect to its errors; zeros if absent."""
        own = ops.cast(labels == n, "float32")
        p = ops.reshape(ops.slice(constant, (n, 0), (1, pixels)), (-1,))
        # What is ignored comes after all errors.
        return _jaccard_weights(ops.where(valid, own + (1.0 - 2.0 * own) * p, -1.0), own)

    constant = ops.stop_gradient(probabilities)
    present = ops.cast(_counts(labels, num_classes) > 0, "float32")
    if replicas.num_replicas() > 1:  # No communication in a loop of the graph.
        slopes = ops.stack([weights(n) for n in range(num_classes)])
    else:

        def step(carry, n):
            absent = ops.zeros((pixels,), "float32")
            return carry, (ops.cond(ops.take(present, n) > 0, lambda: weights(n), lambda: absent),)

        _, (slopes,) = scan(step, (), num_classes, [(pixels,)])
    slopes = ops.stop_gradient(slopes) * present[:, None]
    own = ops.cast(labels[None, :] == ops.arange(num_classes, dtype="int32")[:, None], "float32")
    error = own + (1.0 - 2.0 * own) * probabilities
    return ops.sum(slopes * error) / ops.maximum(ops.sum(present), 1.0)


def _counts(labels, num_classes):
    """Pixels of each class in the global batch, int32 `(num_classes,)`."""
    inside = ops.logical_and(labels >= 0, labels < num_classes)
    counts = ops.bincount(ops.where(inside, labels, num_classes), minlength=num_classes + 1)
    return replicas.all_reduce_sum(ops.cast(counts, "int32"))[:num_classes]


def _jaccard_weights(error, own):
    """The gradient of the Lovasz extension, at this replica's pixels.

    With the errors of the global batch in descending order, I of the class's pixels after the k-th
    and U pixels in the union of class and first k: the loss is `1 - I / U`, and grows by `1 / U`
    at a pixel of the class, by `I / (U (U - 1))` at another.

    Args:
        error: float32 tensor `(pixels,)`; -1 where ignored.
        own: float32 tensor `(pixels,)`, 1 at pixels of the class.

    Returns:
        float32 tensor `(pixels,)`, 0 where ignored.
    """
    pixels = error.shape[0]
    everywhere, own = replicas.all_gather(error), replicas.all_gather(own)
    order = ops.argsort(-everywhere)
    own = ops.take(own, order)
    left = ops.sum(own) - ops.cumsum(own)
    union = ops.sum(own) + ops.cumsum(1.0 - own)
    grown = ops.where(own > 0, 1.0 / union, left / (union * ops.maximum(union - 1.0, 1.0)))
    grown = ops.scatter(order[:, None], grown, everywhere.shape)
    first = replicas.replica_id() * pixels
    mine = ops.slice(grown, (first,), (pixels,))
    return ops.where(error >= 0, mine, 0.0)
