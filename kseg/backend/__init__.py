"""Backend features missing from `keras.ops`: replicas, loops, row access, TensorFlow's kernels.

Below `kseg.training` this is the only package that imports TensorFlow. Code that needs one of its
fused kernels imports `tf` from this package and provides a `keras.ops` version for other backends.
"""

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None

__all__ = ["tf"]
