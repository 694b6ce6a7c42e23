"""Weights downloaded from the Hugging Face hub (`hf://`) or from keras-cv (`keras_cv://`)."""

import contextlib
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
PRESET_FILE = "model.weights.h5"  # Written by `kseg push`.


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
        _require_hub(source, _by_hand(source, match))
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
            Without a file, the first of `FILES`, `INDEXES` and `PRESET_FILE` that the repository
            has.

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
    wanted = [match["file"]] if match["file"] else [*FILES, *INDEXES, PRESET_FILE]
    named = match["file"] or " or ".join(FILES)
    by_hand = _by_hand(source, match)

    import huggingface_hub
    from huggingface_hub import errors

    def cached(name):
        """Returns the path of a file in the local cache, without network access, or None."""
        path = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        return path if isinstance(path, str) else None

    def fetch(name):
        path = cached(name)
        return path or huggingface_hub.hf_hub_download(repository, name, revision=revision)

    wanted.sort(key=lambda name: cached(name) is None)
    with _reporting(source, by_hand):
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
    raise UnavailableError(
        f"{repository} on Hugging Face has no file {named}. Name the file: hf://{repository}/FILE"
    )


def fetch_files(source, required, optional=()):
    """Downloads certain files of a repository of the Hugging Face hub, all of one commit.

    Args:
        source: str, `hf://owner/name` or `hf://owner/name@revision`. Without a revision, it is the
            newest commit of the main branch, or the cached one if there is no network.
        required, optional: names of files.

    Returns:
        `pathlib.Path` of the folder in the hub's local cache that holds them.

    Raises:
        UserError: if `source` is malformed.
        UnavailableError: if huggingface_hub is not installed, or a required file is not available.
    """
    match = parse_repository(source)
    repository = match["repository"]
    by_hand = (
        f"Download {', '.join(required)} of {repository} on a machine with network access to one "
        f"folder, and give it in place of {source}"
    )
    _require_hub(source, by_hand)

    import huggingface_hub
    from huggingface_hub import errors

    revision, folder = match["revision"], None
    with _reporting(source, by_hand):
        for name in (*required, *optional):
            try:
                path = huggingface_hub.hf_hub_download(repository, name, revision=revision)
            except errors.EntryNotFoundError:  # Also without network, if it is not in the cache.
                if name in optional:
                    continue
                raise
            folder = pathlib.Path(path).parent
            revision = folder.name  # The commit, also if the branch moves meanwhile.
    return folder


def upload_folder(folder, source, *, private=False, message="Upload by kseg push"):
    """Uploads the files of a folder to a repository of the Hugging Face hub in one commit.

    Args:
        folder: path of a folder without subfolders.
        source: str, `hf://owner/name`, or `hf://owner/name@branch`, whose branch must exist. The
            repository is created if it is missing.
        private: bool, whether a new repository is private.
        message: str, the title of the commit.

    Returns:
        str, the address of the commit.

    Raises:
        UserError: if `source` is malformed, or the hub refuses the model card.
        UnavailableError: if huggingface_hub is not installed, no token is configured, or the hub
            refuses or cannot be reached. The repository then has all of the files or none.
    """
    match = parse_repository(source)
    by_hand = "Or write a folder, and upload it by hand"
    _require_hub(source, by_hand)

    import huggingface_hub

    with _reporting(source, by_hand):
        api = huggingface_hub.HfApi()
        repository = match["repository"]
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [
            huggingface_hub.CommitOperationAdd(path.name, str(path))
            for path in sorted(pathlib.Path(folder).iterdir())
        ]
        try:
            commit = api.create_commit(
                repository, operations, commit_message=message, revision=match["revision"]
            )
        except ValueError as error:  # The metadata of the model card, such as its license.
            raise UserError(f"{source} is refused: {' '.join(str(error).split())[:400]}") from None
    return str(commit.commit_url)


def check_upload(source):
    """Checks that an upload is possible, before the work of making its files.

    Args:
        source: as in `upload_folder`.

    Raises:
        UserError: if `source` is malformed.
        UnavailableError: if huggingface_hub is not installed, or no token is configured.
    """
    parse_repository(source)
    by_hand = "Or write a folder, and upload it by hand"
    _require_hub(source, by_hand)
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UnavailableError(
            f"Uploading to {source} needs a token with write access. Log in by `hf auth login`, or "
            f"set HF_TOKEN. {by_hand}"
        )


def parse_repository(source):
    """Splits `hf://owner/name[@revision]`.

    Returns:
        `re.Match` with `repository` and `revision`, which may be None.

    Raises:
        UserError: if the source is malformed, or names a file.
    """
    match = _HUGGING_FACE.fullmatch(source)
    if match is None or match["file"]:
        raise UserError(
            "A repository on Hugging Face must be hf://owner/name, optionally followed by "
            f"@revision. Received: {source}"
        )
    return match


def _require_hub(source, by_hand):
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UnavailableError(
            f"{source} needs the package huggingface_hub: pip install 'kseg[hub]'. Or: {by_hand}"
        )


@contextlib.contextmanager
def _reporting(source, by_hand):
    """Turns errors of the hub, of HTTP and of the file system into one line."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # No log of every retry: the error below reports the reason.
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UnavailableError(
            f"{source} is not available: {_first_sentence(error)}. {by_hand}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)


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
