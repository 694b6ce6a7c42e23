"""Reductions of per-pixel and per-anchor losses to a scalar, on one or more replicas."""

import typing

from keras import ops

from kseg.backend import replicas


class LossAndWeight(typing.NamedTuple):
    """Per-pixel losses and their weights: a pair that refuses conversion to a tensor.

    Otherwise `compile(loss=cross_entropy)` would silently average losses and weights together.
    """

    loss: typing.Any
    weight: typing.Any

    def _refuse(self, *arguments, **named):
        raise TypeError(
            "A loss function of kseg.losses returns (loss, weight) for each pixel, not a scalar "
            "that Keras can average. Received: a conversion of the pair to a tensor. Compile with "
            "kseg.losses.CrossEntropy(), OHEM() or Focal(), or use "
            "global_ratio(*pair)"
        )

    __tf_tensor__ = __array__ = __jax_array__ = _refuse


def global_mean(values, valid, *, cross_replica=True):
    """Averages the valid values of the global batch.

    The mean is over the valid values of all replicas together, not a mean of the replicas' means:
    replicas with fewer valid pixels weigh less, as they would in one large batch.

    Args:
        values: float tensor, any shape.
        valid: tensor of the same shape, 1 (or True) where the value counts, else 0.
        cross_replica: bool. False: average the replicas' own means instead.

    Returns:
        float32 scalar: this replica's share. Its sum over replicas is the mean, 0 if nothing is
        valid; on one replica it is the mean itself.
    """
    valid = ops.cast(valid, "float32")
    return global_ratio(ops.cast(values, "float32") * valid, valid, cross_replica=cross_replica)


def global_ratio(values, weights, *, cross_replica=True):
    """Divides the sum of values by the sum of weights, both over the global batch.

    Args:
        values: float tensor, any shape, already multiplied by the weights.
        weights: float tensor >= 0, any shape.
        cross_replica: bool. False: average the replicas' own ratios instead.

    Returns:
        float32 scalar: this replica's share, as in `global_mean`; 0 if all weights are 0.
    """
    total, weight = (ops.sum(ops.cast(x, "float32")) for x in (values, weights))
    if cross_replica:
        weight = replicas.all_reduce_sum(weight)
    ratio = ops.where(weight > 0, total / ops.where(weight > 0, weight, 1.0), 0.0)
    return ratio if cross_replica else ratio / replicas.num_replicas()


def mean_of_present(values, present, class_weights=None):
    """Averages values of classes over the classes that are present.

    Args:
        values: float32 tensor `(num_classes,)`.
        present: bool tensor `(num_classes,)`.
        class_weights: `num_classes` floats >= 0, or None: 1 for all.

    Returns:
        float32 scalar, `sum_c w_c v_c / sum_c w_c` over the present classes; 0 if these weigh 0.
    """
    weights = ops.cast(present, "float32")
    if class_weights is not None:
        weights = weights * ops.convert_to_tensor(class_weights, "float32")
    total = ops.sum(weights)
    return ops.sum(weights * values) / ops.where(total > 0, total, 1.0)
