"""Creation of many variables at once."""

import contextlib

from kseg.backend import tf


@contextlib.contextmanager
def shared_variable_kernels():
    """Has variables that are built within a block share the kernels that create them.

    Executing eagerly, TensorFlow compiles a kernel for each distinct name of a variable, which
    takes longer than all else in its creation. Within the block it sees the last part of the name
    alone (`kernel` in place of `stage2_0/conv/kernel`), so that variables of the same shape share a
    kernel. Names and paths of Keras' variables are unaffected; other backends, too.
    """
    if tf is None:
        yield
        return

    def create(next_creator, **arguments):
        with tf.name_scope(""):
            return next_creator(**arguments)

    with tf.variable_creator_scope(create):
        yield
