"""Creation of many variables at once."""

import contextlib

from kseg.backend import tf


@contextlib.contextmanager
def shared_variable_kernels():
    """Makes variables built within a block share the kernels that create them.

    In eager execution TensorFlow compiles a kernel for each distinct variable name, which takes
    more than half of the time to create a variable. Within the block TensorFlow sees only the last
    part of the name (`kernel` instead of `stage2_0/conv/kernel`), so that variables of the same
    name, shape and dtype share a kernel. Names and paths of Keras variables do not change. The
    block has no effect on other backends.
    """
    if tf is None:
        yield
        return

    def create(next_creator, **arguments):
        with tf.name_scope(""):
            return next_creator(**arguments)

    with tf.variable_creator_scope(create):
        yield
