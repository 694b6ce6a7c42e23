"""PyTorch's parameter names and the corresponding names in Keras."""

PARAMETERS = {
    "convolution": {"weight": "kernel", "bias": "bias"},
    "normalization": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
}


def weight_path(layer, part, parameter):
    """Builds the path of a weight.

    Args:
        layer: str, name of a layer in kseg.
        part: `"convolution"` or `"normalization"` of a `ConvNorm`, or None for a bare convolution.
        parameter: str, PyTorch's name of the parameter.

    Returns:
        str, such as `"conv1/convolution/kernel"`, or None if the part has no such parameter.
    """
    parameter = PARAMETERS[part or "convolution"].get(parameter)
    return parameter and "/".join(filter(None, (layer, part, parameter)))
