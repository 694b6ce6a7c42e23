"""Checks of exported networks: comparison with the original, or scores on prepared data.

`plan` finds every problem with the images or the data before the export.
"""

import pathlib
import statistics
import sys
import tempfile
import time


def plan(options, run):
    """Opens the images or the data named by `--check`.

    Args:
        options: namespace of `kseg export`.
        run: `kseg.runs.Run`.

    Returns:
        function of the exported segmenter that performs the check and prints the result.

    Raises:
        UserError, DataError: if there are no images, or the data are not those of the run.
    """
    from pipelines import paths

    if not paths.exists(paths.join(options.check, "manifest.json")):
        images = check_images(options.check, run.value_range, run.pixel_format)
        return lambda segmenter: compare_on_images(options, run, segmenter, images)

    import pipelines
    from kseg.commands.console import check_classes, check_pixels

    manifest = pipelines.read_manifest(options.check)
    manifest.split(run.config.data.eval_split)
    check_classes(run.classes.names, manifest)
    check_pixels(run.pixel_format, manifest)
    return lambda segmenter: score_on_data(options, run)


def exported(options):
    """Returns the path of the exported network to load."""
    if options.format != "serving":
        return pathlib.Path(options.output)
    (file,) = pathlib.Path(options.output, "triton").glob("*/1/model.onnx")
    return file


def check_images(path, value_range, pixel_format=None):
    """Reads the first 8 images of a path; reports those it cannot read.

    Args:
        path: image, or folder of images.
        value_range, pixel_format: as for `kseg.commands.predict_folder.read`.

    Returns:
        list of arrays: uint8 RGB `(height, width, 3)`, or of the pixel format.
    """
    from kseg.commands.predict_folder import read
    from kseg.errors import UserError, option

    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(
            f"There is no {path}. Give {option('check')} an image, or a folder of images"
        )
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    images, reasons = [], []
    for file in files:
        if len(images) == 8 or not (file.is_file() or file == path):
            continue
        image, reason = read(file, value_range, pixel_format)
        if reason is None:
            images.append(image)
        else:
            reasons.append(f"{file}: {reason}")
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if reasons[3:] else "")
    if not images:
        reason = f" ({shown})" if reasons else ""
        raise UserError(
            f"There is no readable image in {path}{reason}. Give {option('check')} another place"
        )
    if reasons:
        print(f"--check leaves out what it cannot read: {shown}", file=sys.stderr)
    return images


def compare_on_images(options, run, segmenter, images):
    """Prints the differences between the exported network and the original on images.

    The reference is the network in memory for a SavedModel, and a SavedModel of it otherwise.
    """
    from kseg.progress import Progress
    from kseg.segmenters import inference_model
    from kseg.serving import export_saved_model, load_saved_model
    from kseg.serving.loading import load

    with (
        tempfile.TemporaryDirectory() as folder,
        Progress("checking it", len(images)) as progress,
    ):
        model = load(exported(options))
        if options.format == "saved_model":
            text = compare(images, inference_model(segmenter), model, progress)
            shown = "the network in memory"
        else:
            path = pathlib.Path(folder) / "model"
            if options.format == "serving":  # Its SavedModel is read back, too.
                path = pathlib.Path(options.output)
            else:
                export_saved_model(segmenter, path, run.classes)
            images = [model.fit(image) for image in images]
            text = compare(images, load_saved_model(path), model, progress)
            shown = "a SavedModel of it"
    print(text.format(shown))


def compare(images, expected, actual, progress):
    """Describes the difference between two models; `{}` is the place for the first one's name.

    Args:
        images: list of uint8 arrays `(height, width, channels)`.
        expected: function from a batch of images to logits.
        actual: the same, or a `kseg.serving.network_file.PortableModel` of classes.
        progress: `kseg.progress.Progress`.

    Returns:
        str.
    """
    import numpy as np

    from kseg.serving import portable
    from kseg.serving.network_file import confidence_of

    gives_classes = getattr(actual, "result", "logits") == "classes"
    compared = []
    for image in images:
        batch = np.ascontiguousarray(image)[None]
        logits = np.asarray(expected(batch))
        if gives_classes:
            labels, confidence = actual.classify(batch)
            difference = np.max(np.abs(confidence - confidence_of(logits)))
            compared.append((np.mean(labels == np.argmax(logits, axis=-1)), difference))
        else:
            compared.append(portable.compare(logits, actual(batch)))
        progress.advance()
    agreements, differences = zip(*compared, strict=True)
    return (
        f"{len(images)} images, against {{}}: "
        f"{100 * sum(agreements) / len(images):.4f} % of pixels get the same class, "
        f"{'confidences' if gives_classes else 'logits'} differ by at most {max(differences):.2g}"
    )


def score_on_data(options, run):
    """Prints mean IoU, size and time of the exported network, beside those of float32."""
    from kseg.commands.export import write_portable
    from kseg.progress import Progress
    from kseg.serving import export_saved_model

    path = exported(options)
    data, quantized = run.config.data, options.quantize
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        reference = pathlib.Path(folder) / "model"
        precision = options.precision or run.config.train.precision
        with Progress("preparing the check"):
            if options.format == "saved_model":
                name = f"SavedModel, {precision}"
                if precision != "float32":
                    plain = run.segmenter(options.checkpoint, precision="float32")
                    export_saved_model(plain, reference, run.classes)
                    paths["SavedModel, float32"] = reference
            else:
                kind = "onnx" if options.format == "serving" else options.format
                name = f"{kind}, {quantized or 'float32'}"
                plain = run.segmenter(options.checkpoint, precision="float32")
                if quantized:
                    float_file = reference.with_suffix(path.suffix)
                    values = {**vars(options), "format": kind, "overwrite": False}
                    write_portable(type(options)(**values), run, plain, float_file)
                    paths[f"{kind}, float32"] = float_file
                else:
                    export_saved_model(plain, reference, run.classes)
                    paths["SavedModel, float32"] = reference
        paths[name] = path
        rows = score(paths, options.check, data.eval_split, len(run.classes))
    print(table(rows, f"{data.eval_split} of {options.check}"))


def score(paths, data, split, num_classes):
    """Scores and times exported networks on the same images, in turn.

    Args:
        paths: dict from the name of a network to its file or folder.
        data: folder of prepared data.
        split: str.
        num_classes: int.

    Returns:
        dict from the name to `(mean_iou, megabytes, seconds, processor_seconds)`; the times are
        medians over the images, without the first, of labeling one image.
    """
    import numpy as np

    from kseg.evaluation.metrics import Scores, confusion_matrices
    from kseg.progress import Progress
    from kseg.serving.labeling import labeler
    from kseg.serving.loading import load
    from pipelines import loader

    labelers = {name: labeler(load(path)) for name, path in paths.items()}
    matrices = {name: np.zeros((num_classes,) * 2, "int64") for name in paths}
    times = {name: [] for name in paths}
    dataset = loader.evaluation_dataset(data, split)
    with Progress("checking it", int(dataset.cardinality())) as progress:
        for batch in dataset:
            images, truth = batch["image"].numpy(), batch["label"]
            for name, label in labelers.items():
                start = time.perf_counter(), time.process_time()
                found = label(images)
                end = time.perf_counter(), time.process_time()
                times[name].append([b - a for a, b in zip(start, end, strict=True)])
                matrices[name] += np.sum(confusion_matrices(truth, found, num_classes), axis=0)
            progress.advance()
    rows = {}
    for name, path in paths.items():
        later = times[name][1:] or times[name]
        medians = [statistics.median(column) for column in zip(*later, strict=True)]
        rows[name] = (Scores(matrices[name]).mean_iou, megabytes(path), *medians)
    return rows


def megabytes(path):
    """Returns the size of a network (file, OpenVINO's two files, or folder) in 10^6 bytes."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    else:
        weights = path.with_suffix(".bin")
        files = [path, *([weights] if path.suffix == ".xml" else [])]
    return sum(file.stat().st_size for file in files) / 1e6


def table(rows, where):
    """Formats the result of `score`; the last row is compared with the first.

    Args:
        rows: as `score` returns them.
        where: str, the split and data.

    Returns:
        str.
    """
    width = max(len(where), *map(len, rows))
    lines = [f"{where:<{width}}   mean IoU       MB  ms an image  processor ms"]
    for name, (mean_iou, size, *seconds) in rows.items():
        wall, processor = (1e3 * value for value in seconds)
        lines.append(
            f"{name:<{width}}  {100 * mean_iou:7.2f} %{size:9.2f}{wall:13.1f}{processor:14.1f}"
        )
    if len(rows) > 1:
        first, *_, last = rows.values()
        lines.append(
            f"mean IoU {100 * (last[0] - first[0]):+.2f}, {first[3] / last[3]:.2f} x the speed by "
            f"processor time, {100 * last[1] / first[1]:.0f} % of the size"
        )
    return "\n".join(lines)
