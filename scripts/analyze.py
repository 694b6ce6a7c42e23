"""Analyses a run: python scripts/analyze.py --run runs/quickstart --what features

features: how well the features just before the classifier stay together within a class and apart
between classes (alignment A, uniformity U and U_l of Sung et al., CVPR 2024, supplement Sec. 2).
"""

import argparse
import dataclasses
import json

import _common


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", required=True, choices=sorted(ANALYSES))
    parser.add_argument("--run", help="folder that scripts/train.py wrote")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    parser.add_argument("--data", help="prepared folder; default: that of the run")
    parser.add_argument("--split", help="default: that which the run evaluates on")
    parser.add_argument(
        "--samples", type=int, default=2000, help="pixels of each class that A is taken from"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--raw", action="store_true", help="features as they are; else scaled to unit norm"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    ANALYSES[options.what](options)
    return 0


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run's network and the images that it is looked at with."""

    run: object
    split: str
    segmenter: object
    batches: object


def open_subject(options):
    """Opens what `--run`, `--checkpoint`, `--data` and `--split` name."""
    import keras

    import pipelines
    from kseg.errors import UserError
    from kseg.runs import Run
    from pipelines import loader

    if not options.run:
        raise UserError(f"--what {options.what} needs --run, a folder of scripts/train.py")
    run = Run.open(options.run)
    data = run.config.data
    split = options.split or data.eval_split
    folder = options.data or data.folder
    _common.check_classes(run.classes.names, pipelines.read_manifest(folder))
    batches = loader.evaluation_dataset(folder, split, batch_size=data.eval_batch_size)
    keras.config.set_dtype_policy(run.config.train.precision)
    return Subject(run, split, run.segmenter(options.checkpoint), batches)


def features(options):
    """Prints A, U and U_l, and writes them to the run's evaluation/features.json."""
    from kseg.analysis.features import feature_statistics
    from kseg.errors import UserError

    if options.samples < 2:
        raise UserError(f"--samples must be at least 2. Received: {options.samples}")
    subject = open_subject(options)
    classes = subject.run.classes
    found = feature_statistics(
        subject.segmenter,
        subject.batches,
        len(classes),
        unit_norm=not options.raw,
        samples_per_class=options.samples,
        seed=options.seed,
    )
    values = found.to_dict(classes.names)
    width = max(map(len, classes.names)) + 2
    print(f"{'class':<{width}}{'A':>8}{'samples':>9}")
    for name, row in values["classes"].items():
        shown = "-" if row["A"] is None else f"{row['A']:.4f}"
        print(f"{name:<{width}}{shown:>8}{row['num_samples']:>9}")
    print(f"A: exact on a sample, at most {options.samples} pixels a class, seed {options.seed}")
    print("  ".join(f"{key} {value:.4f}" for key, value in values.items() if key != "classes"))
    settings = {
        "split": subject.split,
        "checkpoint": options.checkpoint,
        "unit_norm": not options.raw,
        "samples_per_class": options.samples,
        "seed": options.seed,
    }
    file = subject.run.path / "evaluation" / "features.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**settings, **values}, indent=2) + "\n")
    print(f"features:  {file}")


# Each takes the options, prints, and writes into the run's folder.
ANALYSES = {"features": features}


if __name__ == "__main__":
    _common.run(main)
