"""Shows what a run has learned, in numbers and pictures.

    python scripts/analyze.py --run runs/quickstart --what report
    python scripts/analyze.py --runs runs/baseline runs/contrast --what panels

complexity    what contrast costs in training and in use: weights, FLOPs, time and memory with and
              without it (supplement Table 7); of a --config, too
curves        how the training went: loss terms, learning rate, scores
failures      the images with the lowest mean IoU, and the most frequent confusions of classes
features      how well the features just before the classifier stay together within a class and
              apart between classes (alignment A, uniformity U and U_l of Sung et al., CVPR 2024,
              supplement Sec. 2)
gradients     how strongly each loss term pulls on the weights, relative to cross-entropy, and
              whether in the same direction, on training batches
tsne          t-SNE of pixels' features and of region centers; the same points with pictures for
              TensorBoard's Embedding Projector
feature-maps  the features' principal components as colors
grad-cam      the pixels that speak for each class, on the image that has most of it
panels        several runs side by side, on the images where the last differs most from the first
report        all of it in one HTML file that needs nothing else

Pictures are PNG files in the folder `analysis` of the run. Needs pip install 'kseg[analysis]'.
"""

import argparse

from kseg.commands import analyses, complexity, console

# Each function takes the options, prints results, and writes files into the run's folder.
ANALYSES = {
    "complexity": complexity.complexity,
    "curves": analyses.curves,
    "failures": analyses.failures,
    "feature-maps": analyses.feature_maps,
    "features": analyses.features,
    "grad-cam": analyses.grad_cam,
    "gradients": analyses.gradients,
    "panels": analyses.panels,
    "report": analyses.report,
    "tsne": analyses.tsne,
}


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("--what", required=True, choices=sorted(ANALYSES))
    parser.add_argument("--run", metavar="FOLDER", help="folder of a run, such as runs/quickstart")
    parser.add_argument(
        "--runs", nargs="+", metavar="FOLDER", default=[], help="panels: two or more, in order"
    )
    console.add_checkpoint(parser, text="; gradients: latest (default) or a step")
    parser.add_argument(
        "--data", metavar="FOLDER", help="prepared data; default: that of the (first) run"
    )
    parser.add_argument(
        "--split", help="split of the data; default: data.eval_split of the (first) run"
    )
    parser.add_argument(
        "--images", type=int, default=6, metavar="N", help="number of images to show; default: 6"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=2000,
        metavar="N",
        help="features: pixels of each class that A is taken from; default: 2000",
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=10,
        metavar="N",
        help="gradients: number of training batches; default: 10",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=2500,
        metavar="N",
        help="tsne: pixels, and regions, of all classes together; default: 2500",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        metavar="STAGE",
        default=["c5", "features"],
        help="grad-cam: feature maps, such as c4; default: c5 features",
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="grad-cam: classes; default: all that occur"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the samples and of the t-SNE; default: 0"
    )
    parser.add_argument(
        "--raw", action="store_true", help="features as they are; default: scaled to unit norm"
    )
    group = parser.add_argument_group("complexity")
    group.add_argument("--config", metavar="FILE", help="JSON, in place of a run")
    console.add_overrides(
        group, "change a key of the config, such as data.batch_size=2; may be repeated"
    )
    group.add_argument("--rounds", type=int, default=5, help="rounds of timing; default: 5")
    group.add_argument(
        "--output",
        metavar="FILE",
        help="JSON to write; default for a run: its evaluation/complexity.json",
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    _run(options)
    return 0


def _run(options):
    if options.checkpoint is None:
        options.checkpoint = "latest" if options.what == "gradients" else "best"
    return ANALYSES[options.what](options)


def analyze(what, run=None, **options):
    """Analyzes what a run has learned; prints results and writes files into the run's folder.

    Args:
        what: str, one of `ANALYSES`.
        run: folder of a run. Panels take `runs` instead; complexity takes `run` or `config`.
        **options: options of `kseg analyze --help`, with `_` for `-`: `runs`, `checkpoint`,
            `data`, `split`, `images`, `samples`, `batches`, `points`, `stages`, `classes`, `seed`,
            `raw`, `config`, `overrides`, `rounds`, `output`.

    Returns:
        For features, failures and complexity: dict, the content of the JSON file; for gradients:
        its `terms`. For panels: dict from image to the mean IoU of each run. For tsne: dict from
        title to `(points, classes)`.
        For curves, feature-maps and report: path of the file. For grad-cam: path of the folder.

    Raises:
        UserError: if an option, the run or the data cannot be used.
    """
    from kseg.errors import UserError

    settings = vars(parse_arguments(["--what", what])) if what in ANALYSES else {}
    unknown = sorted(set(options) - set(settings) | ({what} - set(ANALYSES)))
    if unknown:
        known = f"{sorted(ANALYSES)} and options {sorted(set(settings) - {'what', 'run'})}"
        raise UserError(f"`analyze` knows {known}. Received: {', '.join(unknown)}")
    given = {**options, "run": None if run is None else str(run)}
    return _run(argparse.Namespace(**{**settings, **given}))
