"""Initial weights of a new run: pretrained ones, or random with a warning."""

import sys

from kseg.errors import UnavailableError, option
from kseg.weights import hub
from kseg.weights.published import differs_from_published


def check_pretrained(model):
    """Rejects weights that are known to be unavailable before the segmenter is built.

    Args:
        model: `kseg.config.Model`.

    Raises:
        UserError: as `load_pretrained`.
    """
    source = model.weights or model.backbone.weights
    if source is None:
        return
    try:
        hub.check_source(source)
    except UnavailableError as error:
        if model.backbone.weights_if_missing == "fail":
            raise _with_way_out(error, model) from None


def load_pretrained(segmenter, model):
    """Loads the weights that a config names, and prints what was loaded.

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`, freshly initialized.
        model: `kseg.config.schema.Model`. Its `weights` cover the whole network and replace
            `backbone.weights`.

    Returns:
        str, the source of the weights, or `"random"`.

    Raises:
        UserError: if the weights do not fit, or are unavailable (`UnavailableError`) and
            `backbone.weights_if_missing` is `"fail"`.
    """
    from kseg.weights import load_weights  # Here: it imports Keras.

    source = model.weights or model.backbone.weights
    if source is None:
        return "random"
    try:
        report = load_weights(
            segmenter, source, backbone_only=model.weights is None, stem=model.backbone.stem
        )
    except UnavailableError as error:
        if model.backbone.weights_if_missing == "fail":
            raise _with_way_out(error, model) from None
        print(f"warning: all weights start at random: {error}", file=sys.stderr, flush=True)
        return "random"
    print(report, flush=True)
    if "://" not in source and differs_from_published(source):
        print(
            f"warning: {source} does not have the checksum in its name: it is not the published "
            "file, or was cut off. Download it again",
            file=sys.stderr,
            flush=True,
        )
    return source


def _with_way_out(error, model):
    key = "model.weights" if model.weights else "model.backbone.weights"
    random = option("overrides", [f"{key}=null"])
    return UnavailableError(f"{error}. Or start at random: {random}")
