"""Writes a config for prepared data and this machine, and explains each choice in one line.

    kseg init data/mine                          writes configs/mine.json (or mine.json)
    kseg init data/mine --minutes 30             steps that fit into half an hour here

Crop, network, batch, class weights and steps follow from the number and sizes of the images, the
pixels of each class, the device, and the memory and time of training steps, which are measured.
"""

import dataclasses
import json
import pathlib
import re
import statistics
import subprocess

from kseg.commands import checking, console

_SIZES = 64  # Number of images whose sizes are read if they differ.
_PROBES = (2, 4)  # Batch sizes that are measured.
_SHARE = 0.6  # Share of the available memory for a training step.
_MOST = {"CPU": 8, "GPU": 16}  # Largest number of images in a batch.
_PIXELS = {"CPU": 240 * 320, "GPU": 512 * 512}  # Largest number of pixels in a crop.
_EVALUATION = 0.15  # Share of `minutes` for start, evaluations and export.
_IMBALANCE = 5  # Classes are weighted if the largest share of pixels is this times the median.


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and the way to train it.

    Attributes:
        model: section `model` of a config.
        optimizer, schedule: sections of a config, without warm-up.
        files: names of files with its pretrained weights.
        hub: their source on the Hugging Face hub, or None.
        whole: bool, whether these are weights of the whole network or (False) the backbone only.
        epochs: int, number of passes over the images.
        least_steps: int, smallest number of steps.
    """

    model: dict
    optimizer: dict
    schedule: dict
    files: tuple = ()
    hub: str | None = None
    whole: bool = False
    epochs: int = 40
    least_steps: int = 400


def _lite(size, file):
    return Network(
        {
            "backbone": {"name": f"efficientnet_lite{size}"},
            "head": {"name": "upernet", "channels": 64, "aux_channels": 32},
        },
        {"name": "adamw", "learning_rate": 0.002, "learning_rate_factors": {"backbone": 0.2}},
        {"name": "poly"},
        (file,),
        f"hf://timm/tf_efficientnet_lite{size}.in1k",
    )


NETWORKS = {
    "lite0": _lite(0, "efficientnet-lite0-57934424.pth"),
    "lite2": _lite(2, "efficientnet-lite2-9656183e.pth"),
    # The settings of configs/finetune_upernet_swin_t.json.
    "swin_t": Network(
        {"backbone": {"name": "swin_t", "drop_path_rate": 0.3}, "head": {"name": "upernet"}},
        {"name": "adamw", "learning_rate": 6e-5, "weight_decay": 0.01},
        {"name": "linear"},
        (
            "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_"
            "20210531_112542-e380ad3e.pth",
        ),
        "hf://openmmlab/upernet-swin-tiny@dc8e8c94669c6f14d5cc4c21a141daebd2280d59",
        whole=True,
    ),
    "scratch": Network(
        {
            "backbone": {"name": "hrnet_w18_small"},
            "head": {"name": "ocr", "channels": 64, "key_channels": 32},
        },
        {"name": "sgd", "learning_rate": 0.05, "weight_decay": 1e-4},
        {"name": "poly"},
        epochs=100,
        least_steps=600,
    ),
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """Properties of data and machine that the choices follow from.

    Attributes:
        train_split, eval_split: str.
        images: int, of the training split.
        size: `(height, width)`, medians over its images, pixels.
        shares: list of float, share of the labeled pixels of each class that occurs.
        device: `"CPU"` or `"GPU"`.
        bfloat16: bool, whether the device computes fast in bfloat16.
        memory: int, bytes available to a training, or None if unknown.
    """

    train_split: str
    eval_split: str
    images: int
    size: tuple
    shares: list
    device: str
    bfloat16: bool
    memory: int | None


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("data", metavar="DATA", help="prepared data, such as data/mine")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="config to write; default: named after DATA, in configs/ if there is such a folder",
    )
    parser.add_argument(
        "--weights",
        default="weights",
        metavar="FOLDER",
        help="folder with pretrained weights that were downloaded; default: weights",
    )
    parser.add_argument(
        "--minutes",
        type=console.number(float, "above 0", lambda value: 0 < value < float("inf")),
        help="time that training may take here; default: as many steps as the images call for",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = vars(parse_arguments(arguments))
    init(options.pop("data"), **options)
    return 0


def init(data, output=None, *, weights="weights", minutes=None, overwrite=False):
    """Writes a config for prepared data and this machine, and explains each choice in one line.

    Args:
        data: folder of prepared data.
        output: file to write; None: named after `data`, in `configs/` if there is such a folder.
        weights: folder with pretrained weights that were downloaded; may be missing.
        minutes: float > 0, time that training may take here; None: as many steps as the images
            call for.
        overwrite: bool, whether to replace an existing file.

    Returns:
        `pathlib.Path` of the config. The choices are in its `$comment`, too.

    Raises:
        UserError: if the data have no second split to evaluate, the file exists, or not even a
            batch of 1 fits into memory.
        pipelines.DataError: if the folder holds no prepared data.
    """
    for name, value in (("data", data), ("weights", weights)):
        checking.check_path(name, value)
    checking.check_path("output", output, optional=True)
    checking.check_numbers("minutes", None if minutes is None else [minutes], "a number above 0")
    if minutes is not None and not 0 < minutes < float("inf"):
        checking.refuse(f"--minutes must be a number above 0. Received: {minutes}")
    import pipelines
    from kseg import config as config_module
    from kseg import files
    from kseg.errors import UserError, option

    manifest = pipelines.read_manifest(str(data))
    train_split, eval_split = _splits(manifest)
    output = pathlib.Path(output) if output else _output(data)
    if output.suffix != ".json":
        raise UserError(f"{option('output')} must end in .json. Received: {output}")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already. Use {option('overwrite', True)} to replace it")
    files.check_file(output)
    facts = _facts(manifest, str(data), train_split, eval_split)
    network, source, chosen = choose_network(facts, weights)
    values, comments = choose(facts, network, source)
    comments = [*chosen, *comments]
    values["data"] = {"dataset": manifest.dataset, "path": str(data), **values["data"]}
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", output.stem).lstrip("._-") or "mine"
    values = {"name": name, **values}
    measured = _measure(values)
    more, reasons = choose_batch_and_steps(facts, network, measured, minutes)
    for section, keys in more.items():
        values.setdefault(section, {}).update(keys)
    comments += reasons
    config_module.parse(json.loads(json.dumps(values)), source=str(output))
    head = {"$comment": comments}
    if (output.parent / "schema.json").is_file():
        head = {"$schema": "schema.json", **head}
    files.write_text(output, _layout({**head, **values}))
    print("\n".join(comments))
    print(f"config: {output}. Train with it: kseg train --config {output}", flush=True)
    return output


def choose_network(facts, weights):
    """Chooses the network by the device and the number of images, and finds its weights.

    Args:
        facts: `Facts`.
        weights: folder with downloaded weights.

    Returns:
        `(network, source, comments)`: a value of `NETWORKS`, the source of its weights or None, and
        one line for each choice.
    """
    if facts.device == "GPU" and (facts.memory or 0) >= 8e9:
        key, why = "swin_t", "the device is a GPU of 8 GB or more"
    elif facts.images >= 100:
        key, why = "lite2", f"small enough for a {facts.device}, and {facts.images} training images"
    else:
        key, why = "lite0", f"only {facts.images} training images"
    network = NETWORKS[key]
    source, problem = _find_weights(network, pathlib.Path(weights))
    backbone = network.model["backbone"]["name"]
    if source:
        return (
            network,
            source,
            [
                f"network: {network.model['head']['name']} on {backbone}: {why}",
                f"weights: {source}: "
                + (
                    "it segments already" if network.whole else "pretrained weights save most steps"
                ),
            ],
        )
    network = NETWORKS["scratch"]
    return (
        network,
        None,
        [
            f"network: {network.model['head']['name']} on {network.model['backbone']['name']} from "
            f"random weights: those of {backbone} are not available ({problem})"
        ],
    )


def _find_weights(network, folder):
    """Finds a network's weights in a folder, or on the hub; returns `(source, problem)`."""
    from kseg.errors import UserError
    from kseg.weights import hub

    for name in network.files:
        if (folder / name).is_file():
            return str(folder / name), None
    try:
        hub.fetch_from_hugging_face(network.hub)
    except UserError as error:
        return None, f"{error}; or put {' or '.join(network.files)} into {folder}/"
    return network.hub, None


def choose(facts, network, source):
    """Chooses everything except batch size and steps.

    Args:
        facts: `Facts`.
        network: `Network`.
        source: str or None, source of the weights.

    Returns:
        `(values, comments)`: dict of sections of a config, and one line for each choice.
    """
    crop, comment = choose_crop(facts.size, _PIXELS[facts.device])
    comments = [comment]
    ratio = min(1.0, max(crop[0] / facts.size[0], crop[1] / facts.size[1]))
    smallest = round(min(0.75, max(0.5, ratio)), 2)
    scale_range = [smallest, 1.75]
    comments.append(
        f"scales: {smallest:g} to 1.75 times the images, around the size 1 at which they will be "
        f"labeled: a crop shows up to {min(1, ratio / smallest):.0%} of a side"
    )
    losses = {}
    if weighted := _imbalance(facts.shares):
        losses = {"cross_entropy": {"class_weights": "sqrt_median_frequency"}}
        comments.append(
            f"class weights: square root of median frequency: the most frequent class has "
            f"{max(facts.shares):.0%} of the pixels, {weighted:.0f} times the median"
        )
    else:
        comments.append("class weights: none: no class has far more pixels than the median one")
    model = dict(network.model)
    if source and network.whole:
        model = {"weights": source, **model}
    elif source:
        model["backbone"] = {**model["backbone"], "weights": source}
    values = {
        "model": model,
        "losses": losses,
        "data": {
            "crop_size": crop,
            "batch_size": _PROBES[0],
            "scale_range": scale_range,
            "train_split": facts.train_split,
            "eval_split": facts.eval_split,
        },
        "optimizer": network.optimizer,
        "schedule": network.schedule,
        "train": {"steps": network.least_steps},
    }
    size = 4 * facts.images * facts.size[0] * facts.size[1]  # RGB and labels.
    if facts.device == "CPU" and facts.memory and size < facts.memory / 8:
        values["data"]["cache"] = "memory"
        comments.append(f"cache: memory: the decoded images take {size / 1e6:.0f} MB")
    if facts.bfloat16:
        values["train"]["precision"] = "mixed_bfloat16"
        comments.append("precision: mixed_bfloat16, which this GPU computes faster")
    comments.append(
        "contrast: none, the cheapest baseline; compare methods by adding one, such as "
        '"contrast": [{"name": "multi_scale"}]'
    )
    return values, comments


def choose_crop(size, pixels):
    """Chooses a crop with the shape of the images.

    Args:
        size: `(height, width)` of the images.
        pixels: int, most pixels of the crop.

    Returns:
        `([height, width], comment)`, multiples of 16 where the image has as many pixels.
    """
    height, width = size
    factor = min(1.0, (pixels / (height * width)) ** 0.5)
    # An elongated image would give a crop too thin to show anything.
    sides = [max(side * factor, min(side, 64)) for side in (height, width)]
    crop = [max(round(side / 16) * 16, 16) for side in sides]
    crop = [
        c if c <= side else max(side // 16 * 16, side if side < 16 else 16)
        for c, side in zip(crop, size, strict=True)
    ]
    reason = (
        "the whole image"
        if crop == [height, width]
        else f"the shape of the images ({height} x {width}), {crop[0] * crop[1]:,} pixels"
    )
    return crop, f"crop: {crop[0]} x {crop[1]}: {reason}"


def _imbalance(shares):
    """Returns the ratio of the largest share to the median one, or None if it is small."""
    ratio = max(shares) / statistics.median(shares)
    return ratio if ratio >= _IMBALANCE else None


def choose_batch_and_steps(facts, network, measured, minutes):
    """Chooses the batch size by memory, and the steps by number of images or time.

    Args:
        facts: `Facts`.
        network: `Network`.
        measured: dict from a batch size to `{"peak_bytes", "seconds"}` of a training step; empty
            if nothing could be measured.
        minutes: float or None.

    Returns:
        `(sections, comments)`: keys of the config by section, and one line for each choice.

    Raises:
        UserError: if not even a batch of 1 fits into memory, or `minutes` is given and nothing was
            measured.
    """
    from kseg.errors import UserError, option

    batch, comment = _batch(facts, measured)
    passes = -(-network.epochs * facts.images // batch)
    steps = min(max(passes, network.least_steps), 40_000)
    reason = f"{steps * batch / facts.images:.0f} passes over {facts.images} images"
    if minutes is not None:
        if not measured:
            raise UserError(
                f"{option('minutes')} needs measured training steps. Install psutil "
                "(pip install 'kseg[analysis]'), or leave it out"
            )
        seconds = step_seconds(measured, batch)
        fit = int((1 - _EVALUATION) * 60 * minutes / seconds)
        if fit < 10:
            raise UserError(
                f"{option('minutes')} must leave time for 10 steps of {seconds:.1f} s. Received: "
                f"{minutes:g}"
            )
        steps = fit
        reason = (
            f"{minutes:g} minutes, of which {_EVALUATION:.0%} for evaluation, at {seconds:.2f} s a "
            f"step; {steps * batch / facts.images:.1f} passes over {facts.images} images"
        )
    elif measured:
        total = steps * step_seconds(measured, batch)
        reason += f"; about {total / 60:.0f} minutes here"
    every = max(-(-steps // 3), 1)
    return {
        "data": {"batch_size": batch},
        "schedule": {"warmup_steps": min(steps // 20, 1500)},
        "train": {
            "steps": steps,
            "evaluate_every": every,
            "checkpoint_every": every,
            "log_every": min(20, every),
        },
    }, [comment, f"steps: {steps}: {reason}"]


def _batch(facts, measured):
    most = _MOST[facts.device]
    few = max(facts.images // 4, 1)
    if not measured:
        batch = min(most, 2 ** (few.bit_length() - 1))
        return batch, f"batch: {batch}: memory was not measured, which needs psutil"
    (small, low), (large, high) = sorted((n, m["peak_bytes"]) for n, m in measured.items())
    each = max((high - low) / (large - small), 1)
    base = max(low - small * each, 0)
    batch = most
    budget = _SHARE * facts.memory if facts.memory else None
    while batch > 1 and (batch > few or (budget and base + batch * each > budget)):
        batch //= 2
    need = (base + batch * each) / 1e9
    have = f" of {facts.memory / 1e9:.1f} GB available" if facts.memory else ""
    if budget and base + batch * each > facts.memory:
        from kseg.errors import UserError

        raise UserError(
            f"A training step of one image takes {need:.1f} GB{have}. Free memory, or prepare "
            "smaller images"
        )
    return batch, (
        f"batch: {batch}: a step takes {need:.1f} GB{have} (measured with {small} and {large} "
        f"images); at most {most} on a {facts.device}, and a quarter of the images"
    )


def step_seconds(measured, batch):
    """Estimates the seconds of a training step, in proportion to the largest measured batch."""
    largest = max(measured)
    return measured[largest]["seconds"] * batch / largest


def _splits(manifest):
    """Chooses the splits to train and to evaluate on."""
    from kseg.errors import UserError

    names = list(manifest.splits)
    train = "train" if "train" in names else None
    known = [n for n in ("val", "valid", "validation", "dev", "test") if n in names and n != train]
    if train is None or not known:
        raise UserError(
            "The data must have a split train, and one such as val to evaluate on. "
            f"{manifest.folder} has {', '.join(names)}. Prepare it again with `kseg prepare`, "
            "--split train=0.8 --split val=0.2"
        )
    return train, known[0]


def _output(data):
    name = pathlib.Path(str(data)).resolve().name
    folder = pathlib.Path("configs")
    return (folder if folder.is_dir() else pathlib.Path()) / f"{name}.json"


def _facts(manifest, folder, train_split, eval_split):
    """Collects `Facts`; image sizes and devices are read in a new process."""
    from kseg.errors import UserError
    from kseg.progress import Progress

    split = manifest.split(train_split)
    pixels = [count for count in split.pixels[:-1] if count]
    if not pixels:
        raise UserError(f"Split {train_split!r} of {folder} has no labeled pixel")
    with Progress("looking at the device and the images"):
        work = {"do": "look", "folder": folder, "split": train_split}
        found = _in_new_process({**work, "count": 0 if split.image_size else _SIZES})
    sizes = [split.image_size] if split.image_size else found["sizes"]
    size = tuple(int(statistics.median(side)) for side in zip(*sizes, strict=True))
    shares = [count / sum(pixels) for count in pixels]
    return Facts(
        train_split,
        eval_split,
        split.num_images,
        size,
        shares,
        found["device"],
        found["bfloat16"],
        found["memory"],
    )


def _measure(values):
    """Measures training steps of two batch sizes, each in a new process.

    Returns:
        dict from the batch size to `{"peak_bytes", "seconds"}`; empty without psutil.
    """
    import importlib.util

    from kseg.progress import Progress

    if importlib.util.find_spec("psutil") is None:
        return {}
    measured = {}
    with Progress("measuring training steps", len(_PROBES), unit="batches") as progress:
        for batch in _PROBES:
            config = {**values, "data": {**values["data"], "batch_size": batch, "cache": None}}
            measured[batch] = _in_new_process({"do": "step", "config": config})
            progress.advance()
    return measured


def _in_new_process(work):
    from kseg.analysis.measuring import in_new_process
    from kseg.errors import UserError

    try:
        return in_new_process("-m", "kseg.commands.init", json.dumps(work))
    except subprocess.CalledProcessError as error:
        raise UserError(
            "Looking at the images or measuring a training step failed, see above (exit code "
            f"{error.returncode}). If memory was short, free some, or prepare smaller images"
        ) from None


def _layout(values):
    """Formats a config with one line for each key and short sections on one line."""
    lines = []
    for key, value in values.items():
        text = json.dumps(value)
        if len(text) > 90 and isinstance(value, dict):
            inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            text = "{\n" + inner + "\n  }"
        elif isinstance(value, list) and len(text) > 90:
            text = "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def look(folder, split, count):
    """Describes the device and reads image sizes; for a separate process.

    Args:
        folder: str, prepared data.
        split: str.
        count: int, number of images whose sizes are read.

    Returns:
        dict with `device`, `bfloat16`, `memory` (bytes or None) and `sizes`.
    """
    import tensorflow as tf

    from kseg.serving import memory
    from pipelines import loader

    gpus = tf.config.list_physical_devices("GPU")
    about = {"device": "CPU", "bfloat16": False, "memory": memory.available()}
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        tf.config.list_logical_devices("GPU")  # TensorFlow claims what it may use.
        limit = _gpu_memory()
        about = {
            "device": "GPU",
            "bfloat16": details.get("compute_capability", (0, 0)) >= (8, 0),
            "memory": limit,
        }
    images = loader.evaluation_dataset(folder, split).take(count)
    sizes = [list(map(int, item["image"].shape[1:3])) for item in images]
    return {**about, "sizes": sizes}


def _gpu_memory():
    """Returns the bytes that TensorFlow has claimed of the first GPU, or None."""
    from tensorflow.python.client import device_lib  # Not part of the documented interface.

    limits = [d.memory_limit for d in device_lib.list_local_devices() if d.device_type == "GPU"]
    return limits[0] if limits else None


def take_steps(values):
    """Measures training steps; for a separate process.

    Args:
        values: dict, a config.

    Returns:
        dict with `peak_bytes` and `seconds` of one step.
    """
    from kseg import config as config_module
    from kseg.analysis.measuring import PeakMemory, best_seconds
    from kseg.commands.complexity import Subject

    subject = Subject(config_module.parse(values, source="config"))
    with PeakMemory() as peak:
        _, step = subject.build("contrast")

        def take():
            return float(step(subject.batch)["loss"])

        take()  # Compiles.
        seconds = best_seconds(take, 3)
    return {"peak_bytes": round(peak.megabytes * 1e6), "seconds": seconds}


def _work():
    import sys

    work = json.loads(sys.argv[1])
    if work["do"] == "look":
        found = look(work["folder"], work["split"], work["count"])
    else:
        found = take_steps(work["config"])
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    console.run(_work)
