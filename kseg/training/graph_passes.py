"""A training step of whose graph TensorFlow's optimizer makes only the passes that pay off."""

import functools

import tensorflow as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

# Each pass reads the whole graph, up to 26,000 nodes here, and most of them twice. These ones
# change nothing in a training step on a CPU, or save neither time nor memory (docs/benchmarks.md).
# The first makes results differ between processes, see `kseg.training.distribution`.
_OFF = (
    "arithmetic_optimization",
    "function_optimization",
    "implementation_selector",
    "layout_optimizer",
    "loop_optimization",
)


class CompiledStep:
    """A function of a batch, compiled for one CPU with few passes of Grappler.

    Left are pruning, constant folding, fused kernels and removal of dependencies, once each. Which
    passes run does not change a bit of the results. `tf.config.optimizer` would set them for
    evaluation, too, and has no switch of the costly ones, so they are set for the call alone.

    Args:
        function: function from a nest of tensors to a nest of tensors.
    """

    def __init__(self, function):
        self._function = function
        self._concrete = {}

    def __call__(self, batch):
        """Computes the function; compiles it first for a batch of a new form.

        Args:
            batch: nest of tensors or arrays; None is allowed.

        Returns:
            what the function returns.
        """
        if not tf.executing_eagerly() or tf.config.functions_run_eagerly():
            return self._function(batch)
        batch = _as_tensors(batch)
        concrete = self.get_concrete_function(batch)
        outputs = concrete.structured_outputs
        found = tf.raw_ops.StatefulPartitionedCall(
            args=[*_leaves(batch), *concrete.captured_inputs],
            Tout=[tensor.dtype for tensor in tf.nest.flatten(outputs)],
            f=concrete,
            config_proto=_config(),
        )
        return tf.nest.pack_sequence_as(outputs, found)

    def experimental_get_tracing_count(self):
        """Counts the traces so far, as `tf.function` does."""
        return len(self._concrete)

    def get_concrete_function(self, batch):
        """Traces the function.

        Args:
            batch: as for a call.

        Returns:
            `tf.types.experimental.ConcreteFunction` of the tensors of the batch.
        """
        batch = _as_tensors(batch)
        form = repr(tf.nest.map_structure(_form, batch))
        if form not in self._concrete:
            given = tf.nest.map_structure(lambda x: x is not None, batch)

            def of_leaves(*leaves):
                remaining = iter(leaves)
                flat = [next(remaining) if x else None for x in tf.nest.flatten(given)]
                return self._function(tf.nest.pack_sequence_as(given, flat))

            # autograph is not needed, and tracing is twice as fast without it.
            traced = tf.function(of_leaves, autograph=False)
            self._concrete[form] = traced.get_concrete_function(*_leaves(batch))
        return self._concrete[form]


def _form(tensor):
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype.name)


def _as_tensors(batch):
    return tf.nest.map_structure(lambda x: None if x is None else tf.convert_to_tensor(x), batch)


def _leaves(batch):
    return [x for x in tf.nest.flatten(batch) if x is not None]


@functools.cache
def _config():
    """Returns the serialized `tf.compat.v1.ConfigProto` of the call."""
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    passes = config.graph_options.rewrite_options
    for name in _OFF:
        setattr(passes, name, RewriterConfig.OFF)
    passes.memory_optimization = RewriterConfig.NO_MEM_OPT
    passes.disable_tfg_optimizer = True
    passes.meta_optimizer_iterations = RewriterConfig.ONE
    return config.SerializeToString(deterministic=True)
