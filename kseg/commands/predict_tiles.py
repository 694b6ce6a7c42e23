"""Labeling of TIFF files that do not fit into memory, for `kseg predict`."""

import contextlib
import time

WINDOW = 512, 512  # Unless windows are given.
# Files of an image; `STEM.tif` holds the class indices.
ENDINGS = {
    "labels": ".tif",
    "colors": "_colors.tif",
    "confidence": "_confidence.tif",
    "probabilities": "_probabilities.tif",
}


def settings(network, options):
    """Returns the settings of the windows, a JSON-able dict.

    Args:
        network: result of `kseg.load`.
        options: namespace of the arguments of `kseg.commands.predict.predict`.
    """
    from kseg.commands import views

    if options.sliding_window is not None:
        return views.window_settings(options, views.crop_size(network, options))
    window = getattr(network, "size", None) or WINDOW
    return {"window": list(window), "overlap": 1 / 3, "blend": "gaussian"}


def build_windows(network, options):
    """Builds the network that sees windows of an image, which each of its views averages.

    Args:
        network, options: as for `settings`.

    Returns:
        `(windows, are_probabilities)`: `kseg.evaluation.bands.BandedWindows`, and whether it
        returns probabilities in place of logits.
    """
    from kseg.commands import views
    from kseg.evaluation.bands import BandedWindows
    from kseg.evaluation.scaled_views import MultiScale
    from kseg.serving.labeling import as_network

    model, num_classes = as_network(network), len(network.classes)
    scales = views.scales_of(options)
    several = scales != [1.0] or options.flip
    if several:
        model = MultiScale(model, num_classes, scales, flip=options.flip)
    batch_size = options.batch_size or views.WINDOWS
    chosen = settings(network, options)
    pixels = getattr(network, "pixel_format", None)
    arguments = {**chosen, "batch_size": batch_size, "pixel_format": pixels}
    return BandedWindows(model, num_classes, **arguments), several


def label_raster(path, paths, windows, are_probabilities, classes, **reading):
    """Labels a TIFF file band by band.

    Args:
        path: `pathlib.Path` of the TIFF file.
        paths: dict from keys of `ENDINGS` to the files to write, tiled TIFF files of uint8 with
            the georeference of the image: class indices; the same with a color table; 255 times the
            probability of each pixel's class; and of all classes, one channel each. Pixels without
            data, if the image marks them, become 255 in the first two. No file appears before all
            of it is written.
        windows, are_probabilities: as returned by `build_windows`.
        classes: `kseg.classes.Classes`.
        **reading: `value_range` and `pixel_format`, as for `pipelines.rasters.open_raster`.

    Raises:
        DataError: if the image cannot be read.
    """
    import numpy as np

    from kseg import files
    from kseg.commands.predict_folder import NO_DATA
    from kseg.progress import Progress
    from pipelines import rasters

    with contextlib.ExitStack() as stack:
        image = stack.enter_context(rasters.open_raster(path, **reading))
        height, width = image.size
        nodata = NO_DATA if image.has_nodata else None
        more = {
            "labels": {"nodata": nodata},
            "colors": {"nodata": nodata, "palette": classes.palette},
            "confidence": {},
            "probabilities": {"channels": len(classes)},
        }
        new = {kind: stack.enter_context(files.replace_file(file)) for kind, file in paths.items()}
        writers = {
            kind: stack.enter_context(
                rasters.create_raster(
                    file, image.size, georeference=image.georeference, **more[kind]
                )
            )
            for kind, file in new.items()
        }
        count = windows.num_windows(image.size)
        start = time.perf_counter()
        progress = stack.enter_context(Progress(f"labeling {path.name}", count, unit="windows"))
        band, first = {}, 0

        def write(last):
            if image.has_nodata:
                band["labels"][image.find_empty(first, last)] = NO_DATA
            for kind, add in writers.items():
                add(band["labels" if kind == "colors" else kind])

        for row, column, scores in windows(image.size, image.read, progress=progress.advance):
            if row != first:
                write(row)
                band, first = {}, row
            for kind, block in _results(scores, are_probabilities, paths).items():
                if kind not in band:
                    band[kind] = np.zeros((len(block), width, *block.shape[2:]), "uint8")
                band[kind][:, column : column + block.shape[1]] = block
        write(height)
    seconds = time.perf_counter() - start
    print(
        f"{width} x {height} pixels in {count} windows, {height * width / seconds / 1e6:.2f} "
        f"million pixels a second: {paths['labels']}"
    )


def _results(scores, are_probabilities, kinds):
    """Returns a dict of uint8 arrays, the labels and the results that the files need."""
    import numpy as np

    from kseg.commands.predict_folder import to_bytes
    from kseg.serving.labeling import check_finite

    check_finite(np.isfinite(scores.sum()))
    results = {"labels": np.argmax(scores, axis=-1).astype("uint8")}
    if {"confidence", "probabilities"} & {*kinds}:
        if not are_probabilities:
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
        if "confidence" in kinds:
            results["confidence"] = to_bytes(scores.max(-1))
        if "probabilities" in kinds:
            results["probabilities"] = to_bytes(scores)
    return results
