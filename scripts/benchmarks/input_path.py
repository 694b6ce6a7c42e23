"""Processor time of an image from records to batches, against whole images through OpenCV.

The usual way decodes, resizes and jitters whole images; kseg's loader decodes the window of a crop.
The images are made up, of the sizes and file sizes of Cityscapes and ADE20K; `--data` measures the
loader on a prepared data set instead. Everything runs on one core, whose processor time hardly
depends on the other work of the machine. Times are the shortest of several rounds, in which the two
ways alternate. At the end the resident memory of a long run is printed.
"""

import functools
import math
import tempfile
import time

import _measuring

import pipelines
from kseg.commands import console

SETS = {
    "Cityscapes-like, 1024x2048, crop 512x1024": ((1024, 2048), (512, 1024), 4.0, 95),
    "ADE20K-like, 512x683, crop 512x512": ((512, 683), (512, 512), 2.0, 85),
}
TOY_SETS = {"toy, 96x160, crop 64x96": ((96, 160), (64, 96), 4.0, 90)}
SCENE = (256, 512)  # Height and width of a painted scene.


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    positive = _measuring.positive
    parser = _measuring.build_parser(__doc__)
    parser.add_argument("--images", type=positive, default=8, help="of each set, all different")
    parser.add_argument("--samples", type=positive, default=240, help="images that are timed")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument(
        "--steps", type=positive, default=10_000, help="over which memory is watched"
    )
    parser.add_argument("--data", metavar="FOLDER", help="a prepared data set, measured instead")
    parser.add_argument("--split", default="train", help="of --data")
    parser.add_argument(
        "--crop",
        type=positive,
        nargs=2,
        default=(512, 512),
        metavar=("HEIGHT", "WIDTH"),
        help="of --data",
    )
    parser.add_argument(
        "--scale", type=float, nargs=2, default=(0.5, 2.0), metavar=("LEAST", "MOST")
    )
    toy = {"images": 2, "samples": 16, "rounds": 1, "steps": 20, "crop": (64, 96)}
    return _measuring.main(parser, argv, compare=compare, toy=toy)


def compare(arguments):
    """Prints milliseconds by set and stage, and the memory of a long run."""
    if arguments.data:  # Checked before TensorFlow is imported.
        pipelines.read_manifest(arguments.data).split(arguments.split)
    limit_threads()
    if arguments.data:
        show_pipeline(arguments, arguments.data, arguments.split, arguments.crop)
        return
    scenes = paint_scenes(16)
    sets = TOY_SETS if arguments.toy else SETS
    with tempfile.TemporaryDirectory() as folder:
        for number, (title, (size, crop, noise, quality)) in enumerate(sets.items()):
            examples = [
                photograph(i, scenes, size, noise, quality) for i in range(arguments.images)
            ]
            compare_pipelines(arguments, f"{folder}/{number}", title, examples, crop)
        watch_memory(arguments, f"{folder}/memory", scenes)


def limit_threads():
    """Limits OpenCV and TensorFlow to one core; TensorFlow must not have started."""
    import cv2
    import tensorflow as tf

    cv2.setNumThreads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


class MadeExample:
    """A synthetic photograph as a PNG and as JPEGs, with its labels as a PNG.

    One JPEG has the restart markers of those that preparation writes, which let a loader decode
    bands; they make no difference to the usual way.

    Args:
        number: int.
        pixels: uint8 `(height, width, 3)`, BGR.
        labels: uint8 `(height, width)`.
        quality: int, of the JPEGs.

    Attributes:
        stored: `"jpeg"`, `"plain_jpeg"` or `"png"`, the file that `read` returns.
    """

    def __init__(self, number, pixels, labels, quality):
        import cv2

        from pipelines.encoding import encode_jpeg

        self.id = self.fingerprint = str(number)
        self.png, self.label = (cv2.imencode(".png", x)[1].tobytes() for x in (pixels, labels))
        self.jpeg = encode_jpeg(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), quality)
        plain = [cv2.IMWRITE_JPEG_QUALITY, quality]
        self.plain_jpeg = cv2.imencode(".jpg", pixels, plain)[1].tobytes()
        self.stored = "jpeg"

    def read(self):
        """Returns the bytes of image and labels."""
        return getattr(self, self.stored), self.label


def paint_scenes(count):
    """Paints synthetic scenes.

    Returns:
        list of `(pixels, labels)`: uint8 `(*SCENE, 3)` BGR, and uint8 `SCENE`.
    """
    import cv2
    import numpy as np

    from pipelines.datasets import synthetic

    found = synthetic.find(train_images=count, val_images=1, size=SCENE)
    examples = found.splits["train"]
    contents = [example.read() for example in examples]
    return [
        tuple(cv2.imdecode(np.frombuffer(x, "uint8"), cv2.IMREAD_UNCHANGED) for x in pair)
        for pair in contents
    ]


def photograph(number, scenes, size, noise, quality):
    """Creates a mosaic of scenes with sensor noise, which compresses like a photograph.

    Args:
        number: int, seed and id.
        scenes: from `paint_scenes`.
        size: `(height, width)`.
        noise: float, standard deviation in grey levels.
        quality: int, of the JPEGs.

    Returns:
        `MadeExample`.
    """
    import numpy as np

    rng = np.random.default_rng(number)
    rows, columns = (-(-length // part) for length, part in zip(size, SCENE, strict=True))
    chosen = rng.integers(0, len(scenes), (rows, columns))
    pixels, labels = (
        np.concatenate([np.concatenate([scenes[i][k] for i in row], 1) for row in chosen])
        for k in (0, 1)
    )
    pixels, labels = (x[: size[0], : size[1]] for x in (pixels, labels))
    noisy = np.clip(pixels + rng.normal(0, noise, pixels.shape), 0, 255).astype("uint8")
    return MadeExample(number, noisy, labels, quality)


def compare_pipelines(arguments, folder, title, examples, crop):
    """Prints the milliseconds of both ways for each stored format of one set."""
    from pipelines import records
    from pipelines.datasets import synthetic

    ways = {}
    for stored in ("jpeg", "plain_jpeg", "png"):
        for example in examples:
            example.stored = stored
        records.write(
            f"{folder}-{stored}", stored, synthetic.taxonomy(), {"train": examples}, progress=False
        )
        ways[f"usual, {stored}"] = functools.partial(usual_way, arguments, stored, examples, crop)
        ways[f"kseg, {stored}"] = functools.partial(
            loader_seconds, arguments, f"{folder}-{stored}", "train", crop
        )
    size = {
        k: sum(len(getattr(e, k)) for e in examples) / len(examples) / 1e3 for k in ("jpeg", "png")
    }
    print(
        f"{title}, scale 0.5 to 2, flip, jitter; JPEG {size['jpeg']:.0f} kB, PNG "
        f"{size['png']:.0f} kB"
    )
    print("ms of processor time an image, shortest of alternating rounds")
    jitter = measure_distortion(arguments, crop)
    times = dict.fromkeys(ways, math.inf)
    for _ in range(arguments.rounds):
        for way, measure in ways.items():
            times[way] = min(times[way], measure())
    for way, names in {
        "JPEG with bands": ("usual, jpeg", "kseg, jpeg"),
        "JPEG without bands": ("usual, plain_jpeg", "kseg, plain_jpeg"),
        "PNG originals": ("usual, png", "kseg, png"),
        "PNG, stored as JPEG": ("usual, png", "kseg, jpeg"),
    }.items():
        usual, ours = (1e3 * times[name] for name in names)
        print(
            f"{way:<22}usual {usual:7.2f}   kseg's host {ours:7.2f}   {usual / ours:5.2f} x   "
            f"{1e3 / ours:6.0f} images a second and core   with its jitter on a core as well "
            f"{usual / (ours + 1e3 * jitter):5.2f} x"
        )
    print("by stage, JPEG with bands:")
    show_stages(arguments, f"{folder}-jpeg", "train", crop)


def random_crop(image, labels, crop, scales, padding, rng):
    """Resizes by a random scale, pads, cuts a crop, and mirrors half of them, with OpenCV.

    Args:
        image: uint8 or uint16 array `(height, width, channels)`.
        labels: uint8 array `(height, width)`, 255 = ignored.
        crop: `(height, width)`.
        scales: `(lowest, highest)`.
        padding: numbers, the color beyond the image.
        rng: `numpy.random.Generator`.

    Returns:
        `(image, labels)`, views of `crop` rows and columns.
    """
    import cv2

    scale = rng.uniform(*scales)
    size = tuple(round(length * scale) for length in labels.shape[::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    missing = [max(length - have, 0) for length, have in zip(crop, labels.shape, strict=True)]
    if any(missing):
        border = (0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT)
        image = cv2.copyMakeBorder(image, *border, value=padding)
        labels = cv2.copyMakeBorder(labels, *border, value=255)
    top, left = (
        rng.integers(0, have - length + 1) for have, length in zip(labels.shape, crop, strict=True)
    )
    window = (slice(top, top + crop[0]), slice(left, left + crop[1]))
    image, labels = image[window], labels[window]
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return image, labels


def usual_way(arguments, stored, examples, crop):
    """Decodes, resizes, crops, mirrors and jitters whole images with OpenCV.

    Returns:
        float, seconds of processor time an image.
    """
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)

    def sample(example):
        content = np.frombuffer(getattr(example, stored), "uint8")
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        labels = cv2.imdecode(np.frombuffer(example.label, "uint8"), cv2.IMREAD_UNCHANGED)
        image, labels = random_crop(image, labels, crop, arguments.scale, (124, 116, 104), rng)
        # Colour jitter of bytes through tables and HSV, the fastest form in common use.
        brightness, contrast, saturation = rng.uniform(0.75, 1.25, 3)
        image = cv2.convertScaleAbs(
            np.ascontiguousarray(image),
            alpha=brightness * contrast,
            beta=(1 - contrast) * brightness * image[::8, ::8].mean(),
        )
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        values = np.arange(256)
        table = np.stack([values + rng.integers(-9, 10), values * saturation, values], -1)
        table[:, 0] %= 180
        hsv = cv2.LUT(hsv, table.clip(0, 255).astype("uint8")[None])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.ascontiguousarray(labels)

    start = time.process_time()
    for i in range(arguments.samples):
        sample(examples[i % len(examples)])
    return (time.process_time() - start) / arguments.samples


def loader_seconds(arguments, folder, split, crop):
    """Measures the processor seconds per image of kseg's loader."""
    from pipelines import loader

    dataset = loader.training_dataset(
        folder,
        split,
        batch_size=8,
        crop_size=crop,
        seed=0,
        scale_range=tuple(arguments.scale),
        num_parallel_calls=1,
    )
    return dataset_seconds(arguments, dataset, 8)


def dataset_seconds(arguments, dataset, batch_size):
    """Measures the processor seconds per element of a batch."""
    iterator = iter(dataset)
    for _ in range(3):
        next(iterator)
    # Prefetching stays as far ahead as it is now, so it does not change the cost of an image.
    start = time.process_time()
    count = max(arguments.samples // batch_size, 1)
    for _ in range(count):
        next(iterator)
    return (time.process_time() - start) / (count * batch_size)


def show_pipeline(arguments, folder, split, crop):
    """Prints the milliseconds of the loader on a prepared data set."""
    seconds = min(loader_seconds(arguments, folder, split, crop) for _ in range(arguments.rounds))
    print(f"{1e3 * seconds:.2f} ms of processor time an image, {1 / seconds:.0f} a second and core")
    show_stages(arguments, folder, split, crop)


def show_stages(arguments, folder, split, crop):
    """Prints the milliseconds that each stage adds to those before it."""
    import tensorflow as tf

    from pipelines import augment
    from pipelines.sample_stream import Order
    from pipelines.storage import open_records

    records = open_records(folder, split)
    order = Order(0, records.count)

    def window(example, numbers):
        size = tf.stack([example["height"], example["width"]])
        _, extent, shape = augment.draw_extent(numbers[0], size, crop, arguments.scale)
        return augment.draw_place(numbers[1:3], size, extent), extent, shape

    def image(example, numbers):
        first, extent, shape = window(example, numbers)
        ratio = records.window_ratio(example, extent, shape)
        return records.decode_window(
            example, first // ratio * ratio, extent // ratio * ratio, ratio
        )

    def labels(example, numbers):
        first, extent, _ = window(example, numbers)
        return records.decode_label_window(example, first, extent)

    def resized_image(example, numbers):
        return augment.resize_image(image(example, numbers), window(example, numbers)[2])

    def resized_labels(example, numbers):
        _, extent, shape = window(example, numbers)
        return augment.resize_labels(labels(example, numbers), extent - extent, extent, shape)

    stages = {
        "order, read, checksum, parse": lambda *a: (a[0]["id"],),
        "decode the image's window": lambda *a: (image(*a),),
        "resize it": lambda *a: (resized_image(*a),),
        "decode the labels' window": lambda *a: (resized_image(*a), labels(*a)),
        "resize them": lambda *a: (resized_image(*a), resized_labels(*a)),
    }

    def seconds_of(stage):
        def load(number):
            numbers = tf.random.stateless_uniform((3,), tf.stack([tf.constant(0, "int64"), number]))
            return stage(records.read(order(number)), numbers)

        dataset = tf.data.Dataset.range(2**40).map(load, num_parallel_calls=1)
        return dataset_seconds(arguments, dataset, 1)

    before = 0.0
    for name, stage in stages.items():
        seconds = min(seconds_of(stage) for _ in range(arguments.rounds))
        print(f"  {name:<32}{1e3 * (seconds - before):7.2f} ms")
        before = seconds
    whole = min(loader_seconds(arguments, folder, split, crop) for _ in range(arguments.rounds))
    print(f"  {'mirror, pad, batch':<32}{1e3 * (whole - before):7.2f} ms")


def measure_distortion(arguments, crop):
    """Times the color jitter of the training step on a core, against keras-cv's layer.

    Returns:
        float, seconds of processor time an image of kseg's layer.
    """
    import keras_cv
    import tensorflow as tf

    from kseg.layers.photometric import PhotometricDistortion

    strengths = {"brightness": 0.25, "contrast": 0.25, "saturation": 0.25, "hue": 0.05}
    layer = PhotometricDistortion(**strengths)
    peer = keras_cv.layers.RandomColorJitter(
        value_range=(0, 255),
        brightness_factor=0.25,
        contrast_factor=0.25,
        saturation_factor=(0.375, 0.625),
        hue_factor=0.05,
    )
    images = tf.random.uniform((8, *crop, 3), maxval=256, dtype="int32")
    images = tf.cast(images, "uint8")
    draws = tf.random.uniform((8, layer.NUM_DRAWS))
    times = {}
    for name, function in {
        "kseg": lambda: layer(images, draws),
        "keras-cv": lambda: peer(images, training=True),
    }.items():
        compiled = tf.function(function, autograph=False)
        compiled()
        times[name] = math.inf
        for _ in range(arguments.rounds):
            start = time.process_time()
            compiled()
            times[name] = min(times[name], (time.process_time() - start) / 8)
    shown = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times.items())
    print(f"color jitter in the training step, here on a core: {shown}")
    return times["kseg"]


def watch_memory(arguments, folder, scenes):
    """Prints the resident memory of this process over many steps on a small set."""
    import psutil

    from pipelines import loader, records
    from pipelines.datasets import synthetic

    examples = [photograph(i, scenes, (96, 128), 4.0, 90) for i in range(arguments.images)]
    records.write(folder, "small", synthetic.taxonomy(), {"train": examples}, progress=False)
    batches = iter(
        loader.training_dataset(
            folder, "train", batch_size=4, crop_size=(64, 64), seed=0, num_parallel_calls=1
        )
    )
    marks = [arguments.steps // 10, arguments.steps // 2, arguments.steps]
    resident = []
    for step in range(1, arguments.steps + 1):
        next(batches)
        if step in marks:
            resident.append(f"{psutil.Process().memory_info().rss / 1e6:.1f} MB at step {step}")
    print("resident memory: " + ", ".join(resident))


if __name__ == "__main__":
    console.run(main)
