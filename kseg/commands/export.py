"""Writes a trained run as a SavedModel, or for LiteRT (TFLite) or ONNX.

    python scripts/export.py --run runs/quickstart --output model
    python scripts/export.py --run runs/quickstart --output model.onnx --format onnx --check photos

The SavedModel takes RGB images of any size, uint8 or float32 in 0 to 255, and returns logits of
the same size. It contains the names and colors of the classes. Its signatures are described in
`kseg.serving.export_saved_model`; the files for LiteRT and ONNX in `kseg.serving.portable`.
"""

import argparse
import pathlib
import sys
import tempfile

from kseg.commands import checking, console

_FORMATS = {".tflite": "tflite", ".onnx": "onnx"}
_KINDS = ("saved_model", *_FORMATS.values())


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("--run", required=True, help="folder of a run, such as runs/quickstart")
    parser.add_argument("--output", required=True, metavar="PATH", help="folder or file to write")
    console.add_checkpoint(parser, default="best")
    parser.add_argument(
        "--precision",
        choices=checking.PRECISIONS,
        help="precision of the network; default: that of its training. The logits are float32 "
        "either way",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--format",
        choices=_KINDS,
        help="default: from the suffix of --output, .tflite or .onnx; else saved_model",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size of the images; default for tflite: the crop of the training; for onnx: any size",
    )
    parser.add_argument(
        "--check",
        metavar="PATH",
        help="image or folder: the first 8 images go through what was written, read back from "
        "disk, and for tflite and onnx through a SavedModel of the same network, else through the "
        "network in memory; the difference is printed",
    )
    options = parser.parse_args(arguments)
    ending = pathlib.Path(options.output).suffix.lower()
    by_ending = _FORMATS.get(ending, "saved_model")
    options.format = options.format or by_ending
    if by_ending not in ("saved_model", options.format):
        parser.error(f"--output {options.output} does not fit --format {options.format}")
    return options


def main(arguments=None):
    """Runs the command and returns its exit code."""
    _export(parse_arguments(arguments))
    return 0


def export(
    run,
    output,
    *,
    checkpoint="best",
    precision=None,
    format=None,
    size=None,
    check=None,
    overwrite=False,
):
    """Writes a trained run as a SavedModel, or as one file for LiteRT or ONNX.

    Args:
        run: folder of a run.
        output: folder or file to write.
        checkpoint: `"best"`, `"latest"` or a step.
        precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`, precision of the network;
            None: the one used in training.
        format: `"saved_model"`, `"tflite"` or `"onnx"`; None: chosen by the suffix of `output`.
        size: `(height, width)` of the images; None: the training crop for LiteRT, any size for
            ONNX.
        check: image or folder of images on which the exported model is compared with the original;
            None: no check.
        overwrite: bool, whether to replace an existing file or folder.

    Returns:
        `pathlib.Path` of the exported model, which `kseg.load` reads.

    Raises:
        UserError: if the run cannot be read, the output cannot be written, or the converter cannot
            handle this network.
    """
    for name, value in (("run", run), ("output", output)):
        checking.check_path(name, value)
    checking.check_path("check", check, optional=True)
    checking.check_checkpoint("checkpoint", checkpoint)
    checking.check_choice("precision", precision, checking.PRECISIONS)
    checking.check_choice("format", format, _KINDS)
    checking.check_size("size", size)
    from kseg.errors import UserError

    ending = pathlib.Path(output).suffix.lower()
    if format not in (None, _FORMATS.get(ending, format)):
        raise UserError(f"`output` {output} does not fit `format` {format!r}")
    options = argparse.Namespace(
        run=str(run),
        output=str(output),
        checkpoint=str(checkpoint),
        precision=precision,
        format=format or _FORMATS.get(ending, "saved_model"),
        size=size,
        check=check,
        overwrite=overwrite,
    )
    _export(options)
    return pathlib.Path(output)


def _export(options):
    """Exports a run according to the options."""
    from kseg.runs import Run

    # Checked before the export, whose result would be lost otherwise.
    check_options(options)
    run = Run.open(options.run)
    run.checkpoint(options.checkpoint)
    images = check_images(options.check, run.value_range) if options.check else []
    if options.format != "saved_model":
        return export_portable(options, run, images)

    from kseg.progress import Progress
    from kseg.segmenters import inference_model
    from kseg.serving import export_saved_model, load_saved_model

    with Progress("exporting a SavedModel"):
        segmenter = run.segmenter(options.checkpoint, precision=options.precision)
        export_saved_model(
            segmenter,
            options.output,
            run.classes,
            value_range=run.value_range,
            overwrite=options.overwrite,
        )
    print(f"SavedModel: {options.output} ({len(run.classes)} classes)", flush=True)
    if images:
        with Progress("checking it", len(images)) as progress:
            exported = load_saved_model(options.output)
            text = compare(images, inference_model(segmenter), exported, progress)
        print(text.format("the network in memory"))


def check_options(options):
    """Rejects options that cannot be exported and a target that cannot be written."""
    from kseg import files
    from kseg.errors import UserError
    from kseg.serving import checks

    output = pathlib.Path(options.output)
    if options.format == "saved_model":
        if options.size:
            raise UserError("--size is for --format tflite and onnx. Leave it out")
        checks.check_folder_target(output, options.overwrite)
        check = files.check_folder
    else:
        if options.precision not in (None, "float32"):
            raise UserError(
                f"--format {options.format} is written in float32. Received: --precision "
                f"{options.precision}. Leave it out"
            )
        if options.size and min(options.size) < 1:
            raise UserError(f"--size must be positive. Received: {options.size}")
        if options.format == "onnx":
            checks.require("tf2onnx")
        if options.check:
            checks.require("onnxruntime" if options.format == "onnx" else "ai_edge_litert")
        checks.check_file_target(output, options.overwrite)
        check = files.check_file
    if pathlib.Path(options.run).is_dir():  # Otherwise nothing will be written.
        check(output)


def export_portable(options, run, images):
    """Writes a float32 file for LiteRT or ONNX and compares its logits on real images."""
    from kseg.progress import Progress
    from kseg.serving.litert import export_tflite
    from kseg.serving.onnx import export_onnx

    size, write = options.size, export_onnx
    if options.format == "tflite":
        size, write = size or run.config.data.crop_size, export_tflite
    with Progress(f"exporting {options.format}"):
        segmenter = run.segmenter(options.checkpoint, precision="float32")
        write(
            segmenter,
            options.output,
            run.classes,
            size,
            value_range=run.value_range,
            overwrite=options.overwrite,
        )
    shown = "any size" if size is None else "{} x {}".format(*size)
    print(f"{options.format}: {options.output} ({len(run.classes)} classes, {shown})", flush=True)
    if images:
        compare_with_saved_model(options, segmenter, run.classes, images, size)


def check_images(path, value_range):
    """Reads the first 8 images of a path as uint8 RGB arrays; reports those it cannot read."""
    from kseg.errors import UserError, option
    from pipelines import paths, pictures
    from pipelines.errors import DataError

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
        try:
            images.append(pictures.read(paths.read_bytes(file), value_range).pixels)
        except (OSError, DataError) as error:
            reasons.append(f"{file}: {error}")
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if reasons[3:] else "")
    if not images:
        reason = f" ({shown})" if reasons else ""
        raise UserError(
            f"There is no readable image in {path}{reason}. Give {option('check')} another place"
        )
    if reasons:
        print(f"--check leaves out what it cannot read: {shown}", file=sys.stderr)
    return images


def compare_with_saved_model(options, segmenter, classes, images, size):
    """Prints the difference between a file's logits and those of a SavedModel of the network."""
    import cv2
    import numpy as np

    from kseg.progress import Progress
    from kseg.serving import export_saved_model, load_saved_model, portable

    if size:
        images = [cv2.resize(np.ascontiguousarray(image), tuple(size)[::-1]) for image in images]
    file = portable.load(options.output)
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress("checking it", len(images)) as progress,
    ):
        path = pathlib.Path(folder) / "model"
        export_saved_model(segmenter, path, classes)
        text = compare(images, load_saved_model(path), file, progress)
    print(text.format("a SavedModel of it"))


def compare(images, expected, actual, progress):
    """Describes the difference between two models' logits; `{}` stands for the first model."""
    import numpy as np

    from kseg.serving import portable

    batches = [np.ascontiguousarray(image)[None] for image in images]
    compared = []
    for batch in batches:
        compared.append(portable.compare(expected(batch), actual(batch)))
        progress.advance()
    agreements, differences = zip(*compared, strict=True)
    return (
        f"{len(images)} images, against {{}}: "
        f"{100 * sum(agreements) / len(images):.4f} % of pixels get the same class, logits differ "
        f"by at most {max(differences):.2g}"
    )
