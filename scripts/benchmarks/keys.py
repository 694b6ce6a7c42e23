"""Processor time of the keys of `losses` and `data`, each against the plain config.

The first table is of whole training steps with one more loss, or another one in place of
cross-entropy; the second of images from records to batches with one more key. Plain and changed
configs alternate, and the shortest processor time of several rounds counts, which depends little on
other work of the machine.
"""

import functools
import json
import tempfile
import time

import _measuring
import _networks
import input_path

from kseg.commands import console

ALONE = {"cross_entropy": {"weight": 0}}
LOSSES = {
    "plain": {},
    "dice": {"dice": {}},
    "focal": {**ALONE, "focal": {}},
    "class weights": {"cross_entropy": {"class_weights": "median_frequency"}},
    "ohem": {**ALONE, "ohem": {}},
    "lovasz": {"lovasz": {}},
    "rmi": {**ALONE, "rmi": {}},
    "affinity": {"affinity": {}},
}
RARE = ["person", "sign"]
DATA = {
    "plain": {},
    "train_split": {"train_split": {"train": 1, "val": 0.5}},
    "rare_crops": {"rare_crops": {"classes": RARE}},
    "cutmix": {"augmentations": [{"name": "cutmix"}]},
    "copy_paste": {"augmentations": [{"name": "copy_paste", "classes": RARE}]},
    "RandomErasing": {
        "augmentations": [{"name": "keras.layers:RandomErasing", "arguments": {"factor": 0.5}}]
    },
}


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    _networks.add_arguments(parser, "hrnet_w18", (256, 512), 4)
    positive = _measuring.positive
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--images", type=positive, default=8, help="of the data, all different")
    parser.add_argument("--samples", type=positive, default=160, help="images that are timed")
    for name, known in (("losses", LOSSES), ("data", DATA)):
        parser.add_argument(
            f"--{name}",
            nargs="*",
            metavar="KEY",
            help=f"some of: {', '.join(known)}; none: no table",
        )
    toy = {
        **_networks.TOY_ARGUMENTS,
        "rounds": 1,
        "images": 2,
        "samples": 8,
        "losses": ["plain", "dice"],
        "data": ["plain", "cutmix"],
    }
    return _measuring.main(parser, argv, compare=compare, toy=toy)


def compare(arguments):
    """Prints both tables."""
    if arguments.losses != []:
        compare_losses(arguments, _measuring.choose(arguments.losses, LOSSES))
    if arguments.data != []:
        compare_data(arguments, _measuring.choose(arguments.data, DATA))


def compare_losses(arguments, names):
    """Prints the processor time of a training step with each loss."""
    import numpy as np

    from kseg.config import schema

    batch = _networks.street_batch(arguments)
    pixels = np.bincount(np.ravel(batch["label"]), minlength=256)[: arguments.classes].tolist()
    steps = {}
    for name in names:
        section = schema.Losses.model_validate(LOSSES[name])
        _, step = _networks.build_step(arguments, losses=section, training_pixels=pixels)
        float(step(batch)["loss"])
        steps[name] = functools.partial(_seconds, lambda step=step: float(step(batch)["loss"]))
    height, width = arguments.size
    title = (
        f"training step of {arguments.head} on {arguments.backbone}, {arguments.batch} x {height} "
        f"x {width}, {arguments.classes} classes, {arguments.precision}"
    )
    _show(title, "s", 1.0, _alternate(steps, arguments.rounds))


def compare_data(arguments, names):
    """Prints the processor time of an image with each key of `data`."""
    import tensorflow as tf

    from kseg import config
    from kseg.commands.data import ExperimentData
    from pipelines import records
    from pipelines.datasets import synthetic

    size, crop, noise, quality = next(
        iter((input_path.TOY_SETS if arguments.toy else input_path.SETS).values())
    )
    scenes = input_path.paint_scenes(16)
    examples = [
        input_path.photograph(number, scenes, size, noise, quality)
        for number in range(arguments.images)
    ]
    with tempfile.TemporaryDirectory() as folder:
        records.write(
            folder,
            "made_up",
            synthetic.find(train_images=1, val_images=1, size=input_path.SCENE).taxonomy,
            {"train": examples, "val": examples[: max(arguments.images // 2, 1)]},
            progress=False,
        )
        # The host must not run further ahead while it is timed.
        options = tf.data.Options()
        options.autotune.enabled = False
        calls = {}
        for name in names:
            plain = {"dataset": "made_up", "path": folder, "crop_size": list(crop), "batch_size": 8}
            overrides = [
                f"data.{key}={json.dumps(v)}" for key, v in {**plain, **DATA[name]}.items()
            ]
            experiment = config.load("quickstart", overrides)
            batches = ExperimentData.open(experiment).training_batches(0).with_options(options)
            calls[name] = functools.partial(input_path.dataset_seconds, arguments, batches, 8)
        found = _alternate(calls, arguments.rounds)
    title = f"an image of {size[0]} x {size[1]}, crop {crop[0]} x {crop[1]}"
    _show(title, "ms", 1e3, found)


def _seconds(call):
    """Measures the processor time of a call, in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


def _alternate(calls, rounds):
    """Takes measurements in turn; returns a dict from name to the least, in seconds."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(call())
    return {name: min(found) for name, found in times.items()}


def _show(title, unit, factor, times):
    """Prints a table."""
    print(f"{title}: {unit} of processor time")
    for name, seconds in times.items():
        first = next(iter(times))
        change = f"{100 * (seconds / times[first] - 1):+.1f} %" if name != first else ""
        print(f"{name:<16}{factor * seconds:>9.2f}{change:>12}", flush=True)


if __name__ == "__main__":
    console.run(main)
