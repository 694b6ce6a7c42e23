"""Trains an experiment: python scripts/train.py --config configs/quickstart.json

Trains, evaluates, keeps the best weights, and exports them. The same command resumes a run that
was stopped, and shows the results of a finished one again.
"""

import math
import pathlib
import sys

from kseg.commands import checking, console


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("--config", required=True, help="JSON file, see configs/README.md")
    console.add_overrides(
        parser, "change a key of the config, such as train.steps=100; may be repeated"
    )
    parser.add_argument("--run", help="folder of the run; default: runs/<name of the config>")
    parser.add_argument("--restart", action="store_true", help="delete the run and start over")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be trained, and stop"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    from kseg import config as config_module

    config = config_module.load(options.config, options.overrides)
    if options.dry_run:
        dry_run(config, options.run)
        return 0
    train(config, run=options.run, restart=options.restart)
    return 0


def train(config, *, run=None, overrides=(), restart=False):
    """Trains an experiment, evaluates its best weights and exports them.

    Resumes an interrupted run; for a finished run, only computes the scores again. Prints its
    progress. In a cluster (`TF_CONFIG`), every worker calls this function.

    Args:
        config: path of a JSON file, name of a config that ships with kseg, or
            `kseg.config.Experiment`.
        run: folder of the run; None: `runs/<name of the config>`.
        overrides: strings `"key=value"`, see `kseg.config.load`; only with a file or name.
        restart: bool, whether to delete an existing run in the folder first.

    Returns:
        dict with `run` (`kseg.runs.Run`), `best_step` (int or None), `best_mean_iou` (float or
        None), `scores` (`kseg.evaluation.metrics.Scores` of the best weights), and the paths
        `scores_file`, `panel` and `saved_model`. Workers other than the chief get an empty dict.

    Raises:
        UserError: if the config, the data or the folder cannot be used, or training fails.
        kseg.errors.Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    from kseg import config as config_module
    from kseg import files
    from kseg.commands.data import ExperimentData
    from kseg.errors import UserError
    from kseg.runs import Run, lock
    from kseg.training.callbacks import build_callbacks
    from kseg.training.cluster import read_cluster
    from kseg.training.initialization import check_pretrained

    checking.check_path("run", run, optional=True)
    if not isinstance(config, config_module.Experiment):
        checking.check_path("config", config)
        config = config_module.load(config, overrides)
    elif overrides:
        raise UserError(f"`overrides` are for a file. Received: {overrides=} with an Experiment")
    folder = pathlib.Path(run or f"runs/{config.name}")
    cluster = read_cluster()
    if cluster and restart:
        raise UserError(
            "--restart is for one machine: here another may be reading already. Delete the folder "
            f"{folder} and start all workers without it"
        )
    # In a cluster, TensorFlow requires the strategy first; otherwise mistakes are found earlier.
    strategy = build_strategy(config, cluster) if cluster else None
    if cluster is None or cluster.is_chief:
        files.check_contents(folder)
    data = ExperimentData.open(config)
    config = data.config
    is_chief = cluster is None or cluster.is_chief
    if not is_chief:
        _train(Run(folder, config, data.classes, data.identity()), data, strategy, cluster)
        return {}
    callbacks = build_callbacks(config)
    for warning in data.check_labels():
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    with lock.hold(folder):
        Run.clean(folder)
        created = Run(folder, config, data.classes, data.identity())
        if restart or not created.checkpoint_steps():
            check_pretrained(config.model)
        if not restart:
            created = Run.create(folder, config, data.classes, data.identity())
        strategy = strategy or build_strategy(config)
        if restart:
            Run.delete(folder)
            created = Run.create(folder, config, data.classes, data.identity())
        return _train(created, data, strategy, cluster, callbacks)


def build_strategy(config, cluster=None):
    """Chooses the devices of a config, see `kseg.training.distribution.build_strategy`."""
    from kseg.training import distribution

    return distribution.build_strategy(config.train.devices, cluster)


def _train(run, data, strategy, cluster, callbacks=None):
    """Trains and finishes a run; returns the result of `train`."""
    from kseg.errors import UserError
    from kseg.training import loop
    from kseg.training.distribution import anywhere, check_agreement, describe_devices

    is_chief = cluster is None or cluster.is_chief
    if is_chief:
        print(describe_devices(strategy, run.config.train.precision), flush=True)
        for line in describe_pixels(run):
            print(line, flush=True)
    try:
        if cluster:  # The chief has found no mistakes.
            check_agreement(strategy, cluster, run.agreement())
        result = loop.train(
            run,
            data.training_batches,
            data.evaluation_batches,
            strategy=strategy,
            cluster=cluster,
            callbacks=callbacks,
        )
    except _lost_workers() as error:
        if cluster is None:
            raise
        raise UserError(
            f"worker {cluster.worker} of {cluster.num_workers} lost another one. Start all of them "
            "again: the same command resumes from the newest checkpoint. TensorFlow says: "
            + " ".join(error.message.split())[:300]
        ) from None
    finished = {}
    if is_chief:
        count = data.manifest.split(run.config.data.eval_split).num_images
        finished = finish(run, result, data.evaluation_batches(), count)
    if cluster:
        anywhere(strategy, False)
    return finished


def describe_pixels(run):
    """Describes images that are not 8-bit RGB, and the distortion left out for them.

    Args:
        run: `kseg.runs.Run`.

    Returns:
        list of str, lines; empty for 8-bit RGB.
    """
    from kseg.training.build import left_out_of_jitter

    pixels = run.pixel_format
    if pixels is None:
        return []
    lines = [f"images: {pixels}; normalized by the mean and std of each channel"]
    if left_out := left_out_of_jitter(run.config.data, pixels):
        lines.append(
            f"data.color_jitter: no {', '.join(left_out)}, because the images are not RGB of "
            "whole numbers"
        )
    return lines


def _lost_workers():
    """Returns the types of TensorFlow's errors when another machine is lost."""
    from tensorflow import errors

    return (
        errors.UnavailableError,
        errors.AbortedError,
        errors.CancelledError,
        errors.DeadlineExceededError,
        errors.InternalError,
        errors.UnknownError,
    )


def finish(run, result, evaluation_batches, count):
    """Evaluates the best weights on `count` images, exports them, and prints the paths."""
    from kseg import serving
    from kseg.evaluation import drawing, results
    from kseg.evaluation.evaluator import Evaluator
    from kseg.progress import Progress
    from kseg.segmenters import inference_model

    classes = run.classes
    with Progress("evaluating the best weights", count) as progress:
        segmenter = run.segmenter("best")
        evaluator = Evaluator(
            inference_model(segmenter), len(classes), pixel_format=run.pixel_format
        )
        evaluation = evaluator(evaluation_batches, num_examples=4, progress=progress.update)
    more = {"categories": classes.categories, "groups": classes.groups}
    print(evaluation.scores.table(classes.names, **more))

    folder = run.path / "evaluation"
    data = run.config.data
    scores = folder / f"{data.eval_split}.json"
    summary = {
        "dataset": data.dataset,
        "split": data.eval_split,
        "checkpoint": "best",
        "initial_weights": result["initial_weights"],
        **evaluation.to_dict(classes.names, **more),
    }
    results.write(scores, summary, evaluation.image_counts)
    panel = drawing.panel(evaluation.examples, classes.names, classes.palette)
    drawing.write_png(folder / "panel.png", panel)
    saved_model = run.path / "saved_model"
    with Progress("exporting the best weights"):
        serving.export_saved_model(
            segmenter, saved_model, classes, value_range=run.value_range, overwrite=True
        )
    if result["best_step"] is not None:
        print(f"best:         mean IoU {result['best_mean_iou']:.4f} at step {result['best_step']}")
    print(f"scores:       {scores}")
    print(f"pictures:     {folder / 'panel.png'}")
    print(f"SavedModel:   {saved_model}")
    print(f"TensorBoard:  tensorboard --logdir {run.path.parent}")
    return {
        "run": run,
        "best_step": result["best_step"],
        "best_mean_iou": result["best_mean_iou"],
        "scores": evaluation.scores,
        "scores_file": scores,
        "panel": folder / "panel.png",
        "saved_model": saved_model,
    }


def dry_run(config, folder=None):
    """Prints the resolved config, the model, the steps and the batch.

    Args:
        config: `kseg.config.Experiment`.
        folder: folder of the run, neither read nor created; None: the default.
    """
    from kseg.commands.data import ExperimentData
    from kseg.progress import Progress
    from kseg.runs import Run

    data = ExperimentData.open(config)
    config = data.config
    for warning in data.check_labels():
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    run = Run(folder or f"runs/{config.name}", config, data.classes, data.identity())
    print(config.to_json(), end="", flush=True)

    from kseg.training.build import build_trainer

    strategy = build_strategy(config)
    with Progress(f"building {config.model.head.name} on {config.model.backbone.name}"):
        trainer = build_trainer(run, strategy)
        total, deployed = (
            sum(math.prod(v.shape) for v in model.weights) / 1e6
            for model in (trainer.segmenter, run.build_segmenter())
        )
    outputs = ", ".join(sorted(trainer.segmenter.output))
    print(
        f"model:  {config.model.head.name} on {config.model.backbone.name}, {len(run.classes)} "
        f"classes, {total:.2f} M weights ({deployed:.2f} M without projectors); gives {outputs}"
    )
    height, width = config.data.crop_size
    pixels = run.pixel_format
    channels, dtype = (3, "uint8") if pixels is None else (pixels.channels, pixels.dtype)
    print(f"batch:  ({config.data.batch_size}, {height}, {width}, {channels}) {dtype}")
    print(f"steps:  {config.train.total_steps} on {strategy.num_replicas_in_sync} device(s)")
