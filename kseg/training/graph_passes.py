"""A training step of whose graph TensorFlow's optimizer makes only the passes that pay off."""

import contextlib
import functools

import tensorflow as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.eager import context  # Not part of the documented interface.

# Each pass reads the whole graph, up to 26,000 nodes here, and most of them twice. In a training
# step on a CPU these ones save neither time nor memory (docs/benchmarks.md). The first makes
# results differ between processes, see `kseg.training.distribution`.
_OFF = (
    "arithmetic_optimization",
    "constant_folding",
    "dependency_optimization",
    "function_optimization",
    "implementation_selector",
    "layout_optimizer",
    "loop_optimization",
)


class FewPasses:
    """Calls a `tf.function` compiled with few passes of Grappler, for CPUs.

    Left are pruning and fused kernels, once each. `tf.config.optimizer` would set them for
    evaluation, too, and has no switch of some costly ones, so they are set for the calls alone.

    Args:
        function: `tf.function`.
    """

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        """Calls the function."""
        with _few_passes():
            return self._function(*arguments)

    def experimental_get_tracing_count(self):
        """Counts the traces so far."""
        return self._function.experimental_get_tracing_count()

    def get_concrete_function(self, *arguments):
        """Traces the function as a call would."""
        with _few_passes():
            return self._function.get_concrete_function(*arguments)


@contextlib.contextmanager
def _few_passes():
    """Within the block, functions that this thread calls for the first time get few passes."""
    ours = context.context()
    before = ours.function_call_options
    ours.function_call_options = _options()
    try:
        yield
    finally:
        ours.function_call_options = before


@functools.cache
def _options():
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    passes = config.graph_options.rewrite_options
    for name in _OFF:
        setattr(passes, name, RewriterConfig.OFF)
    passes.memory_optimization = RewriterConfig.NO_MEM_OPT
    passes.disable_tfg_optimizer = True
    passes.meta_optimizer_iterations = RewriterConfig.ONE
    return context.FunctionCallOptions(config_proto=config)
