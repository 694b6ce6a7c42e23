"""Seconds of a forward pass in each runtime of an exported network, against PyTorch; on a CPU.

Each network is exported with random weights, in each format. A process for each runtime loads its
file; they are timed in turn, and the shortest time of each counts. With `--quantized` files of
int8 and float16, and a SavedModel of bfloat16, are timed with them; int8 is calibrated on random
images, which is enough for times, not for accuracy. With `--torch` the same network
in PyTorch is timed with them: contiguous, channels last, and traced.
"""

import functools
import os
import pathlib
import tempfile
import time

import _measuring
import _networks

from kseg.commands import console

WITH_PEER = ("deeplabv3_r101", "hrnet_w48")  # `_torch_peers.py` has these as well.
TOY_WITH_PEER = ("deeplabv3_toy",)
RUNTIMES = ("SavedModel", "SavedModel, PNG bytes", "LiteRT", "ONNX Runtime")
QUANTIZED = (
    *("LiteRT, float16", "LiteRT, int8", "ONNX Runtime, float16", "ONNX Runtime, int8"),
    "SavedModel, bfloat16",
)
TORCH_RUNTIMES = ("contiguous", "channels_last", "traced, channels_last")


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=WITH_PEER,
        help=f"of: {', '.join(_networks.NETWORKS)}; default: {' '.join(WITH_PEER)}, which "
        "PyTorch's side has as well",
    )
    parser.add_argument(
        "--size",
        type=_measuring.positive,
        nargs=2,
        default=(512, 1024),
        metavar=("HEIGHT", "WIDTH"),
    )
    parser.add_argument("--classes", type=_measuring.positive, default=19)
    parser.add_argument("--rounds", type=_measuring.positive, default=5)
    parser.add_argument("--threads", type=_measuring.positive, default=os.cpu_count())
    parser.add_argument("--quantized", action="store_true", help="also int8, float16, bfloat16")
    _measuring.add_torch_argument(parser)
    toy = {"only": TOY_WITH_PEER, "size": (64, 96), "classes": 5, "rounds": 1}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def networks(arguments):
    """Returns the networks to choose from."""
    return _networks.TOY_NETWORKS if arguments.toy else _networks.NETWORKS


def compare(arguments):
    """Prints a table for each network."""
    for name in _measuring.choose(arguments.only, networks(arguments)):
        with tempfile.TemporaryDirectory() as folder:
            compare_runtimes(arguments, name, folder)


def compare_runtimes(arguments, name, folder):
    """Exports a network, starts a process for each runtime, and measures them in turn."""
    height, width = arguments.size
    changes = {"name": name, "folder": folder}
    found = _measuring.in_new_process(measure, arguments, **changes, runtime="export")
    print(
        f"{name}, one image of {height} x {width}, {arguments.threads} threads, float32. "
        f"{found['weights']:.3f} M weights, {found['GFLOPs']:.0f} GFLOPs. Written in "
        + ", ".join(f"{key} {seconds:.0f} s" for key, seconds in found["seconds"].items())
    )
    commands = {
        runtime: _measuring.command(measure, arguments, **changes, runtime=runtime)
        for runtime in (*RUNTIMES, *(QUANTIZED if arguments.quantized else ()))
    }
    if arguments.torch and name in (*WITH_PEER, *TOY_WITH_PEER):
        for kind in TORCH_RUNTIMES:
            commands[f"PyTorch, {kind}"] = _measuring.torch_command(
                *(arguments.torch, "segmenter", name, height, width),
                *(arguments.classes, arguments.threads, kind),
            )
    processes = {}
    try:
        for runtime, command in commands.items():
            processes[runtime] = _measuring.TimedProcess(command)
        for _ in range(arguments.rounds):
            for process in processes.values():
                process.measure()
        show(processes)
    finally:
        for process in processes.values():
            process.close()


def show(processes):
    """Prints a table; ratios are to the fastest PyTorch."""
    best = {runtime: process.best() for runtime, process in processes.items()}
    peers = [times for runtime, times in best.items() if runtime.startswith("PyTorch")]
    least = [min(times) for times in zip(*peers, strict=True)] or [float("nan")] * 2
    columns = ("ready s", "seconds", "ratio", "processor s", "ratio")
    print(f"{'':<32}" + "".join(f"{column:>13}" for column in columns) + "    M weights")
    for runtime, process in processes.items():
        cells = [process.found["ready"]]
        for seconds, peer in zip(best[runtime], least, strict=True):
            cells += [seconds, seconds / peer]
        weights = process.found.get("weights")
        weights = "" if weights is None else f"{weights:13.3f}"
        print(f"{runtime:<32}" + "".join(f"{cell:>13.2f}" for cell in cells) + weights, flush=True)


def measure(arguments):
    """Exports a network, or times one runtime on request."""
    export = arguments.runtime == "export"
    return export_network(arguments) if export else time_runtime(arguments)


def export_network(arguments):
    """Writes a network of random weights in all formats; returns its size and the seconds taken."""
    import numpy as np

    from kseg import serving
    from kseg.analysis.complexity import count_parameters
    from kseg.classes import Classes
    from kseg.segmenters import inference_model
    from kseg.serving.litert import export_tflite
    from kseg.serving.onnx import export_onnx

    segmenter = build(arguments)
    numbers = range(arguments.classes)
    classes = Classes([f"class {i}" for i in numbers], [[i, i, i] for i in numbers])
    folder, size = pathlib.Path(arguments.folder), tuple(arguments.size)
    seconds, writers = (
        {},
        {
            "SavedModel": lambda: serving.export_saved_model(segmenter, folder / "model", classes),
            "LiteRT": lambda: export_tflite(segmenter, folder / "model.tflite", classes, size),
            "ONNX": lambda: export_onnx(
                segmenter, folder / "model.onnx", classes, size, overwrite=True
            ),
        },
    )
    if arguments.quantized:
        images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype("uint8")
        for suffix, write in {".tflite": export_tflite, ".onnx": export_onnx}.items():
            for kind in ("float16", "int8"):
                writers[f"{suffix[1:]} {kind}"] = functools.partial(
                    *(write, segmenter, folder / f"{kind}{suffix}", classes, size),
                    quantize=kind,
                    calibration=list(images),
                    overwrite=True,
                )
        writers["bfloat16"] = lambda: serving.export_saved_model(
            build(arguments, "mixed_bfloat16"), folder / "bfloat16", classes
        )
    for runtime, write in writers.items():
        start = time.perf_counter()
        write()
        seconds[runtime] = time.perf_counter() - start
    model = inference_model(segmenter)
    return {
        "weights": count_parameters(model) / 1e6,
        "GFLOPs": _networks.forward_gflops(model, size, "uint8"),
        "seconds": seconds,
    }


def build(arguments, precision="float32"):
    """Builds the network of the arguments, with random weights."""
    import keras

    from kseg.segmenters import build_segmenter

    network = networks(arguments)[arguments.name]
    keras.config.set_dtype_policy(precision)
    segmenter = build_segmenter(
        network["backbone"],
        network["head"],
        arguments.classes,
        backbone_arguments=network["backbone_arguments"],
        head_arguments=network["head_arguments"],
    )
    keras.config.set_dtype_policy("float32")
    return segmenter


def time_runtime(arguments):
    """Loads a file of `export_network` as a user does, and times it on request."""
    import numpy as np

    path = pathlib.Path(arguments.folder) / "model"
    images = np.random.default_rng(0).integers(0, 256, (1, *arguments.size, 3)).astype("uint8")

    def saved_model(folder=path):
        import tensorflow as tf

        limit_threads(arguments.threads)
        signature = tf.saved_model.load(str(folder)).signatures["serving_float"]
        floats = tf.constant(images, "float32")
        return lambda: signature(images=floats)["logits"].numpy()

    def saved_model_of_bytes():
        import tensorflow as tf

        limit_threads(arguments.threads)
        signature = tf.saved_model.load(str(path)).signatures["serving_bytes"]
        encoded = tf.io.encode_png(images[0])
        return lambda: signature(encoded=encoded)["classes"].numpy()

    def portable_file(ending, path=path):
        from kseg.serving import portable

        model = portable.load(path.with_suffix(ending), threads=arguments.threads)
        return lambda: model(images)

    load = {
        "SavedModel": saved_model,
        "SavedModel, PNG bytes": saved_model_of_bytes,
        "LiteRT": lambda: portable_file(".tflite"),
        "ONNX Runtime": lambda: portable_file(".onnx"),
        "SavedModel, bfloat16": lambda: saved_model(path.with_name("bfloat16")),
    }
    for kind in ("float16", "int8"):
        other = path.with_name(kind)
        load[f"LiteRT, {kind}"] = functools.partial(portable_file, ".tflite", other)
        load[f"ONNX Runtime, {kind}"] = functools.partial(portable_file, ".onnx", other)
    _measuring.time_on_request(lambda: (load[arguments.runtime](), {}))


def limit_threads(threads):
    """Limits TensorFlow to a number of threads; it must not have started."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


if __name__ == "__main__":
    console.run(main)
