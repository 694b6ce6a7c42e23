"""Forward time of one network in each runtime that it can be exported to, for `benchmark.py`."""

import json
import pathlib
import sys
import tempfile
import time

from kseg.analysis import measuring

SERVED = ("deeplabv3_r101", "hrnet_w48")  # What _torch_peers.py has as well.
RUNTIMES = ("SavedModel", "SavedModel, PNG bytes", "LiteRT", "ONNX Runtime")
TORCH_RUNTIMES = ("contiguous", "channels_last", "traced, channels_last")
SCRIPTS = pathlib.Path(__file__).parent


def compare_runtimes(arguments, name):
    """Exports a network, starts a process for each runtime, and lets them take turns."""
    height, width = arguments.size
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, SCRIPTS / "benchmark.py", "serving", "--only", name]
        ours += ["--size", height, width, "--classes", arguments.classes]
        ours += ["--threads", arguments.threads, "--folder", folder, "--variant"]
        found = measuring.in_new_process(*ours[1:], "export")
        print(
            f"{name}, one image of {height} x {width}, {arguments.threads} threads, float32. "
            f"{found['weights']:.3f} M weights, {found['GFLOPs']:.0f} GFLOPs. Written in "
            + ", ".join(f"{key} {seconds:.0f} s" for key, seconds in found["seconds"].items())
        )
        commands = {runtime: [*ours, runtime] for runtime in RUNTIMES}
        if arguments.torch and name in SERVED:
            theirs = [arguments.torch, SCRIPTS / "_torch_peers.py", "segmenter", name]
            theirs += [height, width, arguments.classes, arguments.threads]
            commands |= {f"PyTorch, {kind}": [*theirs, kind] for kind in TORCH_RUNTIMES}
        processes = {}
        try:
            for runtime, command in commands.items():
                processes[runtime] = measuring.TimedProcess(command)
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


def export_network(arguments, head, backbone, backbone_arguments, head_arguments):
    """Writes a network of random weights in all formats."""
    import tensorflow as tf

    from kseg import serving
    from kseg.analysis.complexity import count_flops, count_parameters
    from kseg.runs import Classes
    from kseg.segmenters import build_segmenter, inference_model
    from kseg.serving.litert import export_tflite
    from kseg.serving.onnx import export_onnx

    segmenter = build_segmenter(
        backbone,
        head,
        arguments.classes,
        backbone_arguments=backbone_arguments,
        head_arguments=head_arguments,
    )
    numbers = range(arguments.classes)
    classes = Classes([f"class {i}" for i in numbers], [[i, i, i] for i in numbers])
    folder, size = pathlib.Path(arguments.folder), tuple(arguments.size)
    seconds = {}
    for runtime, write in {
        "SavedModel": lambda: serving.export_saved_model(segmenter, folder / "model", classes),
        "LiteRT": lambda: export_tflite(segmenter, folder / "model.tflite", classes, size),
        "ONNX": lambda: export_onnx(
            segmenter, folder / "model.onnx", classes, size, overwrite=True
        ),
    }.items():
        start = time.perf_counter()
        write()
        seconds[runtime] = time.perf_counter() - start
    model = inference_model(segmenter)
    flops = count_flops(
        lambda image: model(image, training=False), tf.TensorSpec((1, *size, 3), "uint8")
    )
    weights = count_parameters(model) / 1e6
    print(json.dumps({"weights": weights, "GFLOPs": flops / 1e9, "seconds": seconds}))


def time_runtime(arguments):
    """Loads what `export_network` wrote, as a user does, and times it on request."""
    import numpy as np

    path = pathlib.Path(arguments.folder) / "model"
    images = np.random.default_rng(0).integers(0, 256, (1, *arguments.size, 3)).astype("uint8")

    def limit_threads():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)

    def saved_model():
        import tensorflow as tf

        limit_threads()
        signature = tf.saved_model.load(str(path)).signatures["serving_float"]
        floats = tf.constant(images, "float32")
        return lambda: signature(images=floats)["logits"].numpy()

    def saved_model_of_bytes():
        import tensorflow as tf

        limit_threads()
        signature = tf.saved_model.load(str(path)).signatures["serving_bytes"]
        encoded = tf.io.encode_png(images[0])
        return lambda: signature(encoded=encoded)["classes"].numpy()

    def portable_file(ending):
        from kseg.serving import portable

        model = portable.load(path.with_suffix(ending), threads=arguments.threads)
        return lambda: model(images)

    load = {
        "SavedModel": saved_model,
        "SavedModel, PNG bytes": saved_model_of_bytes,
        "LiteRT": lambda: portable_file(".tflite"),
        "ONNX Runtime": lambda: portable_file(".onnx"),
    }
    measuring.time_on_request(lambda: (load[arguments.variant](), {}))
