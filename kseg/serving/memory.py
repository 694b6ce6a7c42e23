"""Memory that a SavedModel needs for an image, estimated before it runs.

On a CPU there is no error to catch: the system ends the process, or an operation that counts
elements in 32 bits writes where it must not.
"""

import pathlib

import tensorflow as tf

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
# Operations that reuse the memory of their first input.
_VIEWS = {"Identity", "Reshape", "Squeeze", "ExpandDims"}
# They write into an input that nothing else reads, or are computed together with what is before.
_IN_PLACE = {"AddV2", "BiasAdd", "FusedBatchNormV3", "Mul", "Relu", "Softmax", "Sub"}
_MOST_ELEMENTS = 2**31 - 1


def estimate(signature, size):
    """Estimates what one call of a SavedModel takes at its peak, besides the weights.

    The shapes of all tensors follow from the graph; each is held from its making to its last use.
    Scratch memory of operations is not in it, nor what is held longer as branches run in parallel.

    Args:
        signature: `serving_default` of a SavedModel that `export_saved_model` wrote.
        size: `(height, width)` of one image.

    Returns:
        int, bytes; infinite where a tensor has more elements than operations can count (2^31); None
        if this version of TensorFlow does not expose the shapes.
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
    shapes[0] = tf.TensorShape((1, *size, 3))
    with tf.Graph().as_default():
        try:
            graph = function_def_to_graph(network, input_shapes=shapes)
        except (TypeError, ValueError, AttributeError, KeyError):
            return None
    return _peak(graph)


def _find_network(graph):
    """Finds the function of the network below that of a signature.

    Returns:
        `(function, weights)`: a FunctionDef whose first argument is the images, and a dict from the
        names of the others to their variables' shapes; None if it is not there.
    """
    functions = {f.signature.name: f for f in graph.as_graph_def().library.function}
    calls = [o for o in graph.get_operations() if o.type in _CALLS]
    if not calls:
        return None
    call = max(calls, key=lambda operation: len(operation.inputs))
    # What a variable holds stands with the tensor of its handle, only in this outermost graph.
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

    That would come before what follows from the size of the images. Reading a variable becomes a
    placeholder of its shape.

    Args:
        network, weights: as `_find_network` gives them.
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
    """The largest sum of the tensors that are held at one time; in bytes."""
    operations = graph.get_operations()
    images = graph.inputs[0].op  # The network captures its weights behind its argument.
    base, sizes = {}, {}  # Of each tensor: the one whose memory it uses; of those: bytes.
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
    """Bytes of memory that this process may still take; None if the system does not report it."""
    limits = []
    try:
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    except (OSError, ValueError):
        pass
    # Containers have limits of their own.
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            room = int(pathlib.Path(limit).read_text()) - int(pathlib.Path(used).read_text())
        except (OSError, ValueError):  # Also "max": there is no limit.
            continue
        limits.append(max(room, 0))
    return min(limits) if limits else None
