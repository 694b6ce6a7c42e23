r"""Labels images or a video with a run, a SavedModel, or a file for LiteRT or ONNX.

    python scripts/predict.py --run runs/quickstart --input photos --output labels
    python scripts/predict.py --saved-model model --input photos --output labels --resume
    python scripts/predict.py --saved-model model --input drive.mp4 --output labels
    python scripts/predict.py --run runs/quickstart --input photos --output labels \
        --sliding-window 512 512 --blend gaussian --confidence --colors

For a model with a fixed image size (LiteRT, some ONNX files), each image is resized to that size
and its labels are resized back.

For each image STEM.jpg it writes STEM.png, one channel of class indices from 0, and
STEM_overlay.png, the classes' colors over the image; further files by the options below. A folder
is searched with its subfolders, which the output mirrors; links are followed; names that begin with
a dot, and the folders __MACOSX and @eaDir, are skipped;
predictions.json records the settings and the classes. Images are read by `pipelines.pictures`, as
in the preparation of data: 8-bit RGB, rotated upright according to EXIF, gray repeated,
transparency dropped. Pixels of a TIFF without data (its "no data" value, outside of its mask, or of
opacity 0, see docs/large_pictures.md) get the label 255. Images that cannot be read, or need more
memory than is available, are listed with the reason; the others are labeled. Files appear only once
they are complete.

A TIFF file that does not fit into memory, also a BigTIFF or GeoTIFF, is read, labeled and written
in tiles: overlapping windows (by default 512 x 512, blended by a Gaussian), and tiled TIFF files
with the georeference of the image: STEM.tif, STEM_confidence.tif, STEM_probabilities.tif (255 times
the probability, a channel for each class) and STEM_colors.tif; no overlay.

For a video STEM.mp4 (or an animated GIF) it writes STEM_overlay.mp4, the colors over each frame,
upright, without sound, with the same frame rate (at most 1 % of a frame off) and size. For an odd
size, the last row or column is repeated, because the codec supports only even sizes.
"""

import argparse
import pathlib
import sys

from kseg.commands import checking, console, views
from kseg.commands.predict_folder import ENDINGS, LEGEND, SUFFIXES, plan
from kseg.commands.predict_video import VIDEO_SUFFIXES, is_video, label_video, plan_video


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    console.add_model(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help=f"image, folder of images ({' '.join(SUFFIXES)}), or video "
        f"({' '.join(VIDEO_SUFFIXES)})",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    console.add_value_range(
        parser,
        ", as for prepare_data.py; default: those of the training data, which the model knows",
    )
    parser.add_argument(
        "--batch-size",
        type=console.positive,
        help="images of equal size, or windows, in a batch; default: 8 images, fewer above a "
        "total of 2^20 pixels; 4 windows",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="for a folder: skip images whose files an earlier call with the same model and "
        "settings has written since they changed",
    )
    views.add_arguments(
        parser.add_argument_group("inference"), windows=" pixels, in each size of the image"
    )
    parser.add_argument(
        "--tiles",
        action="store_true",
        help="read, label and write all TIFF files in tiles; default: those that do not fit into "
        "memory. Needs kseg[raster]",
    )
    group = parser.add_argument_group("files")
    group.add_argument(
        "--confidence",
        action="store_true",
        help="also write STEM_confidence.png, 255 times the probability of each pixel's class",
    )
    group.add_argument(
        "--probabilities",
        action="store_true",
        help="also write STEM_probabilities.npy, float16 (height, width, classes)",
    )
    group.add_argument(
        "--colors",
        action="store_true",
        help="also write STEM_colors.png, the color of each pixel's class, and one legend.png",
    )
    group.add_argument(
        "--no-overlay", dest="overlay", action="store_false", help="write no STEM_overlay.png"
    )
    options = parser.parse_args(arguments)
    console.check_model(parser, options)
    views.check(options, parser.error)
    return options


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = vars(parse_arguments(arguments))
    run, saved_model, checkpoint = (options.pop(n) for n in ("run", "saved_model", "checkpoint"))
    options["checkpoint"] = (checkpoint or "best") if run else None
    options["value_range"] = options.pop("range")
    predict(run or saved_model, options.pop("input"), options.pop("output"), **options)
    return 0


def predict(
    model,
    source,
    output,
    *,
    checkpoint=None,
    value_range=None,
    sliding_window=None,
    overlap=None,
    blend=None,
    scales=None,
    flip=False,
    confidence=False,
    probabilities=False,
    colors=False,
    overlay=True,
    batch_size=None,
    resume=False,
    tiles=False,
):
    """Labels images or a video and writes class indices and overlays.

    Args:
        model: path of a model written by `kseg.export`: a SavedModel folder, or a file for LiteRT
            or ONNX; with `checkpoint`, the folder of a run.
        source: image, folder of images, or video.
        output: folder to write to.
        checkpoint: `"best"`, `"latest"` or a step of a run; None: `model` is not a run.
        value_range: `(low, high)`, the values mapped to black and white in images of more than 8
            bits per channel; None: those of the training data.
        sliding_window: `(height, width)`, pixels; `[]`: the crop size of the run, or the image size
            of a model with a fixed one; None: whole images.
        overlap: float in [0, 1), overlap of neighboring windows; None: one third.
        blend: `"flat"`, `"gaussian"` or `"center"`, weights of overlapping windows, see
            `kseg.evaluation.sliding_window.SlidingWindow`; None: `"flat"`.
        scales: floats; `[]`: 0.5, 0.75, ... 2.0; None: the original size only.
        flip: bool, whether to average over each image and its mirror image.
        confidence: bool, whether to write `STEM_confidence.png`, uint8 `(height, width)`: 255 times
            the probability of each pixel's class.
        probabilities: bool, whether to write `STEM_probabilities.npy`, float16 `(height, width,
            num_classes)`.
        colors: bool, whether to write `STEM_colors.png`, the colors of the classes, and
            `legend.png`.
        overlay: bool, whether to write `STEM_overlay.png`, the colors over the image.
        batch_size: int, images of equal size, or windows, in a batch; None: at most 8 images, fewer
            above a total of 2^20 pixels; 4 windows.
        resume: bool, whether to skip images of a folder whose files an earlier call with the same
            model and settings has written.
        tiles: bool, whether to read, label and write all TIFF files in tiles; False: only those
            that do not fit into memory. Scales and mirror images are then those of each window.

    Returns:
        list of `pathlib.Path`, the images of class indices, also of skipped images; for a video,
        the overlay.

    Raises:
        UserError: if arguments conflict, an input cannot be read or an output cannot be written, or
            some images could not be labeled. The other images are still labeled.
    """
    options = argparse.Namespace(**locals())
    from kseg.commands.networks import check_model, load, memory_needs, pixel_format_of

    _check(options)
    source, output = pathlib.Path(source), pathlib.Path(output)
    video = source.is_file() and is_video(source)
    pixel_format = pixel_format_of(model, checkpoint)
    if pixel_format is not None and (video or value_range is not None):
        given = f"the video {source}" if video else "--range"
        checking.refuse(f"The model takes {pixel_format}, which it knows: {given} is for 8-bit RGB")
    if video:
        target = plan_video(source, output)
        for name in ("confidence", "probabilities", "colors", "resume", "tiles"):
            if getattr(options, name):
                checking.refuse(f"--{name} goes with images, {source} is a video")
        if not overlay:
            checking.refuse(f"A video gets an overlay only. Received: {source} and --no-overlay")
    else:
        suffixes = SUFFIXES + ((".npy",) if pixel_format else ())
        jobs = plan(source, output, [kind for kind in ENDINGS if getattr(options, kind)], suffixes)
        if tiles and source.is_file() and not jobs[0].tiles:
            rule = "--tiles goes with TIFF files, and another folder than that of the image"
            is_tiff = source.suffix.lower() in (".tif", ".tiff")
            convert = f". Convert it: gdal_translate -co TILED=YES {source} {source.stem}.tif"
            checking.refuse(f"{rule}. Received: {source}{'' if is_tiff else convert}")
        if resume and not source.is_dir():
            checking.refuse(f"--resume goes with a folder of images, --input is {source}")

    from kseg import files
    from kseg.progress import Progress
    from pipelines import pictures, rasters

    if tiles:
        rasters.check_installed()
    value_range = value_range and tuple(value_range)
    pictures.check_range(value_range)
    if video:
        files.check_file(target)
    else:
        files.check_contents(output)
    if checkpoint is None:
        check_model(pathlib.Path(model))
    with Progress("loading the model"):
        network = load(model, checkpoint)
    if value_range is not None and network.value_range not in (None, value_range):
        print(
            f"note: the model was trained with --range {_shown(network.value_range)}, not "
            f"{_shown(value_range)}",
            file=sys.stderr,
        )
    value_range = value_range or network.value_range
    label, settings = build_labeler(network, options)
    needs = views.memory_needs(memory_needs(network), options, settings, len(network.classes))
    if needs is not None and not video and options.batch_size and "window" not in settings:
        needs = _of_batch(needs, min(options.batch_size, len(jobs)))
    palette = network.classes.palette
    if video:
        label_video(source, target, lambda x: label(x[None])["labels"][0], palette, needs)
        return [target]
    files.make_folder(output)
    return label_folder(jobs, label, network, needs, value_range, settings, options)


def _of_batch(needs, count):
    """Returns `needs`, a function from `(height, width)` to bytes or None, for several images."""
    return lambda size: (needed := needs(size)) and count * needed


def build_labeler(network, options):
    """Builds the function that labels batches with the views and results of the options.

    Args:
        network: result of `kseg.load`.
        options: namespace of the arguments of `predict`.

    Returns:
        `(label, settings)`: function as `kseg.commands.predict_folder.label_images` takes it; and
        the settings of the views as a JSON-able dict.
    """
    from kseg.serving.labeling import labeler

    settings, wrap = {}, None
    crop_size = views.crop_size(network, options)
    if options.sliding_window is not None or options.flip or views.scales_of(options) != [1.0]:

        def wrap(model):
            batch_size = options.batch_size or views.WINDOWS
            classes = len(network.classes)
            model, found = views.wrap(model, classes, options, crop_size, batch_size)
            settings.update(found)
            return model, "scales" in found

    kinds = [kind for kind in ("confidence", "probabilities") if getattr(options, kind)]
    found = labeler(network, **dict.fromkeys(kinds, True), wrap=wrap)

    def label(images):
        results = found(images)
        results = results if isinstance(results, tuple) else (results,)
        return dict(zip(("labels", *kinds), results, strict=True))

    return label, settings


def label_folder(jobs, label, network, needs, value_range, settings, options):
    """Labels images, except those that an earlier call has finished.

    Args:
        jobs: list of `Job`.
        label: as for `label_images`.
        network: result of `kseg.load`.
        needs: as for `find_too_large`.
        value_range: as for `pipelines.pictures.read`.
        settings: settings of the views, a JSON-able dict.
        options: namespace of the arguments of `predict`.

    Returns:
        list of `pathlib.Path`, the images of class indices.

    Raises:
        UserError: if some images could not be labeled.
    """
    from kseg.commands import predict_folder
    from kseg.errors import UserError
    from kseg.evaluation import drawing

    output, left, classes = pathlib.Path(options.output), jobs, network.classes
    if pathlib.Path(options.source).is_dir() or (output / predict_folder.RECORD).is_file():
        settings = {
            "input": str(pathlib.Path(options.source).resolve()),
            "model_sha256": predict_folder.digest(_weights_file(options)),
            "value_range": list(value_range) if value_range else None,
            **dict.fromkeys(("window", "overlap", "blend", "scales"), None),
            "flip": options.flip,
            "tiles": options.tiles,
            **settings,
        }
        since = predict_folder.start(output, settings, classes, options.resume)
        if options.resume:
            left = [job for job in jobs if not predict_folder.is_finished(job, since)]
            print(f"{len(jobs) - len(left)} of {len(jobs)} images are finished: skipped")
    if options.colors:
        drawing.write_png(output / LEGEND, drawing.legend(classes.names, classes.palette))
    found = predict_folder.find_too_large(left, needs)
    pixels = getattr(network, "pixel_format", None)
    # A TIFF in tiles needs memory for only a few rows of windows.
    large = [job for job in left if job.tiles and (options.tiles or job.image in found)]
    unlabeled = {job.image: found[job.image] for job in left if job.image in found}
    for job in large:
        unlabeled.pop(job.image, None)
    for image, reason in unlabeled.items():
        print(f"{image}: {reason}", file=sys.stderr)
    whole = [job for job in left if job not in large and job.image not in unlabeled]
    if len(large) < len(jobs):
        others = len(jobs) - len(large)
        arguments = whole, others, label, classes.palette, value_range, unlabeled, output
        predict_folder.label_images(*arguments, batch_size=options.batch_size, pixel_format=pixels)
    label_large(large, network, value_range, unlabeled, options)
    if unlabeled:
        shown = [f"{path} ({reason})" for path, reason in unlabeled.items()]
        more = f"; and {len(shown) - 5} more" if len(shown) > 5 else ""
        others = ". The others are labeled" if len(shown) < len(jobs) else ""
        raise UserError(
            f"{len(shown)} of {len(jobs)} images could not be labeled: "
            f"{'; '.join(shown[:5])}{more}{others}"
        )
    return [predict_folder.label_file(job) for job in jobs]


def label_large(jobs, network, value_range, unlabeled, options):
    """Labels TIFF files in tiles, one after another.

    Args:
        jobs: list of `Job` that have `tiles`.
        network: result of `kseg.load`.
        value_range: as for `pipelines.rasters.open_raster`.
        unlabeled: dict from an image to the reason; images that fail are added.
        options: namespace of the arguments of `predict`.
    """
    if not jobs:
        return
    from kseg.commands import predict_folder, predict_tiles
    from kseg.errors import UserError
    from pipelines import rasters

    try:
        rasters.check_installed()
    except UserError as error:
        unlabeled.update((job.image, str(error)) for job in jobs)
        return
    windows, are_probabilities = predict_tiles.build_windows(network, options)
    chosen = predict_tiles.settings(network, options)
    height, width = chosen["window"]
    images = "1 image" if len(jobs) == 1 else f"{len(jobs)} images"
    print(
        f"{images} in tiles: windows of {width} x {height}, overlap "
        f"{chosen['overlap']:.3g}, {chosen['blend']}"
    )
    pixels = getattr(network, "pixel_format", None)
    for job in jobs:
        reason = predict_folder.reason_of(
            predict_tiles.label_raster,
            *(job.image, job.tiles, windows, are_probabilities, network.classes),
            value_range=value_range,
            pixel_format=pixels,
        )
        if reason is not None:
            unlabeled[job.image] = reason


def _check(options):
    """Raises a UserError for arguments of a wrong type or that conflict."""
    for name in ("model", "source", "output"):
        checking.check_path(name, getattr(options, name))
    checking.check_checkpoint("checkpoint", options.checkpoint)
    checking.check_numbers("value_range", options.value_range, "(low, high), or None", length=2)
    checking.check_count("batch_size", options.batch_size)
    views.check_types(options)
    views.check(options, checking.refuse)


def _weights_file(options):
    """Returns the file, or folder of a SavedModel, that holds the weights."""
    if options.checkpoint is None:
        return pathlib.Path(options.model)
    from kseg.runs import Run

    return pathlib.Path(Run.open(options.model).checkpoint(options.checkpoint))


def _shown(value_range):
    return " ".join(f"{value:g}" for value in value_range)
