"""Scores a trained run or a SavedModel on a split of prepared data.

    python scripts/evaluate.py --run runs/quickstart
    python scripts/evaluate.py --saved-model model --data data/camvid --output scores.json

Prints a table of the classes and the images per second (the first batch, which compiles, left
out), and writes the scores as JSON. All devices share the work; the scores are those of one.
"""

import argparse
import json
import math
import pathlib

import _common
from _progress import Progress


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", help="folder of a run, such as runs/quickstart")
    source.add_argument("--saved-model", metavar="DIR", help="what scripts/export.py wrote")
    parser.add_argument(
        "--checkpoint", help="of the run: best (default), latest, or a step such as 3000"
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="prepared data; default: that of the run's config"
    )
    parser.add_argument("--split", help="default: data.eval_split of the run; val for a SavedModel")
    parser.add_argument(
        "--batch-size",
        type=_positive,
        help="images at once on each device; default: data.eval_batch_size of the run; else 4",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16"),
        help="of the run's network; default: that of its training",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="JSON to write; default for a run: <run>/evaluation/<split>.json, with the names of "
        "another data set than its own, and of another checkpoint than best, in it; for a "
        "SavedModel: none",
    )
    parser.add_argument(
        "--panels",
        type=_positive,
        metavar="N",
        help="also draw N images (truth, prediction, errors) and the confusion matrix, as PNGs in "
        "a folder that has the name of the JSON without .json",
    )
    options = parser.parse_args(arguments)
    if options.saved_model:
        if not options.data:
            parser.error("--saved-model needs --data")
        if options.checkpoint or options.precision:
            parser.error("--checkpoint and --precision go with --run: a SavedModel is as it is")
        if options.panels and not options.output:
            parser.error("--panels with --saved-model needs --output, to know where to write")
    if options.output and pathlib.Path(options.output).suffix != ".json":
        parser.error(f"--output must end in .json, is {options.output}")
    return options


def main(arguments=None):
    options = parse_arguments(arguments)
    import keras

    import pipelines
    from kseg.evaluation.inference import Evaluator
    from kseg.export import load
    from kseg.runs import Run
    from kseg.segmenters import inference_model
    from kseg.training.distribution import build_strategy
    from pipelines import loader

    strategy = build_strategy()
    checkpoint = None
    if options.run:
        run = Run.open(options.run)
        data, classes, checkpoint = run.config.data, run.classes, options.checkpoint or "best"
        run.checkpoint(checkpoint)
        folder, split = options.data or data.folder, options.split or data.eval_split
        batch_size = options.batch_size or data.eval_batch_size
    else:
        with strategy.scope():
            model = load(options.saved_model)
        classes, folder, split = model.classes, options.data, options.split or "val"
        batch_size = options.batch_size or 4

    manifest = pipelines.read_manifest(folder)
    _common.check_classes(classes.names, manifest)
    batches = loader.evaluation_dataset(folder, split, batch_size=batch_size)
    if options.run:
        keras.config.set_dtype_policy(options.precision or run.config.train.precision)
        with strategy.scope():
            model = inference_model(run.segmenter(checkpoint))

    evaluation = Evaluator(model, len(classes), strategy=strategy)(
        batches,
        num_examples=options.panels or 0,
        progress=Progress(manifest.split(split).num_images),
    )
    print(evaluation.scores.table(classes.names))
    speed = evaluation.images_per_second
    known = "" if math.isnan(speed) else f", {speed:.2f} a second"
    print(f"{evaluation.num_images} images{known}")

    own = options.run is not None and manifest.dataset == run.config.data.dataset
    parts = [split] if own else [manifest.dataset, split]
    parts += [] if checkpoint in (None, "best") else [checkpoint]
    output = output_file(options, "-".join(parts))
    if output is not None:
        result = {
            "dataset": manifest.dataset,
            "split": split,
            "checkpoint": checkpoint,
            **evaluation.to_dict(classes.names),
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"scores:    {output}")
    if options.panels:
        draw(output.with_suffix(""), evaluation, classes)
        print(f"pictures:  {output.with_suffix('')}")
    return 0


def output_file(options, name):
    """Where to write the scores, or None; `name` is that of the default file."""
    if options.output:
        return pathlib.Path(options.output)
    if not options.run:
        return None
    return pathlib.Path(options.run) / "evaluation" / f"{name}.json"


def draw(folder, evaluation, classes):
    """Writes a panel for each example and the confusion matrix, in place of earlier ones."""
    from kseg import visualize

    for old in folder.glob("panel-*.png"):
        old.unlink()
    for number, example in enumerate(evaluation.examples):
        picture = visualize.panel([example], classes.names, classes.palette)
        visualize.write_png(folder / f"panel-{number:03d}.png", picture)
    picture = visualize.confusion_picture(evaluation.scores.matrix, classes.names)
    visualize.write_png(folder / "confusion.png", picture)


def _positive(text):
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, is {value}")
    return value


if __name__ == "__main__":
    _common.run(main)
