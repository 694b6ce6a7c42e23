"""Console behavior shared by all commands: a quiet start, and one-line error messages."""

import argparse
import contextlib
import difflib
import errno
import gc
import importlib.util
import os
import pathlib
import re
import sys

import kseg.quiet  # noqa: F401 - before TensorFlow is imported.
from kseg.import_hook import wrap_import

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# Function arguments whose flag has a different name.
_FLAGS = {"overrides": "--set", "value_range": "--range"}


class Parser(argparse.ArgumentParser):
    """Argument parser that keeps the description's line breaks and reports errors in one line."""

    def __init__(self, **arguments):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **arguments)

    def error(self, message):
        """Ends the process with one line and exit code 2."""
        self.exit(2, f"error: {message}.{self._hint(message)} See {self.prog} --help\n")

    def _hint(self, message):
        """Suggests the correction of a mistyped choice, or of a key without `--set`; else `""`."""
        if match := re.search(r"invalid choice: '?([^' ]+)'? \(choose from (.*)\)", message):
            choices = re.findall(r"[^', ]+", match[2])
            near = difflib.get_close_matches(match[1], choices, n=1)
            return f" Did you mean {near[0]}?" if near else ""
        if "--set" in self._option_string_actions and "unrecognized" in message:
            keys = re.findall(r"(?<!\S)[a-z]\w*(?:\.\w+)+=\S*", message)
            return f" Write {' '.join(f'--set {key}' for key in keys)}" + "." if keys else ""
        return ""


def add_overrides(parser, text):
    """Adds `--set KEY=VALUE`, which may be repeated, as `overrides`.

    Args:
        parser: parser, or group of one.
        text: str, the help.
    """
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=text
    )


def add_value_range(parser, text):
    """Adds `--range LOW HIGH`, the values of deep images.

    Args:
        parser: parser, or group of one.
        text: str, end of the help text: when the option is needed, or its default.
    """
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that become black and white in images of more than 8 bits a channel" + text,
    )


def add_model(parser):
    """Adds `--run`, `--saved-model` and `--checkpoint`: a network that labels images."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", metavar="FOLDER", help="folder of a run, such as runs/quickstart")
    model.add_argument(
        "--saved-model",
        metavar="PATH",
        help="what scripts/export.py wrote: a folder, or a file for LiteRT, ONNX or OpenVINO",
    )
    add_checkpoint(parser)


def check_model(parser, options):
    """Ends the process with one line if `--checkpoint` was given without `--run`."""
    if options.checkpoint and not options.run:
        parser.error("--checkpoint goes with --run: a SavedModel has no checkpoints")


def add_checkpoint(parser, default=None, text=""):
    """Adds `--checkpoint`; `default=None` lets the command detect that it was not given."""
    parser.add_argument(
        "--checkpoint",
        default=default,
        help=f"checkpoint of the run: best (default), latest, or a step such as 3000{text}",
    )


def number(kind, rule, holds):
    """Builds a parser of numbers in a range, for `add_argument(type=...)`.

    Args:
        kind: int or float.
        rule: str, completes "must be".
        holds: function from a number to bool.

    Returns:
        function from str to `kind`.
    """

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, not {text}")
        return value

    return parse


positive = number(int, "1 or more", lambda value: value >= 1)


def flag(name, value=None):
    """Formats an argument of a command's function as a flag, for `kseg.errors.name_options`.

    Args:
        name, value: as for `kseg.errors.option`.

    Returns:
        str, such as `--overwrite`, `--range 0 4095` or `--split train=0.8 --split val=0.2`.
    """
    word = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value is None or value is True:
        return word
    if isinstance(value, tuple):
        return f"{word} {' '.join(f'{number:g}' for number in value)}"
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    items = value if isinstance(value, list) else [value]
    return " ".join(f"{word} {item}" for item in items)


def run(main):
    """Calls `main()`; reports a user error as one line on stderr, with exit code 2."""
    from kseg import waiting
    from kseg.errors import Interrupted, UserError, name_options

    name_options(flag)
    spare_imports_from_collection()
    waiting.end_process_if_lost()
    try:
        with waiting.signals_watched():
            check_pipelines()
            code = main()
        sys.exit(code)
    except UserError as error:
        _stop(error)
    except Interrupted as stop:
        print(stop)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the output, such as `head`, has exited. Python would report it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        problem = file_problem(error)
        if problem is None:
            raise
        _stop(problem)
    except KeyboardInterrupt:
        _end("interrupted", 130)


def spare_imports_from_collection():
    """Exempts all objects that exist when TensorFlow and Keras are imported from collection.

    These are about half a million that stay until the process ends. Python's search for cyclic
    garbage takes a second of a start if it visits them again and again. Only for processes of
    kseg's own: what a program has allocated before would be exempt, too.
    """
    for name in ("tensorflow", "keras"):
        if name not in sys.modules:
            wrap_import(name, _execute_and_freeze)


def _execute_and_freeze(execute, module):
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        execute(module)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def check_pipelines():
    """Checks that no other package named `pipelines` shadows that of kseg.

    Raises:
        UserError: if `import pipelines` does not find the package next to kseg.
    """
    from kseg.errors import UserError

    expected = pathlib.Path(__file__).parents[2] / "pipelines" / "__init__.py"
    spec = importlib.util.find_spec("pipelines")
    origin = spec and spec.origin
    if not origin or not expected.exists() or not os.path.samefile(origin, expected):
        where = origin or (spec and list(spec.submodule_search_locations or [])) or "nothing"
        raise UserError(
            "The package `pipelines` of kseg is hidden by another of this name, or missing. "
            f"Found: {where}. Rename that one, or start in another folder"
        )


def file_problem(error):
    """Describes the file and the reason of a file error; returns None for other errors.

    Args:
        error: exception from Python or TensorFlow.

    Returns:
        str, `<path>: <reason>`.
    """
    from kseg.files import final_name

    if isinstance(error, OSError):
        reason = " ".join(str(error.strerror or error).split())
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return final_name(": ".join([*named, reason]))
    if not type(error).__module__.startswith("tensorflow"):
        return None
    reasons = sorted({os.strerror(number) for number in errno.errorcode}, key=len, reverse=True)
    match = re.search(rf"([^\s:;][^;\n]*); ({'|'.join(map(re.escape, reasons))})", str(error))
    if match is None:
        return None
    # The path may be preceded by the name of the failed operation.
    path = re.split(r"(?:: |\}\} ?)(?=[./]|\w+://)", match[1])[-1]
    return final_name(f"{path}: {match[2]}")


def check_classes(names, manifest):
    """Rejects data whose classes are not those of the model in the same order."""
    from kseg.errors import UserError

    others = manifest.class_names
    if len(names) != len(others):
        raise UserError(
            f"The data must have the {len(names)} classes of the model. {manifest.folder} has "
            f"{len(others)}. Use --data with the data set that the model was trained on"
        )
    for number, (name, other) in enumerate(zip(names, others, strict=True)):
        if name != other:
            raise UserError(
                f"The data must have the classes of the model. Class {number} is {name!r} in the "
                f"model and {other!r} in {manifest.folder}"
            )


def check_pixels(pixel_format, manifest):
    """Refuses data whose images are not those that a network takes.

    Args:
        pixel_format: `kseg.pixel_format.PixelFormat` of the network, or None: 8-bit RGB.
        manifest: `pipelines.manifest.Manifest` of the data.

    Raises:
        UserError: if channels or dtype differ.
    """
    from kseg.errors import UserError

    have = manifest.pixel_format
    if (have and (have.channels, have.dtype)) != (
        pixel_format and (pixel_format.channels, pixel_format.dtype)
    ):
        way = "without " + flag("channels")
        if pixel_format:
            way = "with " + flag("channels", pixel_format.channels)
        raise UserError(
            f"The data must have the images that the network was trained on: "
            f"{pixel_format or '8-bit RGB'}. {manifest.folder} has {have or '8-bit RGB'}. Prepare "
            f"it again, {way}"
        )


def _stop(error):
    _end(f"error: {error}", 2)


def _end(line, code):
    """Ends the process without `sys.exit`, which would wait for pending reads."""
    print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)
