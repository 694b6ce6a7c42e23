"""`kseg predict`: throughput and peak memory by image size, folders, and seams of windows.

The network is small (stride 4, random weights, 11 classes), so that reading, blending and writing
show. For pictures each line is one call of the command, with its start; `MB` is the peak of the
process, which for the smallest pictures is that of loading the network.
"""

import contextlib
import io
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import _measuring
import numpy as np

CLASSES = 11
WINDOWS = ["--sliding-window", "512", "512", "--blend", "gaussian"]
WAYS = {
    "one piece": [],
    "windows": WINDOWS,
    "tiles": [*WINDOWS, "--tiles"],
}
BLENDS = {
    "flat, overlap 0": ("flat", 0.0),
    "flat, 1/3": ("flat", 1 / 3),
    "flat, 1/2": ("flat", 0.5),
    "gaussian, 1/3": ("gaussian", 1 / 3),
    "gaussian, 1/2": ("gaussian", 0.5),
    "center, 1/2": ("center", 0.5),
}


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["2000x2000", "10000x10000"],
        metavar="HEIGHTxWIDTH",
        help="pictures; default: %(default)s",
    )
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all of them"
    )
    parser.add_argument(
        "--images", type=_measuring.positive, default=400, help="of the folder; default: 400"
    )
    parser.add_argument("--side", type=_measuring.positive, default=256, help="of these images")
    parser.add_argument(
        "--seams", type=_measuring.positive, default=1024, help="side of the picture with seams"
    )
    parser.add_argument(
        "--window", type=_measuring.positive, default=256, help="side of the windows with seams"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all of them"
    )
    toy = {"sizes": ["64x96"], "images": 3, "side": 32, "seams": 128, "window": 32}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints a table for each part."""
    for part in arguments.parts:
        PARTS[part](arguments)


def compare_sizes(arguments):
    """Prints throughput and memory of a picture of each size, in each way."""
    print(f"{'picture':<16}{'way':<12}{'MB':>9}{'seconds':>10}{'CPU s':>10}{'Mpixel/s':>10}")
    for size in arguments.sizes:
        for way in arguments.ways:
            found = _measuring.in_new_process(measure, arguments, size=size, way=way)
            if found["error"]:
                print(f"{size:<16}{way:<12}{found['error']}", flush=True)
                continue
            height, width = map(int, size.split("x"))
            cells = found["peak"], found["seconds"], found["cpu"]
            speed = height * width / 1e6 / found["seconds"]
            shown = "".join(
                f"{cell:>{w}.{d}f}"
                for cell, w, d in zip(cells, (9, 10, 10), (0, 1, 1), strict=True)
            )
            print(f"{size:<16}{way:<12}{shown}{speed:>10.2f}", flush=True)


def compare_folder(arguments):
    """Prints images a second of a folder, in batches and one at a time."""
    side = arguments.side
    print(
        f"{arguments.images} images of {side} x {side}{'seconds':>18}{'CPU s':>10}{'images/s':>10}"
    )
    for way in ("one at a time", "batches"):
        found = _measuring.in_new_process(measure, arguments, size=None, way=way)
        speed = arguments.images / found["seconds"]
        shown = f"{found['seconds']:>16.1f}{found['cpu']:>10.1f}{speed:>10.1f}"
        print(f"{way:<24}{shown}", flush=True)


def compare_seams(arguments):
    """Prints the differences to the labels in one piece, and the steps at seams."""
    print(f"{f'windows of {arguments.window}':<20}{'other labels':>14}{'steps at seams':>16}")
    for name, (share, step) in _measuring.in_new_process(
        measure, arguments, size=None, way="seams"
    ).items():
        print(f"{name:<20}{share:>12.3f} %{step:>16.2f}", flush=True)


PARTS = {"sizes": compare_sizes, "folder": compare_folder, "seams": compare_seams}


def measure(arguments):
    """Performs one measurement."""
    if arguments.way == "seams":
        return measure_seams(arguments)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_network(folder / "model")
        if arguments.size is None:
            return measure_folder(arguments, folder)
        return measure_picture(arguments, folder)


def measure_picture(arguments, folder):
    """Labels one TIFF file by the command."""
    height, width = map(int, arguments.size.split("x"))
    write_picture(folder / "a.tif", height, width)
    flags = ["--saved-model", folder / "model", "--input", folder / "a.tif"]
    flags += ["--output", folder / "out", "--no-overlay", *WAYS[arguments.way]]
    flags = list(map(str, flags))
    if arguments.toy:
        from kseg.commands import predict

        with contextlib.redirect_stdout(io.StringIO()):
            predict.main(flags)
        return {"error": None, "peak": 0, "seconds": 1, "cpu": 1}
    start = time.perf_counter()
    command = [sys.executable, "-m", "kseg.commands", "predict", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2][-160:]}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "error": None,
        "peak": used.ru_maxrss * unit / 1e6,
        "seconds": time.perf_counter() - start,
        "cpu": used.ru_utime + used.ru_stime,
    }


def measure_folder(arguments, folder):
    """Labels a folder of images with a loaded network, the shortest of three times."""
    import cv2

    import kseg
    from kseg.commands import predict_folder
    from kseg.serving.labeling import labeler

    (folder / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(arguments.images):
        small = rng.integers(0, 256, (16, 16, 3)).astype("uint8")
        picture = cv2.resize(small, (arguments.side, arguments.side))
        cv2.imwrite(str(folder / f"in/{i}.jpg"), picture)
    model = kseg.load(folder / "model")
    label, palette = labeler(model), model.classes.palette
    jobs = predict_folder.plan(folder / "in", folder / "out")

    def in_batches():
        arguments = jobs, len(jobs), lambda images: {"labels": label(images)}
        with contextlib.redirect_stdout(io.StringIO()):
            predict_folder.label_images(*arguments, palette, None, {}, folder / "out")

    def one_at_a_time():
        for job in jobs:
            image, _ = predict_folder.read(job.image)
            predict_folder.write(job.files, image, {"labels": label(image[None])[0]}, palette)

    results = []
    for _ in range(3):  # The first time compiles.
        start, cpu = time.perf_counter(), time.process_time()
        in_batches() if arguments.way == "batches" else one_at_a_time()
        results.append(since(start, cpu))
    return {key: min(found[key] for found in results) for key in ("seconds", "cpu")}


def measure_seams(arguments):
    """Compares windows with the picture in one piece.

    A step is the mean difference of the probabilities of neighboring pixels on both sides of a
    line where a window begins, ends or is nearest no more, divided by the same in one piece: 1 is
    no seam. The largest of the three kinds of lines counts.
    """
    import cv2
    import tensorflow as tf

    from kseg.evaluation.sliding_window import SlidingWindow, place_windows

    side = arguments.seams
    model = build_network((1, 2, 4, 8))
    small = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3)).astype("uint8")
    image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)[None]
    whole = tf.nn.softmax(model(image, training=False))[0].numpy()
    steps = np.abs(np.diff(whole, axis=1)).mean((0, 2))
    found = {}
    for name, (blend, overlap) in BLENDS.items():
        sliding = SlidingWindow(
            model, CLASSES, (arguments.window,) * 2, overlap=overlap, blend=blend
        )
        shares = tf.nn.softmax(sliding(image))[0].numpy()
        extent, starts = place_windows(side, arguments.window, overlap, blend)
        starts = starts.numpy()
        middles = (starts[1:] + starts[:-1] + int(extent)) // 2
        lines = starts[1:], starts[:-1] + int(extent), middles
        mine = np.abs(np.diff(shares, axis=1)).mean((0, 2))
        ratios = [(mine[at - 1] / steps[at - 1]).mean() if len(at) else 1.0 for at in lines]
        different = 100 * (shares.argmax(-1) != whole.argmax(-1)).mean()
        found[name] = [float(different), float(max(ratios))]
    return found


def build_network(rates=(1,)):
    """Builds a network of stride 4 with a 3 x 3 convolution for each dilation rate."""
    import keras

    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1)(image)
    x = keras.layers.Conv2D(16, 4, 4, padding="same", activation="relu", name="stem")(x)
    for i, rate in enumerate(rates):
        layer = keras.layers.Conv2D(16, 3, padding="same", dilation_rate=rate, name=f"conv{i}")
        x = keras.layers.Activation("relu")(layer(x))
    x = keras.layers.Conv2D(CLASSES, 1, dtype="float32", name="logits")(x)
    x = keras.layers.UpSampling2D(4, interpolation="bilinear")(x)
    return keras.Model(image, x)


def write_network(path):
    """Exports the network, whose logits are at the head's stride as those of any segmenter."""
    import keras

    from kseg import serving
    from kseg.classes import Classes

    model = build_network()
    model = keras.Model(model.input, {"logits": model.layers[-2].output})
    palette = [[20 * i, 255 - 20 * i, 100] for i in range(CLASSES)]
    serving.export_saved_model(
        model, path, Classes([f"class {i}" for i in range(CLASSES)], palette)
    )


def write_picture(path, height, width):
    """Writes a tiled TIFF file of blocks of color."""
    from pipelines import rasters

    rows = np.random.default_rng(0).integers(0, 256, (32, 64, 3)).astype("uint8")
    rows = rows.repeat(8, 0).repeat(8, 1)
    rows = np.tile(rows, (1, -(-width // rows.shape[1]), 1))[:, :width]
    with rasters.create_raster(path, (height, width), channels=3) as add:
        for first in range(0, height, len(rows)):
            add(rows[: min(len(rows), height - first)])


def since(start, cpu):
    """Returns the seconds and processor seconds since a start."""
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    from kseg.commands import console

    console.run(main)
