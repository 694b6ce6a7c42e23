r"""Loads published weights into a network of kseg and writes them as Keras weights.

    python scripts/convert_weights.py --source hf://timm/resnet50.tv_in1k \\
        --backbone resnet50 --output resnet50.weights.h5

Name the written file in a config as `model.backbone.weights` (or as `model.weights`, if it holds a
whole network, made with --config). Sources are described in `kseg.weights.load_weights`.
"""

import argparse
import math
import pathlib

from kseg.commands import console
from kseg.json_text import parse_json

SUFFIX = ".weights.h5"


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    parser.add_argument(
        "--source",
        required=True,
        help="a file, hf://owner/name[@revision][/file], or keras_cv://preset",
    )
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--backbone", metavar="NAME", help="a backbone, such as resnet50")
    network.add_argument(
        "--config", help="JSON file of an experiment: its whole network, or the part that is loaded"
    )
    console.add_overrides(
        parser, "an argument of the backbone, such as variant=v1d; with --config, a key of it"
    )
    parser.add_argument(
        "--backbone-only", action="store_true", help="with --config: leave the head out"
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="REGEX",
        help="arrays that may stay unused, by name prefix; may be repeated",
    )
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="REGEX",
        help="weights that may stay as initialized, by path prefix",
    )
    parser.add_argument("--output", required=True, help=f"file to write, *{SUFFIX}")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the command and returns its exit code."""
    _convert(parse_arguments(arguments))
    return 0


def convert(
    source,
    output,
    *,
    backbone=None,
    config=None,
    overrides=(),
    backbone_only=False,
    ignore=(),
    allow_missing=(),
    overwrite=False,
):
    """Loads published weights into a network and writes them as Keras weights.

    Args:
        source: path of a file, `hf://owner/name[@revision][/file]`, or `keras_cv://preset`.
        output: file to write, `*.weights.h5`.
        backbone: str, name of a backbone; alternative to `config`.
        config: JSON file or name of an experiment. Its whole network is written, or only the
            backbone if the source has no weights for the rest.
        overrides: strings `"key=value"`: arguments of the backbone, or keys of the config.
        backbone_only, ignore, allow_missing: as for `kseg.weights.load_weights`.
        overwrite: bool, whether to replace an existing file.

    Returns:
        `kseg.weights.LoadReport`.

    Raises:
        UserError: if the source does not fit the network, or a file cannot be read or written.
    """
    if (backbone is None) == (config is None):
        from kseg.errors import UserError

        raise UserError(
            f"One of `backbone` and `config` must be given. Received: {backbone=}, {config=}"
        )
    return _convert(argparse.Namespace(**locals()))


def _convert(options):
    """Converts weights according to the options and returns the `LoadReport`."""
    from kseg import files
    from kseg.errors import UserError
    from kseg.progress import Progress
    from kseg.weights.hub import check_source

    output = pathlib.Path(options.output)
    if not output.name.endswith(SUFFIX):
        raise UserError(f"--output must end in {SUFFIX}. Received: {output}")
    if output.exists() and not options.overwrite:
        raise UserError(f"{output} exists already. Use --overwrite to replace it")
    if not output.parent.is_dir():
        raise UserError(f"There is no folder {output.parent} to write {output.name} to")
    files.check_file(output)
    check_source(options.source)
    if options.backbone:
        build = backbone_builder(options)
    else:
        build = segmenter_builder(options)

    from kseg.weights import load_weights

    with Progress("building the network"):
        model = build()
    with Progress("loading the weights"):
        report = load_weights(
            model,
            options.source,
            backbone_only=options.backbone_only,
            ignore=options.ignore,
            allow_missing=options.allow_missing,
        )
    print(report, flush=True)
    written = model if options.backbone else loaded_part(model, report)
    with Progress(f"writing {output}"):
        save(written, output)
    print(f"wrote {output}: {describe(written)}")
    return report


def backbone_builder(options):
    """Checks the backbone named on the command line; returns a function that builds it."""
    from kseg.config.schema import backbone_names
    from kseg.errors import UserError

    arguments = dict(map(parse_override, options.overrides))
    names = backbone_names()
    if options.backbone not in names:
        raise UserError(
            f"There is no backbone {options.backbone!r}. Choose from {', '.join(sorted(names))}"
        )

    def build():
        from kseg.backbones import build_backbone

        try:
            return build_backbone(options.backbone, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"The backbone {options.backbone!r} cannot be built: {error}") from None

    return build


def parse_override(text):
    """Splits `key=value`; the value is parsed as JSON, or else kept as a string."""
    from kseg.errors import UserError

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"--set takes key=value. Received: {text!r}. Use variant=v1d")
    try:
        return key, parse_json(value)
    except ValueError:
        return key, value


def segmenter_builder(options):
    """Reads a config; returns a function that builds its network without projectors."""
    from kseg import config as config_module
    from pipelines import datasets, manifest, read_manifest

    config = config_module.load(options.config, options.overrides)
    if config.data.dataset == "folder":  # The classes are known only from the prepared data.
        known = read_manifest(config.data.folder)
    else:
        known = datasets.get(config.data.dataset).taxonomy()
    pixels = None
    if manifest.exists(config.data.folder):
        pixels = manifest.parse_manifest(config.data.folder).pixel_format

    def build():
        from kseg.segmenters import segmenter_from_config

        return segmenter_from_config(
            config.model,
            len(known.class_names),
            precision=config.train.precision,
            pixel_format=pixels,
        )

    return build


def loaded_part(segmenter, report):
    """Returns the segmenter, or only its backbone if nothing else was loaded.

    This way no random weights are written.
    """
    from kseg.backbones import Backbone

    backbone = next(layer for layer in segmenter.layers if isinstance(layer, Backbone))
    inside = {weight.path for weight in backbone.weights}
    return backbone if set(report.loaded.values()) <= inside else segmenter


def describe(model):
    """Describes a network by its name and size."""
    values = sum(math.prod(weight.shape) for weight in model.weights)
    return f"{model.name}, {len(model.weights)} weights, {values / 1e6:.2f} M values"


def save(model, output):
    """Writes the weights atomically: a killed run leaves either the old file or the new one."""
    from kseg import files

    with files.replace_file(output) as new:
        model.save_weights(new)
