"""Weights that are named by where they are published: `hf://` and `keras_cv://`."""

import re

from kseg.errors import UserError
from kseg.weights.torch_file import Checkpoint

_HUGGING_FACE = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+?))?(/(?P<file>[^@]+))?"
)
FILES = ("model.safetensors", "pytorch_model.bin")


def fetch_from_hugging_face(source):
    """Finds a file of the Hugging Face hub in the local cache, or downloads it there.

    Args:
        source: str, `hf://owner/name`, `hf://owner/name/file` or `hf://owner/name@revision/file`.
            Without a file: the first of `FILES` that the repository has.

    Returns:
        str, path of the local file.

    Raises:
        UserError: if `source` is malformed, huggingface_hub is not installed, or the file cannot
            be had.
    """
    match = _HUGGING_FACE.fullmatch(source)
    if match is None:
        raise UserError(
            f"A source on Hugging Face is hf://owner/name, with /file or @revision/file behind it. "
            f"Received: {source}"
        )
    repository, revision = match["repository"], match["revision"]
    wanted = [match["file"]] if match["file"] else list(FILES)
    by_hand = (
        f"Download {' or '.join(wanted)} of {repository} where there is network, and give its path "
        f"in place of {source}"
    )
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"{source} needs the package huggingface_hub: pip install 'kseg[hub]'. Or: {by_hand}"
        ) from None
    for name in wanted:
        try:
            return huggingface_hub.hf_hub_download(repository, name, revision=revision)
        except errors.RemoteEntryNotFoundError:
            continue
        except Exception as error:  # Of the hub, of HTTP, of the file system.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(f"{source} cannot be had: {reason}. {by_hand}") from None
    raise UserError(
        f"{repository} on Hugging Face has no file {' or '.join(wanted)}. Name the file: "
        f"hf://{repository}/FILE"
    )


def read_keras_cv_preset(source):
    """Downloads the weights of a preset of keras-cv.

    Args:
        source: str, `keras_cv://preset`, such as `keras_cv://efficientnetv2_s_imagenet`.

    Returns:
        `Checkpoint` whose arrays are named by the paths of their weights.

    Raises:
        UserError: if keras-cv is not installed, the preset has no weights, or cannot be had.
    """
    preset = source.removeprefix("keras_cv://")
    try:
        import keras_cv
    except ImportError:
        raise UserError(f"{source} needs the package keras-cv: pip install keras-cv") from None
    if preset in keras_cv.models.Backbone.presets and (
        preset not in keras_cv.models.Backbone.presets_with_weights
    ):
        known = sorted(keras_cv.models.Backbone.presets_with_weights)
        raise UserError(
            f"The preset {preset} is an architecture without weights. Choose from {known}"
        )
    try:
        model = keras_cv.models.Backbone.from_preset(preset, load_weights=True)
    except Exception as error:  # keras-cv wraps whatever the download raises in a bare Exception.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{source} cannot be had: {reason}. Presets are downloaded from Kaggle: load it where "
            f"there is network, save its backbone with scripts/convert_weights.py, and give that "
            f"file in place of {source}"
        ) from None
    return Checkpoint({weight.path: weight.numpy() for weight in model.weights}, {})
