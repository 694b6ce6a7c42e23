"""Shares the best weights of a run on the Hugging Face hub, or writes the same folder locally.

    kseg push runs/mine presets/mine                            write the folder only
    kseg push runs/mine hf://owner/name --license apache-2.0    upload it (pip install "kseg[hub]")

The folder holds config, weights, classes, scores and a model card. `kseg.from_preset` reads it,
from either place, and so does `--run FOLDER` of the other commands.
"""

import pathlib
import tempfile

from kseg.commands import checking, console

_HUB = "hf://"


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run, such as runs/quickstart")
    parser.add_argument(
        "target", metavar="TARGET", help="hf://owner/name, hf://owner/name@branch, or a folder"
    )
    parser.add_argument(
        "--license",
        default="unknown",
        help="license of the weights for the model card, such as apache-2.0 or cc-by-4.0",
    )
    parser.add_argument(
        "--private", action="store_true", help="make a new repository on the hub private"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the command and returns its exit code."""
    push(**vars(parse_arguments(arguments)))
    return 0


def push(run, target, *, license="unknown", private=False, overwrite=False):
    """Shares the best weights of a run on the Hugging Face hub, or writes the same folder locally.

    Args:
        run: folder of a run, whose scores are those of `kseg train` or `kseg evaluate`.
        target: `"hf://owner/name"`, which is created if it is missing, `"hf://owner/name@branch"`,
            or a folder to write.
        license: str, identifier of a license as the hub knows it, such as `"apache-2.0"`;
            `"unknown"`: the model card says that none was stated.
        private: bool, whether a new repository is private.
        overwrite: bool, whether to replace an existing folder. On the hub a new commit replaces
            the files, and the history keeps the old ones.

    Returns:
        str, the address of the commit, or `pathlib.Path` of the folder; `kseg.from_preset` takes
        `target`.

    Raises:
        UserError: if the run has no best weights or no scores of them, or the folder cannot be
            written.
        UnavailableError: a `UserError`, if the hub refuses or cannot be reached.
    """
    checking.check_path("run", run)
    checking.check_path("target", target)
    from kseg.errors import UserError, option
    from kseg.runs import Run
    from kseg.runs.presets import check_target
    from kseg.weights import hub

    if not (isinstance(license, str) and license.isprintable() and license.strip()):
        raise UserError(f"A license must be a name such as apache-2.0. Received: {license!r}")
    to_hub = str(target).startswith(_HUB)
    if not to_hub and "://" in str(target):
        raise UserError(f"The target must be hf://owner/name or a folder. Received: {target}")
    if to_hub and overwrite:
        raise UserError(
            f"{option('overwrite')} is for a folder: on the hub the history keeps the old files"
        )
    if not to_hub and private:
        raise UserError(f"{option('private')} is for hf://owner/name. Received: {target}")
    opened = Run.open(run)
    opened.checkpoint("best")
    if to_hub:
        hub.check_upload(target)
    else:
        check_target(target, overwrite)
    scores = _scores(opened)
    if to_hub:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "preset"
            _write(opened, path, scores, license=license, source=target)
            address = hub.upload_folder(path, target, private=private)
        print(f"uploaded:  {address}", flush=True)
        print(f"use it:    kseg.from_preset({target!r})", flush=True)
        return address
    _write(opened, target, scores, license=license, overwrite=overwrite)
    print(f"preset:    {target}", flush=True)
    print(f"use it:    kseg.from_preset({str(target)!r})", flush=True)
    return pathlib.Path(target)


def _scores(run):
    """Reads the scores of a run or a preset."""
    from kseg.evaluation import results
    from kseg.runs.presets import SCORES, read_scores

    if (run.path / SCORES).is_file():  # It is a preset itself.
        return read_scores(run.path)
    return results.read(run.path / "evaluation" / f"{run.config.data.eval_split}.json").found


def _write(run, folder, scores, **options):
    from kseg.progress import Progress
    from kseg.runs.presets import write_preset

    with Progress("writing the preset"):
        write_preset(run, folder, scores, **options)
