"""The environment of Python processes in which a test runs JAX."""

import os


def environment(backend="jax", **more):
    """Returns the variables of a process that computes with JAX on the CPU and compiles fast.

    Args:
        backend: name of Keras' backend, or None: as Keras has it without a setting.
        **more: further variables.
    """
    found = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Code that is run once or twice need not be fast.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        **more,
    }
    found.pop("KERAS_BACKEND", None)
    return found if backend is None else {**found, "KERAS_BACKEND": backend}
