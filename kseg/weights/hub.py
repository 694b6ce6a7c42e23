"""Weights downloaded from the Hugging Face hub (`hf://`) or from keras-cv (`keras_cv://`)."""

import importlib.util
import pathlib
import re

from kseg.errors import UnavailableError, UserError
from kseg.weights.checkpoint import Checkpoint
from kseg.weights.files import INDEX_SUFFIX, INDEXES, find_file, read_index

_HUGGING_FACE = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[^@]+))?"
)
_MAX_MESSAGE = 150  # Characters of a library's error message.
FILES = ("model.safetensors", "pytorch_model.bin")


def check_source(source):
    """Checks a source of weights without reading or downloading it.

    Args:
        source: str, as in `kseg.weights.load_weights`.

    Raises:
        UserError: if there is no such file, or the kind of source is unknown.
        UnavailableError: if the package that would download it is not installed.
    """
    scheme, separator, _ = source.partition("://")
    if not separator:
        find_file(source)
    elif scheme == "hf":
        match = _parse_hugging_face(source)
        if importlib.util.find_spec("huggingface_hub") is None:
            raise UnavailableError(
                f"{source} needs the package huggingface_hub: pip install 'kseg[hub]'. Or: "
                f"{_by_hand(source, match)}"
            )
    elif scheme != "keras_cv":
        raise UserError(
            "A source of weights must be a file, hf://owner/name or keras_cv://preset. Received: "
            f"{source}"
        )


def _parse_hugging_face(source):
    match = _HUGGING_FACE.fullmatch(source)
    if match is None:
        raise UserError(
            "A source on Hugging Face must be hf://owner/name, optionally followed by /file or "
            f"@revision/file. Received: {source}"
        )
    return match


def _by_hand(source, match):
    """Returns instructions to download the file on another machine."""
    return (
        f"Download {match['file'] or ' or '.join(FILES)} of {match['repository']} on a machine "
        f"with network access, and give its path in place of {source}"
    )


def fetch_from_hugging_face(source):
    """Finds a file of the Hugging Face hub in the local cache, or downloads it there.

    Args:
        source: str, `hf://owner/name`, `hf://owner/name/file` or `hf://owner/name@revision/file`.
            Without a file, the first of `FILES` and `INDEXES` that the repository has.

    Returns:
        str, path of the local file; if it is an index, the files that it names are in the same
        folder.

    Raises:
        UserError: if `source` is malformed.
        UnavailableError: if huggingface_hub is not installed, or the file is not available.
    """
    check_source(source)
    match = _parse_hugging_face(source)
    repository, revision = match["repository"], match["revision"]
    wanted = [match["file"]] if match["file"] else [*FILES, *INDEXES]
    named = match["file"] or " or ".join(FILES)
    by_hand = _by_hand(source, match)

    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    def cached(name):
        """Returns the path of a file in the local cache, without network access, or None."""
        path = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        return path if isinstance(path, str) else None

    def fetch(name):
        path = cached(name)
        return path or huggingface_hub.hf_hub_download(repository, name, revision=revision)

    wanted.sort(key=lambda name: cached(name) is None)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # No log of every retry: the error below reports the reason.
    try:
        for name in wanted:
            try:
                path = fetch(name)
                if name.endswith(INDEX_SUFFIX):
                    folder = name.rpartition("/")[0]
                    for shard in dict.fromkeys(read_index(pathlib.Path(path)).values()):
                        fetch(f"{folder}/{shard}" if folder else shard)
                return path
            except errors.LocalEntryNotFoundError:  # No network; a subclass of the next.
                raise
            except errors.EntryNotFoundError:
                continue
    except UserError:
        raise
    except Exception as error:  # From the hub, HTTP or the file system.
        raise UnavailableError(
            f"{source} is not available: {_first_sentence(error)}. {by_hand}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    raise UnavailableError(
        f"{repository} on Hugging Face has no file {named}. Name the file: hf://{repository}/FILE"
    )


def read_keras_cv_preset(source):
    """Downloads the weights of a preset of keras-cv.

    Args:
        source: str, `keras_cv://preset`, such as `keras_cv://efficientnetv2_s_imagenet`.

    Returns:
        `Checkpoint` with weight paths as names of the arrays.

    Raises:
        UserError: if keras-cv has no such preset, or it has no weights.
        UnavailableError: if keras-cv is not installed, or the weights are not available.
    """
    preset = source.removeprefix("keras_cv://")
    try:
        import keras_cv
    except ImportError:
        raise UnavailableError(
            f"{source} needs the package keras-cv: pip install keras-cv"
        ) from None
    classes = [
        cls
        for cls in vars(keras_cv.models).values()
        if isinstance(cls, type) and issubclass(cls, keras_cv.models.Backbone)
    ]
    # The base class lists no presets; each class lists its own.
    known = {name: cls for cls in classes for name in cls.presets_with_weights}
    if preset not in known:
        choice = ", ".join(sorted(name for name in known if "imagenet" in name))
        raise UserError(f"keras-cv has no weights for a preset {preset!r}. Choose from {choice}")
    try:
        model = known[preset].from_preset(preset, load_weights=True)
    except Exception as error:  # keras-cv wraps every error of a download in a bare Exception.
        raise UnavailableError(
            f"{source} is not available: {_first_sentence(error)}. Load it by `kseg convert` on a "
            "machine with network access, and give the file that it writes in place of "
            f"{source}"
        ) from None
    return Checkpoint({weight.path: weight.numpy() for weight in model.weights}, {})


def _first_sentence(error):
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = text.split(". ")[0].rstrip(".")
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."
