"""Scores a trained run or a SavedModel on a split of prepared data, or compares two runs.

    python scripts/evaluate.py --run runs/quickstart
    python scripts/evaluate.py --run runs/quickstart --scales --flip --boundary
    python scripts/evaluate.py --run runs/quickstart --sliding-window 96 96 --overlap 0.5
    python scripts/evaluate.py --saved-model model --data data/camvid --output scores.json
    python scripts/evaluate.py --compare runs/camvid_small_ce runs/camvid_small_contextrast

Prints the scores of each class and the images per second (without the first batch, which compiles).
Writes the scores as JSON and CSV, and the pixel counts of each image as NPZ, which --compare needs;
for a run, also TensorBoard events. All devices share the work; the scores are the same as on a
single device.

--compare reads the results of earlier calls: `evaluation/<split>.json` of both runs, or two JSON
files. It prints B - A for each class, with the interval of a paired bootstrap over images.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import tempfile
from typing import Any

from kseg.commands import checking, console, views
from kseg.commands.console import check_classes, check_pixels


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", help="folder of a run, such as runs/quickstart")
    source.add_argument("--saved-model", metavar="PATH", help="folder or file of export.py")
    source.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two evaluated runs, or their JSON files"
    )
    console.add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="FOLDER", help="prepared data; default: that of the run's config"
    )
    parser.add_argument(
        "--split",
        help="split of the data; default: data.eval_split of the run; val for a SavedModel",
    )
    parser.add_argument(
        "--batch-size",
        type=console.positive,
        help="images, or windows, in a batch on each device; default: data.eval_batch_size of the "
        "run; else 4",
    )
    parser.add_argument(
        "--precision",
        choices=checking.PRECISIONS,
        help="precision of the run's network; default: that of its training",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="JSON to write; default for a run: <run>/evaluation/<split>.json, with the names of "
        "another data set than its own, of another checkpoint than best, and of windows (sliding), "
        "scales (ms) and mirroring (flip) in it; for a SavedModel and --compare: none",
    )
    parser.add_argument(
        "--panels",
        type=console.positive,
        metavar="N",
        help="also draw N images (truth, prediction, errors) and the confusion matrix, as PNGs in "
        "a folder that has the name of the JSON without .json",
    )

    group = parser.add_argument_group("inference")
    views.add_arguments(group, windows=", in each size")

    group = parser.add_argument_group("further scores")
    group.add_argument(
        "--boundary",
        type=float,
        nargs="?",
        const=0.02,
        metavar="RATIO",
        help="also Boundary IoU: pixels that are nearer to an outline than this share of the "
        "image's diagonal; default 0.02",
    )
    group.add_argument(
        "--cityscapes-ground-truth",
        metavar="FOLDER",
        help="also the official scores of Cityscapes, iIoU among them; the folder of gtFine; needs "
        "kseg[cityscapes]",
    )
    group.add_argument(
        "--submission",
        metavar="FILE.zip",
        help="also write the predictions for the evaluation server of Cityscapes",
    )

    group = parser.add_argument_group("interval of --compare")
    group.add_argument(
        "--resamples", type=console.positive, help="number of resamples; default: 1000"
    )
    group.add_argument(
        "--confidence", type=float, help="confidence of the interval, in (0, 1); default: 0.95"
    )
    group.add_argument("--seed", type=int, help="seed of the resamples; default: 0")

    options = parser.parse_args(arguments)
    _check(options, parser.error)
    return options


def _check(options, refuse):
    """Calls `refuse(message)` for arguments that conflict or are out of range."""
    if options.compare:
        allowed = ("compare", "split", "output", "resamples", "confidence", "seed")
        _only(refuse, options, allowed, "does not go with --compare")
        if options.confidence is not None and not 0 < options.confidence < 1:
            refuse(f"--confidence must be in (0, 1), is {options.confidence}")
    else:
        allowed = {*vars(options)} - {"resamples", "confidence", "seed"}
        _only(refuse, options, allowed, "goes with --compare")
    if options.saved_model:
        if not options.data:
            refuse("--saved-model needs --data")
        if options.checkpoint or options.precision:
            refuse("--checkpoint and --precision go with --run: a SavedModel is as it is")
        if options.panels and not options.output:
            refuse("--panels with --saved-model needs --output, to know where to write")
        if options.sliding_window == []:
            refuse("--sliding-window with --saved-model needs HEIGHT WIDTH")
    if options.output and pathlib.Path(options.output).suffix != ".json":
        refuse(f"--output must end in .json, is {options.output}")
    if options.submission and pathlib.Path(options.submission).suffix != ".zip":
        refuse(f"--submission must end in .zip, is {options.submission}")
    views.check(options, refuse)
    if options.boundary is not None and not 0 < options.boundary < 1:
        refuse(f"--boundary must be in (0, 1), is {options.boundary}")


def _only(refuse, options, allowed, problem):
    for name, value in vars(options).items():
        if name not in allowed and value is not None and value is not False:
            refuse(f"--{name.replace('_', '-')} {problem}")


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    if options.compare:
        compare_runs(options)
    else:
        _evaluate(options)
    return 0


def evaluate(
    run=None,
    *,
    saved_model=None,
    checkpoint=None,
    data=None,
    split=None,
    batch_size=None,
    precision=None,
    output=None,
    panels=None,
    scales=None,
    flip=False,
    sliding_window=None,
    overlap=None,
    blend=None,
    boundary=None,
    cityscapes_ground_truth=None,
    submission=None,
):
    """Scores a trained run or a SavedModel on a split of prepared data and prints a table.

    Args:
        run: folder of a run; alternative to `saved_model` and `data`.
        saved_model: folder or file written by `kseg.export`.
        checkpoint: step, `"best"` or `"latest"`; None: `"best"`.
        data: folder of prepared data; None: the one in the run's config.
        split: name of a split; None: `data.eval_split` of the run, `val` for a SavedModel.
        batch_size: int, images or windows per batch on each device; None: as in the config.
        precision: name of a Keras dtype policy; None: the one used in training.
        output: path of the JSON file; None: in the run's folder; no file for a SavedModel.
        panels: int, number of images to draw beside their labels and errors; None: as in the
            config.
        scales: floats; `[]`: 0.5, 0.75, ... 2.0; None: the original size only.
        flip: bool, whether to average over each image and its mirror image.
        sliding_window: `(height, width)`; `[]`: the crop size of the run; None: whole images.
        overlap: float in [0, 1), overlap of neighboring windows; None: one third.
        blend: `"flat"`, `"gaussian"` or `"center"`, weights of overlapping windows, see
            `kseg.evaluation.sliding_window.SlidingWindow`; None: `"flat"`.
        boundary: float, width of the Boundary IoU band as a fraction of the image diagonal; None:
            Boundary IoU is not computed.
        cityscapes_ground_truth: folder `gtFine` for the official instance-weighted scores.
        submission: path of the zip file of label images for Cityscapes' server.

    Returns:
        dict with `scores` (`kseg.evaluation.metrics.Scores`), `results` (dict, the content of the
        JSON file), and `output` (the path of that file, or None).

    Raises:
        UserError: if arguments conflict, or the run, the data or a file cannot be used.
    """
    options = argparse.Namespace(
        **locals(), compare=None, resamples=None, confidence=None, seed=None
    )
    if (run is None) == (saved_model is None):
        checking.refuse(
            f"One of `run` and `saved_model` must be given. Received: {run}, {saved_model}"
        )
    for name in ("run", "saved_model", "data", "output", "cityscapes_ground_truth", "submission"):
        checking.check_path(name, getattr(options, name), optional=True)
    checking.check_checkpoint("checkpoint", checkpoint)
    checking.check_choice("precision", precision, checking.PRECISIONS)
    checking.check_count("batch_size", batch_size)
    checking.check_count("panels", panels, least=0)
    views.check_types(options)
    boundaries = None if boundary is None else [boundary]
    checking.check_numbers("boundary", boundaries, "a number in (0, 1)")
    _check(options, checking.refuse)
    return _evaluate(options)


def _evaluate(options):
    """Evaluates the model named by the options; returns the result of `evaluate`."""
    subject = open_subject(options)
    manifest, classes = subject.manifest, subject.classes

    from kseg.evaluation.boundary_iou import BoundaryIou
    from kseg.evaluation.evaluator import Evaluator
    from kseg.progress import Progress
    from kseg.training.distribution import build_strategy
    from pipelines import loader

    stored = subject.run.checkpoint_meta(subject.checkpoint) if subject.run else {}
    strategy = build_strategy()
    batches = loader.evaluation_dataset(
        subject.folder, subject.split, batch_size=subject.batch_size
    )
    boundary = BoundaryIou(len(classes), options.boundary) if options.boundary else None
    with contextlib.ExitStack() as stack:
        writer = label_images(options, manifest, batches, stack)
        model, settings = load_model(options, subject, strategy)
        with Progress("evaluating", manifest.split(subject.split).num_images) as progress:
            evaluate = Evaluator(
                model, len(classes), strategy=strategy, pixel_format=subject.pixel_format
            )
            evaluation = evaluate(
                batches,
                num_examples=options.panels or 0,
                progress=progress.update,
                consumers=[consumer for consumer in (boundary, writer) if consumer],
            )
        more = {"categories": manifest.categories, "groups": manifest.groups}
        more["boundary_iou"] = boundary.iou if boundary else None
        print_scores(evaluation, classes, more)
        official = official_results(options, writer) if options.cityscapes_ground_truth else {}
        if options.submission:
            from kseg.evaluation.cityscapes.submission import write_zip

            write_zip(writer.files.values(), options.submission)
            print(f"submission: {options.submission}")

    result = {
        "dataset": manifest.dataset,
        "split": subject.split,
        "checkpoint": subject.checkpoint,
        **{key: stored[key] for key in ("initial_weights",) if key in stored},
        **settings,
        **({"dilation_ratio": options.boundary} if boundary else {}),
        **evaluation.to_dict(classes.names, **more),
        **official,
    }
    write_results(options, subject, result, evaluation, more, step=stored.get("step"))
    return {"scores": evaluation.scores, "results": result, "output": subject.output}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and the data that it is scored on.

    Attributes:
        run: `kseg.runs.Run`, or None for an exported model.
        checkpoint: str or int, which checkpoint of the run; None without a run.
        classes: `kseg.classes.Classes` of the model.
        pixel_format: `kseg.pixel_format.PixelFormat` of its images, or None: 8-bit RGB.
        folder: str, folder of the prepared data.
        manifest: `pipelines.manifest.Manifest` of the data.
        split: str.
        batch_size: int.
        output: `pathlib.Path` of the JSON file to write, or None.
    """

    run: Any
    checkpoint: Any
    classes: Any
    pixel_format: Any
    folder: str
    manifest: Any
    split: str
    batch_size: int
    output: pathlib.Path | None


def open_subject(options):
    """Opens the run or exported model and the data, and checks everything known in advance.

    Returns:
        `Subject`.

    Raises:
        UserError: if the data do not fit the model, or an output cannot be written.
        OSError: if a file cannot be read or written.
    """
    import pipelines
    from kseg import files
    from kseg.pixel_format import PixelFormat
    from kseg.runs import Run
    from kseg.serving.checks import read_classes, read_file_classes

    run = checkpoint = None
    if options.run:
        run = Run.open(options.run)
        data, classes, checkpoint = run.config.data, run.classes, options.checkpoint or "best"
        run.checkpoint(checkpoint)
        if not options.output:
            files.check_contents(run.path / "evaluation")
        folder, split = options.data or data.folder, options.split or data.eval_split
        batch_size = options.batch_size or data.eval_batch_size
    else:
        is_file = pathlib.Path(options.saved_model).is_file()
        classes, more = (read_file_classes if is_file else read_classes)(options.saved_model)
        folder, split = options.data, options.split or "val"
        batch_size = options.batch_size or 4
    manifest = pipelines.read_manifest(folder)
    manifest.split(split)
    check_classes(classes.names, manifest)
    pixel_format = run.pixel_format if run else PixelFormat.from_dict(more.get("pixels"))
    check_pixels(pixel_format, manifest)
    check_cityscapes(options, manifest)
    own = run is not None and manifest.dataset == run.config.data.dataset
    parts = [split] if own else [manifest.dataset, split]
    parts += [] if checkpoint in (None, "best") else [checkpoint]
    output = output_file(options, "-".join([*parts, *views.modes(options)]))
    # Checked before the evaluation, whose result would be lost otherwise.
    for file in filter(None, (output, options.submission)):
        files.check_file(file)
    return Subject(
        run, checkpoint, classes, pixel_format, folder, manifest, split, batch_size, output
    )


def load_model(options, subject, strategy):
    """Loads the model under a strategy, and wraps it for scales, mirroring and windows.

    Returns:
        `(model, settings)` as `kseg.commands.views.wrap`.
    """
    from kseg.progress import Progress
    from kseg.segmenters import inference_model
    from kseg.serving.loading import load

    run = subject.run
    with Progress("loading the network"), strategy.scope():
        if run:
            segmenter = run.segmenter(subject.checkpoint, precision=options.precision)
            model = inference_model(segmenter)
        else:
            model = load(options.saved_model)
            if pathlib.Path(options.saved_model).is_file():
                model = network_of_file(model, options)
    crop_size = run.config.data.crop_size if run else None
    return views.wrap(model, len(subject.classes), options, crop_size, subject.batch_size)


def print_scores(evaluation, classes, more):
    """Prints the table of scores, the speed and a warning; `more` as for `Scores.table`."""
    if evaluation.scores.matrix.any():
        print(evaluation.scores.table(classes.names, **more))
    else:
        print("no pixel of this split has a label: there is nothing to score")
    speed = evaluation.images_per_second
    known = "" if math.isnan(speed) else f", {speed:.2f} a second"
    print(f"{evaluation.num_images} images{known}")
    if warning := evaluation.warning():
        print(warning, file=sys.stderr, flush=True)


def write_results(options, subject, result, evaluation, more, *, step):
    """Writes scores, TensorBoard events and panels, and prints their paths.

    Args:
        options: namespace of the options.
        subject: `Subject`.
        result: dict, the content of the JSON file.
        evaluation: `kseg.evaluation.evaluator.Evaluation`.
        more: dict, as for `kseg.training.reporting.write_evaluation`.
        step: int, that of the checkpoint; None without one, as for a preset: no events.
    """
    from kseg.evaluation import results

    output = subject.output
    if output is not None:
        results.write(output, result, evaluation.image_counts)
        print(f"scores:     {output}, {output.with_suffix('.csv').name}")
    if step is not None and output is not None:
        events = subject.run.path / "tensorboard" / f"evaluate-{output.stem}"
        write_events(events, step, evaluation, subject.classes, more)
        print(f"events:     {events}")
    if options.panels:
        draw(output.with_suffix(""), evaluation, subject.classes)
        print(f"pictures:   {output.with_suffix('')}")


def network_of_file(model, options):
    """Adapts a loaded file for LiteRT, ONNX or OpenVINO to the evaluator.

    Raises:
        UserError: if the file gives classes and the options need logits.
    """
    from kseg.errors import UserError, option
    from kseg.serving.labeling import as_network

    if model.result == "classes" and views.modes(options):
        raise UserError(
            f"{options.saved_model} gives classes, and scales, mirroring and windows average "
            f"logits. Write it with {option('result', 'logits')}"
        )
    return as_network(model)


def check_cityscapes(options, manifest):
    """Rejects the options for official scores if these cannot be computed."""
    if not options.submission and not options.cityscapes_ground_truth:
        return
    from kseg.errors import UserError
    from kseg.evaluation.cityscapes import official

    if manifest.dataset != "cityscapes":
        raise UserError(
            "--submission and --cityscapes-ground-truth are for the data set 'cityscapes'. "
            f"{manifest.folder} holds {manifest.dataset!r}"
        )
    if options.cityscapes_ground_truth:
        official.check_installed()


def label_images(options, manifest, batches, stack):
    """Returns a writer of predictions in the format of Cityscapes, or None."""
    if not options.submission and not options.cityscapes_ground_truth:
        return None
    from kseg import waiting
    from kseg.evaluation.cityscapes import official
    from kseg.evaluation.cityscapes.submission import LabelImages, frame_of
    from pipelines.datasets.dataset import IGNORE_LABEL, Taxonomy

    first = frame_of(waiting.next_batch(iter(batches))["id"][0].numpy().decode())
    if options.cityscapes_ground_truth:
        official.find_ground_truth(options.cityscapes_ground_truth, [first])
    label_map = Taxonomy.load(manifest.dataset).label_map
    values = {label: value for value, label in label_map.items() if label != IGNORE_LABEL}
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return LabelImages(folder, [values[label] for label in range(manifest.num_classes)])


def official_results(options, writer):
    """Scores the written predictions with cityscapesscripts and prints the scores."""
    from kseg.evaluation.cityscapes import official
    from kseg.progress import Progress

    frames = list(writer.files)
    truth = official.find_ground_truth(options.cityscapes_ground_truth, frames)
    with Progress(f"scoring {len(frames)} images with cityscapesscripts"):
        scores = official.official_scores(list(writer.files.values()), truth)
    print(official.table(scores))
    return {"cityscapes": scores}


def compare_runs(options):
    """Prints the differences between two evaluations."""
    from kseg import files
    from kseg.errors import UserError
    from kseg.evaluation import results
    from kseg.evaluation.compare import compare
    from kseg.progress import Progress

    if options.output:
        files.check_file(options.output)
    sources = [evaluation_file(name, options.split) for name in options.compare]
    first, second = map(results.read, sources)
    names = list(first.found["classes"])
    if names != list(second.found["classes"]):
        raise UserError(
            f"{sources[0]} and {sources[1]} must have the same classes, in the same order"
        )
    chosen = {key: getattr(options, key) for key in ("resamples", "confidence", "seed")}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    with Progress("comparing"):
        comparison = compare(first.image_counts, second.image_counts, **chosen)
    for file, read in zip(sources, (first, second), strict=True):
        if not read.has_checksum:
            print(
                f"note: {file} was written by an earlier version, without a checksum; its sums "
                f"agree with those of {file.with_suffix('.npz').name}",
                file=sys.stderr,
            )
    for letter, file in zip("AB", sources, strict=True):
        print(f"{letter}: {file}")
    print(comparison.table(names))
    print(
        f"{comparison.num_images} images, {comparison.resamples} resamples of them, seed "
        f"{comparison.seed}; * the interval leaves out 0"
    )
    if options.output:
        output = pathlib.Path(options.output)
        result = {"first": str(sources[0]), "second": str(sources[1]), **comparison.to_dict(names)}
        files.write_text(output, json.dumps(result, indent=2) + "\n")
        print(f"comparison: {output}")


def evaluation_file(name, split):
    """Finds the JSON file for an argument of --compare."""
    from kseg.runs import Run

    if pathlib.Path(name).suffix == ".json":
        return pathlib.Path(name)
    run = Run.open(name)
    return run.path / "evaluation" / f"{split or run.config.data.eval_split}.json"


def output_file(options, name):
    """Returns the path of the scores, or None; `name` is the default file name."""
    if options.output:
        return pathlib.Path(options.output)
    if not options.run:
        return None
    return pathlib.Path(options.run) / "evaluation" / f"{name}.json"


def write_events(folder, step, evaluation, classes, more):
    """Writes TensorBoard events at a step, replacing earlier ones."""
    import tensorflow as tf

    from kseg import files
    from kseg.training.reporting import write_evaluation

    with files.replace_folder(folder) as new:
        writer = tf.summary.create_file_writer(str(new))
        write_evaluation(writer, step, evaluation, classes, **more)
        writer.close()


def draw(folder, evaluation, classes):
    """Writes a panel for each example and the confusion matrix, replacing earlier ones."""
    from kseg.evaluation import drawing

    for old in folder.glob("panel-*.png"):
        old.unlink()
    for number, example in enumerate(evaluation.examples):
        picture = drawing.panel([example], classes.names, classes.palette)
        drawing.write_png(folder / f"panel-{number:03d}.png", picture)
    picture = drawing.confusion_picture(evaluation.scores.matrix, classes.names)
    drawing.write_png(folder / "confusion.png", picture)
