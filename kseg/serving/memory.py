"""Estimate of the memory that a SavedModel needs for an image, made before running it.

On a CPU, running out of memory raises no error that could be caught: the system kills the process,
or an operation with 32-bit indices writes out of bounds.
"""

import pathlib

import tensorflow as tf

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
# Operations that reuse the memory of their first input.
_VIEWS = {"Identity", "Reshape", "Squeeze", "ExpandDims"}
# Operations that overwrite an input without other readers, or are fused with the previous one.
_IN_PLACE = {"AddV2", "BiasAdd", "FusedBatchNormV3", "Mul", "Relu", "Softmax", "Sub"}
_MOST_ELEMENTS = 2**31 - 1


def estimate(signature, size):
    """Estimates the peak memory of one call of a SavedModel, excluding the weights.

    The shapes of all tensors follow from the graph; each tensor is held from its creation to its
    last use. The estimate excludes scratch memory of operations, and tensors that are held longer
    because branches run in parallel.

    Args:
        signature: `serving_default` of a SavedModel written by `export_saved_model`.
        size: `(height, width)` of one image.

    Returns:
        int, bytes; infinity if a tensor has more elements than operations can index (2^31 - 1);
        None if this version of TensorFlow does not expose the shapes.
    """
    try:
        # Not part of TensorFlow's documented interface.
        from tensorflow.python.framework.function_def_to_graph import function_def_to_graph
    except ImportError:
        return None
    network_and_weights = _find_network(signature.graph)
    if network_and_weights is None:
        return None
    network, weights = network_and_weights
    _open_shapes(network, weights)
    shapes = [None] * len(network.signature.input_arg)
    (images,) = signature.structured_input_signature[1].values()
    shapes[0] = tf.TensorShape((1, *size, images.shape[-1]))
    with tf.Graph().as_default():
        try:
            graph = function_def_to_graph(network, input_shapes=shapes)
        except (TypeError, ValueError, AttributeError, KeyError):
            return None
    return _peak(graph)


def _find_network(graph):
    """Finds the network's function, which is called by that of a signature.

    Returns:
        `(function, weights)`: a FunctionDef whose first argument is the images, and a dict from the
        names of the other arguments to the shapes of their variables; None if there is no such
        function.
    """
    functions = {f.signature.name: f for f in graph.as_graph_def().library.function}
    calls = [o for o in graph.get_operations() if o.type in _CALLS]
    if not calls:
        return None
    call = max(calls, key=lambda operation: len(operation.inputs))
    # The shape of a variable is stored with its handle tensor, and only in this outermost graph.
    data = [getattr(tensor, "_handle_data", None) for tensor in call.inputs]
    shapes = [d.shape_and_type[0].shape if d and d.shape_and_type else None for d in data]
    function = functions.get(call.get_attr("f").name)
    while function is not None:
        names = [argument.name for argument in function.signature.input_arg]
        shapes = dict(zip(names, shapes, strict=True))
        inner = [node for node in function.node_def if node.op in _CALLS]
        inner = max(inner, key=lambda node: len(node.input), default=None)
        below = functions.get(inner.attr["f"].func.name) if inner is not None else None
        if below is None or len(below.node_def) < len(function.node_def):
            return function, shapes
        inputs = [name for name in inner.input if not name.startswith("^")]
        shapes = [shapes.get(name.split(":")[0]) for name in inputs]
        function = below
    return None


def _open_shapes(network, weights):
    """Removes the static shapes of the export from a FunctionDef.

    They would take precedence over the shapes inferred from the image size. Each read of a variable
    is replaced by a placeholder of its shape.

    Args:
        network, weights: as returned by `_find_network`.
    """
    for node in network.node_def:
        if "_output_shapes" in node.attr:
            del node.attr["_output_shapes"]
        if node.op == "ReadVariableOp" and weights.get(node.input[0]) is not None:
            node.op = "Placeholder"
            node.attr["shape"].shape.CopyFrom(weights[node.input[0]])
            del node.input[:]
    read = {f"{node.name}:value:0" for node in network.node_def if node.op == "Placeholder"}
    for node in network.node_def:
        for i, name in enumerate(node.input):
            if name in read:
                node.input[i] = name.replace(":value:", ":output:")
    for argument in network.arg_attr.values():
        if "_output_shapes" in argument.attr:
            del argument.attr["_output_shapes"]


def _peak(graph):
    """Computes the maximum total size of the tensors held at the same time, in bytes."""
    operations = graph.get_operations()
    images = graph.inputs[0].op  # The captured weights follow this argument.
    base, sizes = {}, {}  # Tensor -> owner of its memory; owner -> bytes.
    last = {}
    for number, operation in enumerate(operations):
        for tensor in operation.inputs:
            last[base.get(tensor.ref(), tensor.ref())] = number
        for i, tensor in enumerate(operation.outputs):
            key = tensor.ref()
            base[key] = key
            elements = tensor.shape.num_elements() or 0
            if elements > _MOST_ELEMENTS:
                return float("inf")
            weight = operation.type == "Placeholder" and operation is not images
            sizes[key] = 0 if weight else elements * tensor.dtype.size
            if i == 0 and operation.type in _VIEWS:
                base[key] = base.get(operation.inputs[0].ref(), key)
    for tensor in graph.outputs:
        last[base.get(tensor.ref(), tensor.ref())] = len(operations)
    held, peak = {}, 0
    for number, operation in enumerate(operations):
        inputs = {base.get(tensor.ref(), tensor.ref()) for tensor in operation.inputs}
        done = [key for key in inputs if key in held and last[key] == number]
        for i, tensor in enumerate(operation.outputs):
            key = tensor.ref()
            if base[key] != key or not last.get(key):
                continue
            if i == 0 and operation.type in _IN_PLACE:
                same = next((k for k in done if held[k] == sizes[key]), None)
                if same is not None:
                    done.remove(same)
                    del held[same]
            held[key] = sizes[key]
        peak = max(peak, sum(held.values()))
        for key in done:
            del held[key]
    return peak


def available():
    """Returns the bytes of memory available to this process, or None if unknown."""
    limits = []
    try:
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    except (OSError, ValueError):
        pass
    # Containers have separate limits.
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            room = int(pathlib.Path(limit).read_text()) - int(pathlib.Path(used).read_text())
        except (OSError, ValueError):  # "max", which means no limit, is a ValueError too.
            continue
        limits.append(max(room, 0))
    return min(limits) if limits else None
