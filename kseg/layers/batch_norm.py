"""Batch normalization in fused kernels, over one replica or all of them."""

# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import math

import keras

from kseg.backend import replicas, tf

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # PyTorch counts the other way round and calls it 0.1.


@keras.saving.register_keras_serializable(package="kseg")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation in one fused kernel, with Keras' weights and numbers.

    On TensorFlow a rank-4 channels-last map goes through FusedBatchNormV3, one node instead of a
    dozen; elsewhere, and for masks and renormalisation, this is plain Keras. The moving variance
    is that of the batch itself, as in Keras; PyTorch's is n / (n - 1) times larger.

    Args:
        epsilon: float > 0. Defaults to PyTorch's 1e-5, not to Keras' 1e-3.
        momentum: float in [0, 1], the weight of the old moving statistics. Defaults to 0.9.
        synchronized: bool. Takes the statistics over the batches of all replicas, by one
            message forward and one backward. Without it every replica normalises by its own
            batch and keeps its own moving statistics: what is saved, or read outside of the
            replicas, is their mean, but inference on a replica uses its own.
        moving_if_single: bool. Where a channel has one value in the batch (an image pooled to 1x1,
            one image a replica), it has no variance: training would see the offset alone, and
            inference something else. If True, such a batch is normalised by the moving statistics
            in training too, and does not change them; those of a new layer leave it as it is.
        others: as in `keras.layers.BatchNormalization`.
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
            # Other backends have no replicas to synchronise, and Keras raises there.
            synchronized=synchronized and tf is not None,
            **kwargs,
        )
        self.moving_if_single = moving_if_single

    def get_config(self):
        return {**super().get_config(), "moving_if_single": self.moving_if_single}

    def add_weight(self, *args, trainable=True, **kwargs):
        if trainable or tf is None or not tf.distribute.has_strategy():
            return super().add_weight(*args, trainable=trainable, **kwargs)
        # Moving statistics under a strategy: each replica writes its own copy, without a message;
        # reading from outside (saving, evaluating) gives the mean. `Layer.add_weight` lacks it.
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
        if not fused or mask is not None or self.renorm or not (self.scale and self.center):
            return super().call(inputs, training=training, mask=mask)
        if training and not alone:
            return self._normalize_synchronized(inputs)
        if not training:
            return self._fused(inputs, self.moving_mean, self.moving_variance, is_training=False)[0]
        # The kernel moves the statistics itself, but its batch variance is n / (n - 1) times that
        # of Keras: the old value goes in that much larger, and the new comes out that much smaller.
        if None in (size := inputs.shape[:3]):
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), "float32")
            correction = tf.maximum(count - 1.0, 1.0) / count
        else:
            correction = max(math.prod(size) - 1, 1) / math.prod(size)
        outputs, mean, variance = self._fused(
            inputs,
            self.moving_mean,
            self.moving_variance / correction,
            is_training=True,
            exponential_avg_factor=1.0 - self.momentum,
        )
        variance = variance * correction
        if self.moving_if_single and values == [
            None,
            1,
            1,
        ]:  # Of a batch that may turn out to be of one image.
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
    """Normalises by the moments over the batches of all replicas.

    Written with its own gradient because the one that TensorFlow derives sends twice as many
    messages and has several times as many nodes. The fused kernels do the work on whole maps, in
    their inference mode, in which the moments are given to them.

    Args:
        inputs: float tensor `(batch, height, width, channels)`.
        gamma, beta: float32 tensors `(channels,)`.
        epsilon: float.

    Returns:
        `(outputs, mean, variance)`: like `inputs`, and twice float32 `(channels,)`.
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
            # The part of the gradient that takes the moments for constants...
            partial, d_gamma, d_beta = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=inputs,
                scale=gamma,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=mean,  # Read in training mode only.
                **attributes,
            )[:3]
            # ... and what flows through them: slope * (sum dy + z * sum(dy z)) / count, written as
            # a straight line in x = mean + z * std.
            all_gamma, all_beta = tf.split(
                replicas.all_reduce_sum(tf.concat([d_gamma, d_beta], axis=0)), 2
            )
            inverse_std = tf.math.rsqrt(variance + epsilon)
            scale = gamma * inverse_std / count
            slope = scale * inverse_std * all_gamma
            through = slope * tf.cast(inputs, "float32") + (scale * all_beta - slope * mean)
            d_inputs = tf.cast(tf.cast(partial, "float32") - through, inputs.dtype)
            # Parameters get this replica's share: the trainer sums gradients over replicas.
            return d_inputs, d_gamma, d_beta

        return (outputs, mean, variance), gradient

    return normalize(inputs, gamma, beta)
