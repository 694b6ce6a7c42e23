"""`kseg prepare folder --tile`: time and peak memory by size and format of a large image.

Each line is one call of the command, with its start, on a made-up aerial image and its mask, both
compressed. `MB` is the peak of the resident memory, which must not grow with the height.
"""

import contextlib
import io
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import _measuring
import numpy as np

CLASSES, FIELD = 6, 250
_TILES = {"tiled": True, "blockxsize": 256, "blockysize": 256}
# Channels and type of the image, the form of its file, and options of the command.
FORMS = {
    "RGB in tiles, PNG records": (3, "uint8", _TILES, []),
    "RGB in tiles, JPEG records": (3, "uint8", _TILES, ["--image-format", "jpeg"]),
    "4 x 16 bits in tiles": (4, "uint16", _TILES, ["--channels", "4"]),
    "4 x 16 bits in strips": (4, "uint16", {}, ["--channels", "4"]),
}


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["2000x20000", "20000x20000"],
        metavar="HEIGHTxWIDTH",
        help="images; default: %(default)s",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="FORM", help=f"default: all of {', '.join(FORMS)}"
    )
    parser.add_argument("--tile", type=_measuring.positive, default=1024)
    toy = {"sizes": ["60x40"], "tile": 32}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints a line for each size and form."""
    print(f"{'image':<14}{'form':<30}{'MB':>8}{'CPU s':>9}{'Mpixel/CPU s':>14}{'MB on disk':>12}")
    for size in arguments.sizes:
        height, width = map(int, size.split("x"))
        for form in _measuring.choose(arguments.only, FORMS):
            found = _measuring.in_new_process(measure, arguments, size=size, form=form)
            speed = height * width / 1e6 / found["cpu"]
            print(
                f"{size:<14}{form:<30}{found['peak']:>8.0f}{found['cpu']:>9.1f}{speed:>14.1f}"
                f"{found['bytes'] / 1e6:>12.1f}",
                flush=True,
            )


def measure(arguments):
    """Creates an image and prepares it by the command."""
    channels, dtype, layout, options = FORMS[arguments.form]
    height, width = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        source, output = pathlib.Path(folder, "source"), pathlib.Path(folder, "out")
        write_source(source, height, width, channels, dtype, layout)
        flags = ["folder", "--source", source, "--output", output, "--tile", arguments.tile]
        flags += ["--split", "train=0.8", "--split", "val=0.2", "--split-tiles", *options]
        used = call(list(map(str, flags)), arguments.toy)
        return {**used, "bytes": sum(file.stat().st_size for file in output.glob("*.tfrecord"))}


def call(flags, toy):
    """Runs the command; returns the peak of its memory in MB and its processor seconds."""
    if toy:
        from kseg.commands import prepare

        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            prepare.main(flags)
        return {"peak": 0, "cpu": time.process_time() - start}
    command = [sys.executable, "-m", "kseg.commands", "prepare", *flags]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak": used.ru_maxrss * unit / 1e6, "cpu": used.ru_utime + used.ru_stime}


def write_source(folder, height, width, channels, dtype, layout):
    """Writes fields with noise, 12 bits if deep, their mask and a class table."""
    import rasterio
    from rasterio.transform import from_origin

    rng = np.random.default_rng(0)
    scale = 1 if dtype == "uint8" else 16
    shades = rng.integers(40, 200, (CLASSES, channels, 1, 1)) * scale
    noise = rng.normal(0, 5 * scale, (channels, FIELD, width)).astype("int16")
    place = {"crs": "EPSG:25832", "transform": from_origin(5e5, 5.5e6, 0.1, 0.1)}
    profile = {"driver": "GTiff", "height": height, "width": width, "compress": "deflate"}
    profile |= {"zlevel": 1, "bigtiff": "if_safer", **place, **layout}
    files = {}
    with rasterio.Env(GDAL_CACHEMAX=256 << 20), contextlib.ExitStack() as stack:
        for kind, count, form in (("images", channels, dtype), ("labels", 1, "uint8")):
            (folder / kind).mkdir(parents=True)
            path = folder / kind / "mosaic.tif"
            file = rasterio.open(path, "w", count=count, dtype=form, **profile)
            files[kind] = stack.enter_context(file)
        for first in range(0, height, FIELD):
            rows = min(FIELD, height - first)
            fields = rng.integers(0, CLASSES, -(-width // FIELD)).repeat(FIELD)[:width]
            pixels = np.stack([shades[label, :, 0] for label in fields], axis=-1) + noise[:, :rows]
            window = rasterio.windows.Window(0, first, width, rows)
            files["images"].write(np.clip(pixels, 1, 255 * scale).astype(dtype), window=window)
            labels = np.broadcast_to(fields.astype("uint8"), (rows, width))
            files["labels"].write(labels, 1, window=window)
    rows = [f"class{label},{label}\n" for label in range(CLASSES)]
    (folder / "classes.csv").write_text("name,value\n" + "".join(rows))


if __name__ == "__main__":
    from kseg.commands import console

    console.run(main)
