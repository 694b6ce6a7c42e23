"""Runs a study: python scripts/study.py --study configs/studies/camvid.json

Trains every arm of the study with every seed, one run after the other, and prints and writes the
table: means, paired differences to the baseline with intervals, costs. It can be stopped at any
time; the same command resumes. docs/studies.md tells the rest.
"""

import argparse
import re

import _common


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", required=True, help="JSON file, see docs/studies.md")
    parser.add_argument("--output", help="folder of the results; default: studies/<name>")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="these instead of the study's"
    )
    parser.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="only every N-th run, from the I-th on: for array jobs of Slurm or Kubernetes",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="spread the runs over the Ray cluster at this address, one GPU each; local: on this "
        "machine; needs kseg[ray]",
    )
    parser.add_argument(
        "--table", action="store_true", help="train nothing: the table of what there is"
    )
    parser.add_argument(
        "--keep-runs", action="store_true", help="keep the folders of finished runs"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    from kseg.commands import study

    try:
        found = study.run_study(
            options.study,
            output=options.output,
            arms=options.arms,
            seeds=options.seeds,
            part=options.part,
            ray=options.ray,
            train=not options.table,
            keep_runs=options.keep_runs,
            report=lambda line: print(line, flush=True),
        )
    except study.Interrupted as stop:
        print(stop)
        return 130
    print(found["table"])
    for file in found["files"]:
        print(f"written: {file}")
    if found["missing"]:
        print(f"{len(found['missing'])} runs are missing")
    return 0


def _part(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, is {text}")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    _common.run(main)
