"""What `keras.ops` lacks: replicas, loops, rows of large variables, TensorFlow's own kernels.

Below `kseg.training` this is the only package that imports TensorFlow. Code that uses one of its
fused kernels takes `tf` from here, and has a form in `keras.ops` beside it for other backends.
"""

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None

__all__ = ["tf"]
