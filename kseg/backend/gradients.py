"""Upstream gradients in functions with a custom gradient."""


def upstream_of(arguments, upstream=None):
    """Returns the gradient with respect to the first output of a function.

    The backends pass upstream gradients to the gradient function of `keras.ops.custom_gradient` in
    different ways: TensorFlow one positional argument for each output, JAX one positional argument
    of the structure of the outputs, and PyTorch one by the name `upstream`.

    Args:
        arguments: tuple, the positional arguments of the gradient function.
        upstream: its argument `upstream`, or None.

    Returns:
        tensor of the shape of the first output.
    """
    upstream = arguments[0] if upstream is None else upstream
    return upstream[0] if isinstance(upstream, tuple | list) else upstream
