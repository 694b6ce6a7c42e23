"""Writes a trained run as a SavedModel.

    python scripts/export.py --run runs/quickstart --output model

The SavedModel takes RGB images of any size, uint8 or float32 in 0 to 255, and gives logits of that
size. Names and colours of the classes are in it. Its signatures are described at
`kseg.export.export`.
"""

import argparse

import _common


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="folder of a run, such as runs/quickstart")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), latest, or a step such as 3000"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16"),
        help="of the network; default: that of its training. The logits are float32 either way",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a SavedModel that is there"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    import keras

    from kseg.export import export
    from kseg.runs import Run

    run = Run.open(options.run)
    keras.config.set_dtype_policy(options.precision or run.config.train.precision)
    export(
        run.segmenter(options.checkpoint), options.output, run.classes, overwrite=options.overwrite
    )
    print(f"SavedModel: {options.output} ({len(run.classes)} classes)")
    return 0


if __name__ == "__main__":
    _common.run(main)
