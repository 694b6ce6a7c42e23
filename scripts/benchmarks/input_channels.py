"""Processor time of an image from records to batches: 16-bit four-channel data against 8-bit RGB.

The same synthetic photographs are prepared as 8-bit RGB (JPEG with bands, original JPEG, PNG) and,
with a fourth band and 12 bits in 16, as four channels of 16 bits; these are also read the usual
way: whole TIFFs through OpenCV, resized and cropped. Everything runs on one core, as in
`input_path.py`, with the same augmentation but no color jitter, which the network's device does.
"""

import functools
import math
import pathlib
import tempfile
import time

import _measuring
import input_path

from kseg.commands import console

SIZE, CROP = (1024, 1024), (512, 512)
TOY_SIZE, TOY_CROP = (96, 160), (64, 96)
NOISE, QUALITY = 4.0, 95


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    positive = _measuring.positive
    parser = _measuring.build_parser(__doc__)
    parser.add_argument("--images", type=positive, default=8, help="of each set, all different")
    parser.add_argument("--samples", type=positive, default=160, help="images that are timed")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument(
        "--scale", type=float, nargs=2, default=(0.5, 2.0), metavar=("LEAST", "MOST")
    )
    toy = {"images": 2, "samples": 16, "rounds": 1}
    return _measuring.main(parser, argv, compare=compare, toy=toy)


class Bands:
    """A photograph of four bands of 12 bits in 16, as a TIFF, with its labels as a PNG.

    Args:
        made: `input_path.MadeExample`, whose pixels are the first three bands.
    """

    def __init__(self, made):
        import cv2
        import numpy as np

        self.id = self.fingerprint = made.id
        self.label = made.label
        pixels = cv2.imdecode(np.frombuffer(made.png, "uint8"), cv2.IMREAD_UNCHANGED)
        pixels = pixels[..., [0, 1, 2, 1]].astype("uint16") * 16
        rng = np.random.default_rng(int(made.id))
        # The lower bits of a sensor are noise; the fourth band has its own.
        self.image = cv2.imencode(".tiff", pixels + rng.integers(0, 16, pixels.shape, "uint16"))[1]
        self.image = self.image.tobytes()

    def read(self):
        """Returns the bytes of image and labels."""
        return self.image, self.label


def compare(arguments):
    """Prints milliseconds and sizes by set."""
    input_path.limit_threads()
    from pipelines import records
    from pipelines.datasets import synthetic

    size, crop = (TOY_SIZE, TOY_CROP) if arguments.toy else (SIZE, CROP)
    scenes = input_path.paint_scenes(16)
    made = [input_path.photograph(i, scenes, size, NOISE, QUALITY) for i in range(arguments.images)]
    bands = [Bands(example) for example in made]
    ways, sizes, prepared = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("jpeg", "plain_jpeg", "png", "bands"):
            for example in made:
                example.stored = name
            examples, channels = (bands, 4) if name == "bands" else (made, None)
            target = f"{folder}/{name}"
            start = time.process_time()
            records.write(
                target,
                name,
                synthetic.taxonomy(),
                {"train": examples},
                channels=channels,
                workers=1,
                progress=False,
            )
            prepared[name] = (time.process_time() - start) / len(examples)
            files = pathlib.Path(target).glob("*.tfrecord")
            sizes[name] = sum(file.stat().st_size for file in files) / len(examples)
            ways[name] = functools.partial(
                input_path.loader_seconds, arguments, target, "train", crop
            )
        ways["usual"] = functools.partial(usual_way, arguments, bands, crop)
        sizes["usual"] = sum(len(x.image) + len(x.label) for x in bands) / len(bands)
        times = dict.fromkeys(ways, math.inf)
        for _ in range(arguments.rounds):
            for name, measure in ways.items():
                times[name] = min(times[name], measure())
    print(
        f"{size[0]}x{size[1]}, crop {crop[0]}x{crop[1]}, scale {arguments.scale[0]:g} to "
        f"{arguments.scale[1]:g}, flip; processor time, shortest of alternating rounds"
    )
    for name, title in {
        "jpeg": "RGB, 8 bits, JPEG with bands",
        "plain_jpeg": "RGB, 8 bits, original JPEG",
        "png": "RGB, 8 bits, PNG",
        "bands": "four channels, 16 bits",
        "usual": "the same, whole TIFFs, OpenCV",
    }.items():
        work = f"{1e3 * prepared[name]:8.1f} ms to prepare" if name in prepared else ""
        print(f"{title:<32}{1e3 * times[name]:8.2f} ms {sizes[name] / 1e6:8.2f} MB{work}")


def usual_way(arguments, examples, crop):
    """Decodes, resizes, crops and mirrors whole images with OpenCV.

    Returns:
        float, seconds of processor time an image.
    """
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)

    def sample(example):
        image, labels = (
            cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_UNCHANGED)
            for content in example.read()
        )
        image, labels = input_path.random_crop(
            image, labels, crop, arguments.scale, (0, 0, 0, 0), rng
        )
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    start = time.process_time()
    for i in range(arguments.samples):
        sample(examples[i % len(examples)])
    return (time.process_time() - start) / arguments.samples


if __name__ == "__main__":
    console.run(main)
