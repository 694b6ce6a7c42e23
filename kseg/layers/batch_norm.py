"""Batch normalization by fused kernels, over one replica or all of them."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import math

import keras
from keras import ops

from kseg.backend import replicas, tf

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # 0.1 in PyTorch, whose momentum weights the new statistics.


@keras.saving.register_keras_serializable(package="kseg")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization by one fused kernel, with the weights and results of Keras' layer.

    On TensorFlow a rank-4 channels-last map goes through FusedBatchNormV3, one node instead of a
    dozen; on other backends, and for renormalization, Keras' implementation is used. The moving
    variance averages the biased batch variance, as in Keras; PyTorch's is n / (n - 1) times larger.
    In training with a mask (True: counts), statistics are those of the positions that count. If
    there are fewer than two (over all replicas if synchronized), the moving statistics are used and
    do not change.

    Args:
        epsilon: float > 0. Defaults to PyTorch's 1e-5, not to Keras' 1e-3.
        momentum: float in [0, 1], the weight of the old moving statistics. Defaults to 0.9.
        synchronized: bool. If True, compute the statistics over the batches of all replicas, with
            one all-reduce forward and one backward. If False, every replica normalizes by its own
            batch and keeps its own moving statistics: their mean is saved and is what code outside
            the replicas reads, but inference on a replica uses that replica's.
        moving_if_single: bool. A channel with a single value in the batch (an image pooled to 1x1,
            one image per replica) has no variance: in training the output would be the offset
            alone, unlike in inference. If True, such a batch is normalized by the moving
            statistics in training too, and does not update them; the initial ones (mean 0,
            variance 1) leave it unchanged.
        **kwargs: as in `keras.layers.BatchNormalization`.
    """

    def __init__(
        self,
        *,
        epsilon=BATCH_NORM_EPSILON,
        momentum=BATCH_NORM_MOMENTUM,
        synchronized=False,
        moving_if_single=False,
        **kwargs,
    ):
        super().__init__(
            epsilon=epsilon,
            momentum=momentum,
            # Other backends have no replicas to synchronize, and Keras raises an error there.
            synchronized=synchronized and tf is not None,
            **kwargs,
        )
        self.moving_if_single = moving_if_single

    def get_config(self):
        return {**super().get_config(), "moving_if_single": self.moving_if_single}

    def add_weight(self, *args, trainable=True, **kwargs):
        if trainable or tf is None or not tf.distribute.has_strategy():
            return super().add_weight(*args, trainable=trainable, **kwargs)
        # Moving statistics under a strategy: each replica updates its own copy without
        # communication; a read from outside (saving, evaluating) returns the mean.
        # `Layer.add_weight` has no `synchronization` argument.
        kwargs["initializer"] = keras.initializers.get(kwargs["initializer"])
        return keras.Variable(
            dtype=self.variable_dtype,
            trainable=False,
            aggregation="mean",
            synchronization="on_read",
            **kwargs,
        )

    def call(self, inputs, training=None, mask=None):
        fused = tf is not None and len(inputs.shape) == 4 and self.axis in (-1, 3)
        training = bool(training) and self.trainable
        alone = not self.synchronized or replicas.num_replicas() == 1
        values = [size for i, size in enumerate(inputs.shape) if i != self.axis % len(inputs.shape)]
        if self.moving_if_single and alone and math.prod(size or 2 for size in values) == 1:
            training = False
        if training and mask is not None and not self.renorm and self.axis in (-1, 3):
            return self._normalize_masked(inputs, mask)
        if not fused or mask is not None or self.renorm or not (self.scale and self.center):
            return super().call(inputs, training=training, mask=mask)
        if training and not alone:
            return self._normalize_synchronized(inputs)
        if not training:
            return self._fused(inputs, self.moving_mean, self.moving_variance, is_training=False)[0]
        # The kernel updates the moving statistics itself, but with a batch variance n / (n - 1)
        # times that of Keras: scale the old value up by this factor, and the new one down again.
        if None in (size := inputs.shape[:3]):
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), "float32")
            correction = tf.maximum(count - 1.0, 1.0) / count
        else:
            correction = max(math.prod(size) - 1, 1) / math.prod(size)
        outputs, mean, variance = self._fused(
            inputs,
            self.moving_mean,
            tf.convert_to_tensor(self.moving_variance) / correction,
            is_training=True,
            exponential_avg_factor=1.0 - self.momentum,
        )
        variance = variance * correction
        # A batch of 1x1 maps whose size is known only at run time: it may hold a single image.
        if self.moving_if_single and values == [None, 1, 1]:
            several = count > 1.0
            moving = self.moving_mean, self.moving_variance
            outputs = tf.where(several, outputs, self._fused(inputs, *moving, is_training=False)[0])
            mean, variance = (
                tf.where(several, new, tf.convert_to_tensor(old))
                for new, old in zip((mean, variance), moving, strict=True)
            )
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        return outputs

    def _fused(self, inputs, mean, variance, **attributes):
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            **attributes,
        )[:3]

    def _normalize_masked(self, inputs, mask):
        """Normalizes by the moments over the positions of a mask, on any backend."""
        others = list(range(len(inputs.shape) - 1))
        wide = ops.cast(inputs, "float32")
        counted = ops.cast(mask, "float32")[..., None]
        # Differences from the moving mean, which no gradient reaches, round less than the squares.
        old = [ops.convert_to_tensor(v) for v in (self.moving_mean, self.moving_variance)]
        origin = ops.stop_gradient(old[0])
        shifted = (wide - origin) * counted
        sums = [ops.sum(shifted, others), ops.sum(shifted * shifted, others), ops.sum(counted)]
        if self.synchronized:
            sums = replicas.all_reduce_sum(sums)
        total, total_square, count = sums
        several = count > 1.0
        distance = total / ops.maximum(count, 1.0)
        spread = total_square / ops.maximum(count, 1.0) - distance * distance
        mean = ops.where(several, origin + distance, origin)
        variance = ops.where(several, ops.maximum(spread, 0.0), old[1])
        for moving, before, found in zip(
            (self.moving_mean, self.moving_variance), old, (mean, variance), strict=True
        ):
            updated = before * self.momentum + found * (1.0 - self.momentum)
            moving.assign(ops.where(several, updated, before))
        outputs = ops.batch_normalization(
            wide, mean, variance, -1, self.beta, self.gamma, self.epsilon
        )
        return ops.cast(outputs, inputs.dtype)

    def _normalize_synchronized(self, inputs):
        outputs, mean, variance = _synchronized_batch_norm(
            inputs,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            self.epsilon,
        )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs


def _synchronized_batch_norm(inputs, gamma, beta, epsilon):
    """Normalizes by the moments over the batches of all replicas.

    Defines its own gradient because the one that TensorFlow derives needs twice as many all-reduces
    and several times as many nodes. The fused kernels process the maps in inference mode, in which
    the moments are inputs.

    Args:
        inputs: float tensor `(batch, height, width, channels)`.
        gamma, beta: float32 tensors `(channels,)`.
        epsilon: float.

    Returns:
        `(outputs, mean, variance)`: a tensor like `inputs`, and two float32 tensors `(channels,)`.
    """
    channels = gamma.shape[0]
    attributes = {"epsilon": epsilon, "is_training": False}

    @tf.custom_gradient
    def normalize(inputs, gamma, beta):
        wide = tf.cast(inputs, "float32")
        moments = [tf.reduce_sum(wide, [0, 1, 2]), tf.reduce_sum(wide * wide, [0, 1, 2])]
        size = tf.cast(tf.size(inputs) // channels, "float32")
        total, total_square, count = tf.split(
            replicas.all_reduce_sum(tf.concat([*moments, [size]], axis=0)), [channels, channels, 1]
        )
        mean = total / count
        variance = tf.maximum(total_square / count - mean * mean, 0.0)
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=beta, mean=mean, variance=variance, **attributes
        )[0]

        def gradient(upstream, *_):  # The moments are only stored, never differentiated.
            # The part of the gradient that treats the moments as constants...
            partial, d_gamma, d_beta = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=inputs,
                scale=gamma,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=mean,  # Read in training mode only.
                **attributes,
            )[:3]
            # ... and the part through them: slope * (sum dy + z * sum(dy z)) / count, written as
            # a linear function of x = mean + z * std.
            all_gamma, all_beta = tf.split(
                replicas.all_reduce_sum(tf.concat([d_gamma, d_beta], axis=0)), 2
            )
            inverse_std = tf.math.rsqrt(variance + epsilon)
            scale = gamma * inverse_std / count
            slope = scale * inverse_std * all_gamma
            through = slope * tf.cast(inputs, "float32") + (scale * all_beta - slope * mean)
            d_inputs = tf.cast(tf.cast(partial, "float32") - through, inputs.dtype)
            # Parameter gradients are this replica's share: the trainer sums over replicas.
            return d_inputs, d_gamma, d_beta

        return (outputs, mean, variance), gradient

    return normalize(inputs, gamma, beta)
