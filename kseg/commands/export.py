r"""Writes a trained run as a SavedModel, for LiteRT (TFLite), ONNX or OpenVINO, or for servers.

    python scripts/export.py --run runs/quickstart --output model
    python scripts/export.py --run runs/quickstart --output model.onnx --format onnx --check photos
    python scripts/export.py --run runs/quickstart --output model.tflite --quantize int8 \\
        --calibrate data/quickstart --check data/quickstart --result classes
    python scripts/export.py --run runs/quickstart --output served --format serving

The SavedModel takes RGB images of any size, uint8 or float32 in 0 to 255, and returns logits of
the same size. It contains the names and colors of the classes. Its signatures are described in
`kseg.serving.export_saved_model`, and all inputs and outputs in docs/serving.md. `--format serving`
writes the model folders of TensorFlow Serving (a SavedModel) and Triton (an ONNX file).
"""

import argparse
import pathlib
import sys

from kseg.commands import checking, console
from kseg.serving.checks import QUANTIZATIONS, RESULTS

_FORMATS = {".tflite": "tflite", ".onnx": "onnx", ".xml": "openvino"}
_KINDS = ("saved_model", *_FORMATS.values(), "serving")
_CALIBRATION_IMAGES = 64
# Suffixes of files that other tools read, and that a user may expect.
_FOREIGN = (".pb", ".h5", ".keras", ".pt", ".pth", ".npz", ".engine", ".plan", ".mlpackage", ".bin")


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
        help="default: from the suffix of --output, .tflite, .onnx or .xml (openvino); else "
        "saved_model",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size of the images; default for tflite: the crop of the training; for the others: "
        "any size",
    )
    parser.add_argument(
        "--result",
        choices=RESULTS,
        help="what a file returns: logits (default), or classes, the class of each pixel and its "
        "confidence; a SavedModel has signatures for both",
    )
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="float16: half the size; int8: a quarter of the size, and faster on a CPU",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="prepared data whose training images give the ranges for --quantize int8",
    )
    parser.add_argument(
        "--calibration-images",
        type=console.positive,
        metavar="N",
        help=f"number of these images, spread over the split; default: {_CALIBRATION_IMAGES}",
    )
    parser.add_argument(
        "--check",
        metavar="PATH",
        help="image or folder of images: the first 8 go through what was written, read back from "
        "disk, and for a file through a SavedModel of the same network, else through the network "
        "in memory; the difference is printed. Prepared data: mean IoU on its evaluation split, "
        "size and time, beside those of the network in float32",
    )
    options = parser.parse_args(arguments)
    ending = pathlib.Path(options.output).suffix.lower()
    by_ending = _FORMATS.get(ending, "saved_model")
    if options.format is None and ending in _FOREIGN:
        parser.error(
            f"--output {options.output}: kseg writes no {ending} files, but SavedModels (a folder, "
            f"without suffix) and {', '.join(_FORMATS)}"
        )
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
    result=None,
    quantize=None,
    calibrate=None,
    calibration_images=None,
    check=None,
    overwrite=False,
):
    """Writes a trained run as a SavedModel, a file for LiteRT, ONNX or OpenVINO, or for servers.

    Args:
        run: folder of a run.
        output: folder or file to write.
        checkpoint: `"best"`, `"latest"` or a step.
        precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`, precision of the network;
            None: the one used in training.
        format: `"saved_model"`, `"tflite"`, `"onnx"`, `"openvino"`, or `"serving"`: model folders
            of TensorFlow Serving and Triton; None: chosen by the suffix of `output`.
        size: `(height, width)` of the images; None: the training crop for LiteRT, any size for the
            others.
        result: `"logits"`, or `"classes"` for the class of each pixel and its confidence, what a
            file returns; None: logits. A SavedModel has signatures for both.
        quantize: `"float16"` or `"int8"`, see `kseg.serving.onnx.export_onnx` and
            `kseg.serving.litert.export_tflite`; None: float32.
        calibrate: folder of prepared data, whose training images give the ranges of activations
            for `"int8"`.
        calibration_images: int, number of these images, spread over the split; None: 64.
        check: image or folder of images on which the exported model is compared with the original;
            or prepared data, on whose evaluation split mean IoU, size and time are measured; None:
            no check.
        overwrite: bool, whether to replace an existing file or folder.

    Returns:
        `pathlib.Path` of the exported model, which `kseg.load` reads.

    Raises:
        UserError: if the run cannot be read, the output cannot be written, or the converter cannot
            handle this network.
    """
    for name, value in (("run", run), ("output", output)):
        checking.check_path(name, value)
    for name, value in (("check", check), ("calibrate", calibrate)):
        checking.check_path(name, value, optional=True)
    checking.check_choice("result", result, RESULTS)
    checking.check_choice("quantize", quantize, QUANTIZATIONS)
    checking.check_count("calibration_images", calibration_images)
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
        result=result,
        quantize=quantize,
        calibrate=calibrate,
        calibration_images=calibration_images,
        check=check,
        overwrite=overwrite,
    )
    _export(options)
    return pathlib.Path(output)


def _export(options):
    """Exports a run according to the options."""
    from kseg.commands import export_check
    from kseg.runs import Run

    # Checked before the export, whose result would be lost otherwise.
    check_options(options)
    run = Run.open(options.run)
    run.checkpoint(options.checkpoint)
    check = export_check.plan(options, run) if options.check else None
    calibration = calibration_images(options, run) if options.calibrate else ()
    if options.format == "saved_model":
        segmenter = export_saved_model(options, run)
    elif options.format == "serving":
        segmenter = export_serving(options, run, calibration)
    else:
        segmenter = export_portable(options, run, calibration)
    if check:
        check(segmenter)


def check_options(options):
    """Rejects options that cannot be exported and a target that cannot be written."""
    from kseg import files
    from kseg.errors import UserError, option
    from kseg.serving import checks

    output, kind = pathlib.Path(options.output), options.format
    is_file = kind in _FORMATS.values()
    if kind == "saved_model":
        for name in ("size", "result", "quantize"):
            if getattr(options, name):
                raise UserError(
                    f"{option(name)} is for the formats {', '.join(_KINDS[1:])}. Leave it out"
                    + (f", or use {option('precision')}" if name == "quantize" else "")
                )
    if is_file and options.precision not in (None, "float32"):
        raise UserError(
            f"{option('format', kind)} is written in float32. Received: "
            f"{option('precision', options.precision)}. Leave it out, or use {option('quantize')}"
        )
    if options.size and min(options.size) < 1:
        raise UserError(f"{option('size')} must be positive. Received: {options.size}")
    if kind == "openvino" and options.quantize == "int8":
        raise UserError(
            f"{option('quantize', 'int8')} is for the formats tflite, onnx and serving. OpenVINO "
            "reads the ONNX file"
        )
    if options.quantize == "int8" and not options.calibrate:
        raise UserError(
            f"{option('quantize', 'int8')} needs prepared data: {option('calibrate', 'data/NAME')}"
        )
    for name in ("calibrate", "calibration_images"):
        if getattr(options, name) and options.quantize != "int8":
            raise UserError(f"{option(name)} goes with {option('quantize', 'int8')}")
    if kind in ("onnx", "serving"):
        checks.require("tf2onnx")
    if kind in ("onnx", "serving") and (options.check or options.quantize):
        checks.require("onnxruntime")
    if kind == "tflite" and options.check:
        checks.require("ai_edge_litert")
    if kind == "openvino":
        checks.require("openvino")
        checks.check_openvino_target(output, options.overwrite)
    if is_file:
        checks.check_file_target(output, options.overwrite)
    elif kind == "serving":
        checks.check_model_folders_target(output, options.overwrite)
    else:
        checks.check_folder_target(output, options.overwrite)
    if pathlib.Path(options.run).is_dir():  # Otherwise nothing will be written.
        (files.check_file if is_file else files.check_folder)(output)


def calibration_images(options, run):
    """Reads training images of the data named by `--calibrate`.

    Returns:
        list of arrays `(height, width, channels)`, spread evenly over each split.
    """
    import numpy as np

    import pipelines
    from kseg.commands.console import check_pixels
    from kseg.progress import Progress
    from pipelines import loader

    splits = run.config.data.train_splits
    count = -(-(options.calibration_images or _CALIBRATION_IMAGES) // len(splits))
    manifest = pipelines.read_manifest(options.calibrate)
    check_pixels(run.pixel_format, manifest)
    chosen, images = {}, []
    for split in splits:
        available = manifest.split(split).num_images
        numbers = np.linspace(0, available - 1, min(count, available))
        chosen[split] = np.unique(numbers.astype(int))
    total = sum(map(len, chosen.values()))
    with Progress("reading images for calibration", total) as progress:
        for split, numbers in chosen.items():
            for batch in loader.evaluation_dataset(options.calibrate, split, numbers=numbers):
                images.append(batch["image"][0].numpy())
                progress.advance()
    return images


def export_saved_model(options, run):
    """Writes a SavedModel and returns the segmenter."""
    from kseg import serving
    from kseg.progress import Progress

    with Progress("exporting a SavedModel"):
        segmenter = run.segmenter(options.checkpoint, precision=options.precision)
        serving.export_saved_model(
            segmenter,
            options.output,
            run.classes,
            value_range=run.value_range,
            overwrite=options.overwrite,
        )
    print(f"SavedModel: {options.output} ({len(run.classes)} classes)", flush=True)
    warn_about_precision(options.precision or run.config.train.precision)
    return segmenter


def warn_about_precision(precision):
    """Prints a note if this CPU computes a bfloat16 network more slowly than a float32 one."""
    from kseg.serving.checks import cpu_has_bfloat16

    if precision == "mixed_bfloat16" and cpu_has_bfloat16() is False:
        print(
            "this CPU has no instructions for bfloat16: the network will be slower on it than one "
            "of --precision float32",
            file=sys.stderr,
        )


def export_serving(options, run, calibration):
    """Writes the model folders of TensorFlow Serving and Triton and returns the segmenter."""
    from kseg.progress import Progress
    from kseg.serving.model_folders import export_model_folders

    with Progress("exporting model folders"):
        segmenter = plain = run.segmenter(options.checkpoint, precision=options.precision)
        if (options.precision or run.config.train.precision) != "float32":
            plain = run.segmenter(options.checkpoint, precision="float32")
        name = export_model_folders(
            segmenter,
            plain,
            options.output,
            run.classes,
            run.path.resolve().name,
            size=options.size,
            result=options.result or "logits",
            quantize=options.quantize,
            calibration=calibration,
            value_range=run.value_range,
            overwrite=options.overwrite,
        )
    print(f"model folders of {name!r} ({len(run.classes)} classes):")
    for folder in ("tensorflow_serving", "triton"):
        print(f"  {pathlib.Path(options.output, folder)}", flush=True)
    return segmenter


def export_portable(options, run, calibration):
    """Writes a file for LiteRT, ONNX or OpenVINO and returns the segmenter."""
    from kseg.progress import Progress

    with Progress(f"exporting {options.format}"):
        segmenter = run.segmenter(options.checkpoint, precision="float32")
        size = write_portable(
            options,
            run,
            segmenter,
            options.output,
            quantize=options.quantize,
            calibration=calibration,
        )
    shown = "any size" if size is None else "{} x {}".format(*size)
    shown += f", {options.quantize}" if options.quantize else ""
    print(f"{options.format}: {options.output} ({len(run.classes)} classes, {shown})", flush=True)
    return segmenter


def write_portable(options, run, segmenter, output, *, quantize=None, calibration=()):
    """Writes a file for LiteRT, ONNX or OpenVINO.

    Args:
        options: namespace with `format`, `size`, `result`, `overwrite`.
        run: `kseg.runs.Run`.
        segmenter: its float32 network.
        output: file to write.
        quantize, calibration: as for `kseg.serving.onnx.export_onnx`.

    Returns:
        `(height, width)` of the images, or None for any size.
    """
    from kseg.serving.litert import export_tflite
    from kseg.serving.onnx import export_onnx
    from kseg.serving.openvino import export_openvino

    size, more = options.size, {"calibration": calibration} if quantize == "int8" else {}
    if options.format == "tflite":
        size = size or run.config.data.crop_size
    write = {"tflite": export_tflite, "onnx": export_onnx, "openvino": export_openvino}
    write[options.format](
        segmenter,
        output,
        run.classes,
        size,
        result=options.result or "logits",
        quantize=quantize,
        value_range=run.value_range,
        overwrite=options.overwrite,
        **more,
    )
    return size
