"""Analyses of scripts/analyze.py: each takes the options, prints results and writes files."""

import dataclasses
import json

from kseg.commands.console import check_classes, check_pixels
from kseg.progress import Progress

_MAX_ACTIVATIONS = 24  # Largest number of classes with a Grad-CAM in a report.


@dataclasses.dataclass(frozen=True)
class Images:
    """Images on which a run is analyzed.

    Attributes:
        folder: str, folder of the prepared data.
        dataset: str, name of the data set.
        split: str, name of the split.
        count: int, number of images.
        batch_size: int.
    """

    folder: str
    dataset: str
    split: str
    count: int
    batch_size: int

    @property
    def batches(self):
        """Builds a `tf.data.Dataset`, see `pipelines.loader.evaluation_dataset`."""
        from pipelines import loader

        return loader.evaluation_dataset(self.folder, self.split, batch_size=self.batch_size)

    def looking(self):
        """Returns a context manager that shows progress over all images."""
        return Progress("looking at the images", self.count)


def features(options):
    """Prints A, U and U_l and writes them to evaluation/features.json in the run's folder."""
    run = open_run(options)
    images = open_images(options, run)

    from kseg.analysis.features import feature_statistics

    segmenter = load_segmenter(options, run)
    with images.looking() as progress:
        statistics = feature_statistics(
            segmenter,
            images.batches,
            len(run.classes),
            unit_norm=not options.raw,
            samples_per_class=options.samples,
            seed=options.seed,
            progress=progress.update,
        )
    return report_features(options, run, images, statistics)


def report_features(options, run, images, statistics):
    """Prints and writes the feature statistics."""
    values = statistics.to_dict(run.classes.names)
    width = max(map(len, run.classes.names)) + 2
    print(f"{'class':<{width}}{'A':>8}{'samples':>9}")
    for name, row in values["classes"].items():
        print(f"{name:<{width}}{_number(row['A']):>8}{row['num_samples']:>9}")
    print(f"A: exact on a sample, at most {options.samples} pixels a class, seed {options.seed}")
    print("  ".join(f"{key} {_number(v)}" for key, v in values.items() if key != "classes"))
    settings = {
        "dataset": images.dataset,
        "split": images.split,
        "checkpoint": options.checkpoint,
        "unit_norm": not options.raw,
        "samples_per_class": options.samples,
        "seed": options.seed,
    }
    file = run.path / "evaluation" / "features.json"
    write_json(file, {**settings, **values})
    print(f"features:    {file}")
    return values


def gradients(options):
    """Prints how strongly each loss term pulls on the weights, and writes it as JSON."""
    from kseg.errors import UserError

    if options.checkpoint == "best":
        raise UserError(
            "--what gradients needs a checkpoint of the training, with its memory banks: "
            "--checkpoint latest (its default) or a step. The best weights are stored without"
        )
    if options.split:
        raise UserError(
            "--what gradients takes batches of data.train_split. Received: --split "
            f"{options.split}. Leave it out"
        )
    run = open_run(options)
    # A few batches need neither a copy of the shards nor the data service of the training.
    changes = {"service": None, "cache": None}
    if options.data:
        changes["path"] = options.data
    data = run.config.data.model_copy(update=changes)

    import tensorflow as tf

    from kseg.analysis.gradients import compare_gradients
    from kseg.commands.data import ExperimentData
    from kseg.runs import checkpoints
    from kseg.training.build import build_trainer

    opened = ExperimentData.open(run.config.model_copy(update={"data": data}))
    check_classes(run.classes.names, opened.manifest)
    check_pixels(run.pixel_format, opened.manifest)
    with Progress("loading the network"):
        trainer = build_trainer(run, tf.distribute.get_strategy())
        file = run.checkpoint(options.checkpoint)
        step = checkpoints.restore(file, checkpoints.training_variables(trainer))["step"]
    losses = [name for name, (_, weight) in trainer.losses_on_logits.items() if weight]
    reference = next((name for name in losses if name == "cross_entropy"), losses[0])
    batches = opened.training_batches(step).take(options.batches)
    with Progress("computing gradients", options.batches, unit="batches") as progress:
        found = compare_gradients(trainer, batches, reference=reference, progress=progress.advance)
    values = {name: term.to_dict() for name, term in found.items()}
    width = max(map(len, values)) + 2
    print(f"{'term':<{width}}{'weight':>8}{'value':>9}{'gradient':>18}{'cosine':>16}")
    for name, term in values.items():
        value, ratio, cosine = term["value"], term["ratio"], term["cosine"]
        print(
            f"{name:<{width}}{term['weight']:>8.3g}{_number(value['mean']):>9}"
            f"{_with_spread(ratio):>18}{_with_spread(cosine):>16}"
        )
    print(
        f"gradient: norm of weight times gradient, relative to {reference}; cosine: of the angle "
        f"to its gradient; both over the weights that both terms reach. Mean and standard "
        f"deviation over {options.batches} training batches of {data.batch_size} from step {step}"
    )
    file = run.path / "analysis" / "gradients.json"
    write_json(
        file,
        {"step": step, "batches": options.batches, "reference": reference, "terms": values},
    )
    print(f"gradients:   {file}")
    return values


def _with_spread(statistics):
    if statistics["mean"] is None:
        return "-"
    text = f"{statistics['mean']:.3f}"
    return text if statistics["std"] is None else f"{text} +- {statistics['std']:.3f}"


def curves(options):
    """Draws the training curves."""
    from kseg.analysis.extras import require
    from kseg.errors import UserError

    require("matplotlib")
    run = open_run(options)

    from kseg.analysis import charts

    train, evaluation = read_curves(run)
    if not train and not evaluation:
        raise UserError(f"{run.path} has no TensorBoard events, in {run.path / 'tensorboard'}")
    file = run.path / "analysis" / "curves.png"
    write_chart(file, charts.training_curves(train, evaluation))
    return file


def read_curves(run):
    """Reads the training scalars and the evaluation scalars of a run."""
    from kseg.analysis.curves import read_scalars

    return tuple(read_scalars(run.path / "tensorboard" / part) for part in ("train", "evaluation"))


def failures(options):
    """Draws the worst images, prints the confused classes, and writes both as JSON."""
    run = open_run(options)
    images = open_images(options, run)

    from kseg.analysis.failures import FailureCollector
    from kseg.analysis.observation import observe
    from kseg.evaluation import drawing

    collector = FailureCollector(len(run.classes), count=options.images)
    segmenter = load_segmenter(options, run)
    with images.looking() as progress:
        for seen in observe(segmenter, images.batches, progress=progress.update):
            collector.add(seen)
    classes = run.classes
    folder = run.path / "analysis" / "failures"
    pictures = []
    for example in collector.worst():
        rows = [(example.image, example.truth, *example.predictions)]
        pictures.append(drawing.panel(rows, classes.names, classes.palette))
        print(f"mean IoU {100 * example.mean_iou[0]:6.2f} %  {example.id}")
    write_pictures(folder, pictures)
    confusions = report_failures(options, run, images, collector)
    print(f"pictures:    {folder}")
    return confusions


def report_failures(options, run, images, collector):
    """Prints and writes the confused classes."""
    from kseg.analysis.failures import confused_pairs

    names = run.classes.names
    pairs = confused_pairs(collector.matrix, 10)
    for pair in pairs:
        print(
            f"{100 * pair.share:5.1f} % of {names[pair.truth]} taken for {names[pair.prediction]}"
        )
    file = run.path / "analysis" / "failures.json"
    values = {
        "dataset": images.dataset,
        "split": images.split,
        "checkpoint": options.checkpoint,
        "mean_iou": dict(sorted(collector.mean_iou.items(), key=lambda item: item[1])),
        "taken_for": [
            {
                "class": names[pair.truth],
                "prediction": names[pair.prediction],
                "pixels": pair.pixels,
                "share": pair.share,
            }
            for pair in pairs
        ],
    }
    write_json(file, values)
    print(f"failures:    {file}")
    return values


def tsne(options):
    """Draws t-SNE plots and writes the files for TensorBoard's projector."""
    from kseg.analysis.extras import require

    require("matplotlib", "sklearn")
    run = open_run(options)
    images = open_images(options, run)

    from kseg.analysis.observation import observe

    collector = embedding_collector(options, run)
    segmenter = load_segmenter(options, run)
    with images.looking() as progress:
        for seen in observe(
            segmenter, images.batches, unit_norm=not options.raw, progress=progress.update
        ):
            collector.add(seen)
    return report_embeddings(options, run, images, collector)


def embedding_collector(options, run):
    """Builds the collector of feature vectors for t-SNE."""
    from kseg.analysis.embeddings import EmbeddingCollector

    share = max(1, options.points // len(run.classes))
    return EmbeddingCollector(len(run.classes), points_per_class=share, seed=options.seed)


def report_embeddings(options, run, images, collector):
    """Writes plots and the projector's files; returns a dict of t-SNE layouts by title."""
    from kseg.analysis import charts, projector
    from kseg.analysis.embeddings import t_sne
    from kseg.errors import UserError

    points = {"pixels": collector.pixels(), "regions": collector.regions()}
    points = {name: found for name, found in points.items() if found is not None}
    if not points:
        raise UserError(f"The split {images.split!r} must have labeled pixels. It has none")
    folder, classes = run.path / "analysis", run.classes
    layouts = {}
    for name, found in points.items():
        if len(found.classes) < 4:
            print(f"t-SNE:       none of {name}: there are only {len(found.classes)}")
            continue
        title = {"pixels": "pixels", "regions": "region centers"}[name]
        with Progress(f"t-SNE of {len(found.classes)} {title}"):
            layouts[title] = t_sne(found.vectors, seed=options.seed), found.classes
        figure = charts.point_map(
            *layouts[title],
            classes.palette,
            title=f"{title} (t-SNE)",
            class_names=classes.names,
        )
        write_chart(folder / f"tsne-{name}.png", figure)
    scaled = "as they are" if options.raw else "scaled to unit norm"
    description = (
        f"Features just before the classifier, {scaled}; {images.dataset}, split {images.split}, "
        f"checkpoint {options.checkpoint}: {' and '.join(points)}, as many of each class."
    )
    target = run.path / "tensorboard" / "projector"
    projector.write(target, points, classes.names, classes.palette, description=description)
    print(f"projector:   tensorboard --logdir {run.path / 'tensorboard'}")
    return layouts


def feature_maps(options):
    """Draws the principal components of the features for images spread over the split."""
    run = open_run(options)
    images = open_images(options, run)

    from kseg.analysis.feature_maps import principal_colors
    from kseg.analysis.observation import observe
    from kseg.evaluation import drawing

    classes = run.classes
    rows, maps = [], []
    batches = spread_batches(images, options.images)
    segmenter = load_segmenter(options, run)
    with Progress("looking at the images", min(options.images, images.count)) as progress:
        for seen in observe(
            segmenter, batches, unit_norm=not options.raw, progress=progress.update
        ):
            maps.append(seen.features[0])
            rows.append([seen.images[0], drawing.colorize_truth(seen.labels[0], classes.palette)])
    pictures = [
        [*row, drawing.enlarge(colors, row[0].shape[:2])]
        for row, colors in zip(rows, principal_colors(maps), strict=True)
    ]
    titles = ["image", "truth", "features, principal components"]
    picture = drawing.picture_grid(titles, pictures)
    file = run.path / "analysis" / "feature-maps.png"
    drawing.write_png(file, picture)
    print(f"picture:     {file}")
    return file


def grad_cam(options):
    """Draws the Grad-CAM of each class on the image with the most pixels of that class."""
    run = open_run(options)
    images = open_images(options, run)
    names = run.classes.names
    chosen, maps = choose_classes(options, names), stages(options, run)

    import numpy as np

    from kseg.analysis.grad_cam import ClassImages
    from kseg.evaluation import drawing

    segmenter = load_segmenter(options, run, maps=maps)
    class_images = ClassImages(len(names))
    with images.looking() as progress:
        for batch in images.batches:
            class_images.add(
                [name.decode() for name in batch["id"].numpy()],
                np.asarray(batch["image"]),
                np.asarray(batch["label"]),
            )
            progress.advance(len(batch["image"]))
    kept = {n: image for n, image in class_images.images().items() if n in chosen}
    folder = run.path / "analysis" / "grad-cam"
    for old in folder.glob("*.png"):
        old.unlink()
    for result in activations(segmenter, options.stages, kept):
        overlays = [drawing.heat_overlay(result.image, heat) for heat in result.heat.values()]
        name = names[result.number]
        titles = [f"{name}: {result.id}", *result.heat]
        picture = drawing.picture_grid(titles, [[result.image, *overlays]])
        slug = "".join(c if c.isalnum() else "-" for c in name)
        drawing.write_png(folder / f"{result.number:03d}-{slug}.png", picture)
    print(f"pictures:    {folder}")
    return folder


def choose_classes(options, names):
    """Returns the indices of the classes named by `--classes`; without it, of all classes."""
    from kseg.errors import UserError

    for name in options.classes or []:
        if name not in names:
            raise UserError(
                f"--classes must name classes of the run: {', '.join(names)}. Received: {name!r}"
            )
    return {n for n, name in enumerate(names) if options.classes is None or name in options.classes}


def stages(options, run):
    """Checks `--stages`."""
    from kseg.errors import UserError

    known = ["c2", "c3", "c4", "c5", "features"]
    if run.config.model.head.name == "upernet":
        known += ["fpn_c2", "fpn_c3", "fpn_c4", "fpn_c5"]
    for stage in options.stages:
        if stage not in known:
            raise UserError(f"--stages must be of {', '.join(known)}. Received: {stage!r}")
    return tuple(dict.fromkeys(options.stages))


def activations(segmenter, stages, kept):
    """Computes Grad-CAMs: a list of `Activation`, one for each class in `kept`."""
    from kseg.analysis.grad_cam import GradCAM
    from kseg.analysis.report import Activation
    from kseg.pixel_format import to_picture
    from kseg.segmenters import pixel_format_of

    explain = GradCAM(segmenter, stages)
    results = []
    with Progress("Grad-CAM", len(kept), unit="classes") as progress:
        for n, (name, image) in kept.items():
            heat = {stage: maps[0] for stage, maps in explain(image[None], n).items()}
            picture = to_picture(image, pixel_format_of(segmenter))
            results.append(Activation(n, name, picture, heat))
            progress.advance()
    return results


def panels(options):
    """Draws several runs side by side, on images where the last differs most from the first."""
    from kseg.errors import UserError
    from kseg.runs import Run

    if len(options.runs) < 2:
        raise UserError(
            f"--what panels needs --runs with two folders or more. Received: {options.runs}"
        )
    check_numbers(options)
    runs = [Run.open(path) for path in options.runs]
    for run in runs:
        run.checkpoint(options.checkpoint)
    first = runs[0]
    check_output(first)
    for run in runs[1:]:
        if run.classes.names != first.classes.names:
            raise UserError(f"{run.path} must have the classes of {first.path}")
    names = [run.path.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    images = open_images(options, first)

    from kseg.analysis.failures import ComparisonCollector
    from kseg.analysis.observation import observe
    from kseg.evaluation import drawing

    collector = ComparisonCollector(len(first.classes), count=options.images)
    segmenters = [load_segmenter(options, run) for run in runs]
    views = [observe(segmenter, images.batches) for segmenter in segmenters]
    with images.looking() as progress:
        for seen in zip(*views, strict=True):
            collector.add(seen)
            progress.advance(len(seen[0].ids))
    classes = first.classes
    pictures = []
    for example in collector.examples():
        rows = [(example.image, example.truth, example.predictions)]
        pictures.append(drawing.comparison_panel(rows, names, classes.names, classes.palette))
        scores = "  ".join(
            f"{name} {100 * v:.2f}" for name, v in zip(names, example.mean_iou, strict=True)
        )
        print(f"mean IoU  {scores}  {example.id}")
    folder = first.path / "analysis" / "-".join(["against", *(run.path.name for run in runs[1:])])
    write_pictures(folder, pictures)
    write_json(folder / "mean_iou.json", {"runs": names, "images": collector.mean_iou})
    print(f"pictures:    {folder}")
    return collector.mean_iou


def report(options):
    """Writes the HTML report and the files of the analyses that it contains."""
    from kseg.analysis.extras import require

    require("matplotlib", "sklearn")
    run = open_run(options)
    images = open_images(options, run)
    classes = run.classes
    wanted, observed = choose_classes(options, classes.names), stages(options, run)

    from kseg import files
    from kseg.analysis import report as page
    from kseg.analysis.failures import confused_pairs
    from kseg.analysis.feature_maps import principal_colors
    from kseg.analysis.observation import observe
    from kseg.evaluation.metrics import Scores

    segmenter = load_segmenter(options, run, maps=observed)
    collected = _ReportCollectors(options, run, images)
    with images.looking() as progress:
        for seen in observe(
            segmenter, images.batches, unit_norm=not options.raw, progress=progress.update
        ):
            collected.add(seen)

    statistics, matrix = collected.features.statistics(), collected.failures.matrix
    report_features(options, run, images, statistics)
    report_failures(options, run, images, collected.failures)
    layouts = report_embeddings(options, run, images, collected.embeddings)
    frequent = set((-matrix.sum(axis=1)).argsort(kind="stable")[:_MAX_ACTIVATIONS].tolist())
    shown = wanted & frequent
    kept = {n: image for n, image in collected.class_images.images().items() if n in shown}
    train, evaluation = read_curves(run)
    text = page.render(
        page.RunReport(
            name=run.path.resolve().name,
            dataset=images.dataset,
            split=images.split,
            checkpoint=options.checkpoint,
            config=run.config.model_dump(mode="json"),
            environment=run.read_environment(),
            class_names=classes.names,
            palette=classes.palette,
            categories=classes.categories,
            groups=classes.groups,
            scores=Scores(matrix),
            image_mean_iou=collected.failures.mean_iou,
            train=train,
            evaluation=evaluation,
            examples=collected.examples,
            worst=collected.failures.worst(),
            pairs=confused_pairs(matrix, 10),
            statistics=statistics,
            unit_norm=not options.raw,
            layouts=layouts,
            activations=activations(segmenter, options.stages, kept),
            feature_colors=principal_colors(collected.maps),
        )
    )
    file = run.path / "analysis" / "report.html"
    files.write_bytes(file, text.encode())
    print(f"report:      {file}")
    return file


class _ReportCollectors:
    """The collectors of all analyses of a report, fed by a single pass of the network.

    Args:
        options: namespace of the options.
        run: `kseg.runs.Run`.
        images: `Images`.

    Attributes:
        features: `kseg.analysis.features.FeatureCollector`; None before the first batch.
        failures: `kseg.analysis.failures.FailureCollector`.
        embeddings: `kseg.analysis.embeddings.EmbeddingCollector`.
        class_images: `kseg.analysis.grad_cam.ClassImages`.
        examples: list of `kseg.analysis.failures.Example`, images spread over the split.
        maps: list of float32 `(height, width, dim)`, the features of these images.
    """

    def __init__(self, options, run, images):
        from kseg.analysis.failures import FailureCollector
        from kseg.analysis.grad_cam import ClassImages
        from kseg.analysis.selection import spread

        self._options = options
        self._num_classes = len(run.classes)
        self._chosen = set(spread(options.images, images.count))
        self._count = 0
        self.features = None
        self.failures = FailureCollector(self._num_classes, count=options.images)
        self.embeddings = embedding_collector(options, run)
        self.class_images = ClassImages(self._num_classes)
        self.examples, self.maps = [], []

    def add(self, seen):
        """Adds the images of a `kseg.analysis.observation.ObservedBatch`."""
        from kseg.analysis.failures import image_mean_iou, take_example
        from kseg.analysis.features import FeatureCollector

        dim = seen.features.shape[-1]
        if self.features is None:
            self.features = FeatureCollector(
                self._num_classes,
                dim,
                samples_per_class=self._options.samples,
                seed=self._options.seed,
            )
        self.features.add(seen.features.reshape(-1, dim), seen.feature_labels.reshape(-1))
        self.failures.add(seen)
        self.embeddings.add(seen)
        self.class_images.add(seen.ids, seen.inputs, seen.labels)
        for i, (labels, predictions) in enumerate(zip(seen.labels, seen.predictions, strict=True)):
            if self._count + i in self._chosen:
                mean_iou = image_mean_iou(labels, predictions, self._num_classes)
                self.examples.append(take_example([seen], i, [mean_iou]))
                self.maps.append(seen.features[i].copy())
        self._count += len(seen.ids)


def open_run(options):
    """Checks the count options, then opens the run named by `--run`."""
    from kseg.errors import UserError
    from kseg.runs import Run

    if not options.run:
        raise UserError(f"--what {options.what} needs --run, a folder of scripts/train.py")
    check_numbers(options)
    run = Run.open(options.run)
    if options.what != "curves":  # Curves need no checkpoint.
        run.checkpoint(options.checkpoint)
    check_output(run)
    return run


def check_output(run):
    """Rejects a run whose folder is not writable, before any results are computed.

    Raises:
        OSError: naming the folder.
    """
    from kseg import files

    for part in ("analysis", "evaluation"):
        files.check_contents(run.path / part)


def check_numbers(options):
    """Rejects counts that are too small."""
    from kseg.errors import UserError

    for name, least in (("samples", 2), ("points", 1), ("images", 1), ("batches", 1)):
        value = getattr(options, name)
        if value < least:
            raise UserError(f"--{name} must be at least {least}. Received: {value}")


def open_images(options, run):
    """Opens the data of `--data` and `--split`; defaults to the run's evaluation data."""
    import pipelines

    data = run.config.data
    folder, split = options.data or data.folder, options.split or data.eval_split
    manifest = pipelines.read_manifest(folder)
    check_classes(run.classes.names, manifest)
    check_pixels(run.pixel_format, manifest)
    count = manifest.split(split).num_images
    return Images(folder, manifest.dataset, split, count, data.eval_batch_size)


def load_segmenter(options, run, maps=()):
    """Builds the run's network with the weights of `--checkpoint`."""
    with Progress("loading the network"):
        return run.segmenter(options.checkpoint, maps=maps)


def spread_batches(images, count):
    """Yields batches of one image each, spread evenly over the split."""
    from kseg.analysis.selection import spread

    chosen = set(spread(count, images.count))
    for number, example in enumerate(images.batches.unbatch()):
        if number in chosen:
            yield {name: value[None] for name, value in example.items()}


def write_chart(file, figure):
    """Writes a chart as PNG and prints its path."""
    from kseg import files
    from kseg.analysis import charts

    files.write_bytes(file, charts.png(figure))
    print(f"picture:     {file}")


def write_pictures(folder, pictures):
    """Writes panels, replacing earlier ones."""
    from kseg.evaluation import drawing

    for old in folder.glob("panel-*.png"):
        old.unlink()
    for number, picture in enumerate(pictures):
        drawing.write_png(folder / f"panel-{number:03d}.png", picture)


def write_json(file, values):
    """Writes an object to a JSON file."""
    from kseg import files

    files.write_bytes(file, (json.dumps(values, indent=2) + "\n").encode())


def _number(value):
    return "-" if value is None else f"{value:.4f}"
