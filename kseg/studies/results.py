"""Results of a study on disk: a JSON line a run, and the pixel counts of its images.

<folder>/results.jsonl              a line a finished run; results-<i>-of-<n>.jsonl of a part
         settings/<fingerprint>.json    the settings under which runs were made
         counts/<run>-<fingerprint>-<backend>.npz   counts of each image of the evaluation split
         runs/<arm>-<seed>/             the run that is being trained; deleted when it is finished
         table.md, table.csv, classes.csv, scores.png

Several machines write their own part each, and folders merge by copying one into the other.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from kseg import files
from kseg.errors import UserError
from kseg.evaluation.image_counts import ImageCounts
from kseg.studies.design import fingerprint, run_name

REQUIRED = ("arm", "seed", "backend", "fingerprint", "last", "counts")


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        line: dict, see docs/studies.md.
        folder: `pathlib.Path` of the results.
    """

    line: dict
    folder: pathlib.Path

    def __getitem__(self, key):
        return self.line[key]

    def get(self, key, default: Any = None):
        """A value of the line, `default` where it is missing."""
        return self.line.get(key, default)

    @property
    def counts(self):
        """`kseg.evaluation.image_counts.ImageCounts` of the last step."""
        return ImageCounts.load(self.folder / self.line["counts"])


def read(folder):
    """Reads the results of a folder; the first of two lines of one run counts.

    A last line that was cut off, because its writer was killed, is passed over: its run is made
    again.

    Args:
        folder: folder of results; it may be missing.

    Returns:
        list of `Result`.

    Raises:
        UserError: if a line is damaged.
    """
    folder = pathlib.Path(folder)
    found = {}
    for file in sorted(folder.glob("results*.jsonl")):
        text = file.read_text(encoding="utf-8")
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                missing = [key for key in REQUIRED if key not in values]
            except (ValueError, TypeError):
                if not text.endswith("\n") and number == text.count("\n") + 1:
                    continue
                raise UserError(
                    f"{file}:{number} is damaged. Remove the line: its run is made again"
                ) from None
            if missing:
                raise UserError(f"{file}:{number} lacks {', '.join(missing)}. Remove the line")
            key = (values["arm"], values["seed"], values["backend"], values["fingerprint"])
            found.setdefault(key, Result(values, folder))
    return list(found.values())


def append(folder, line, counts, values, *, part=None):
    """Adds a finished run; the line is written last, so that it never lacks its counts.

    Args:
        folder: folder of results; it is made.
        line: dict without `fingerprint` and `counts`, which are set here.
        counts: `ImageCounts` of the evaluation split at the last step.
        values: dict, `kseg.studies.design.settings` of the run.
        part: `(i, n)` or None, the part of the study that this process makes.

    Returns:
        `Result`.
    """
    folder = pathlib.Path(folder)
    key = fingerprint(values)
    for name in ("counts", "settings"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    file = folder / "settings" / f"{key}.json"
    if not file.exists():
        files.write_text(file, json.dumps(values, indent=1, sort_keys=True) + "\n")
    name = f"{run_name(line['arm'], line['seed'])}-{key[:12]}-{line['backend']}.npz"
    counts.save(folder / "counts" / name)
    line = {**line, "fingerprint": key, "counts": f"counts/{name}"}
    name = "results.jsonl" if part is None else f"results-{part[0]}-of-{part[1]}.jsonl"
    _repair_end(folder / name)
    with open(folder / name, "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
        out.flush()
        os.fsync(out.fileno())
    return Result(line, folder)


def read_settings(folder):
    """Reads the settings under which the runs of a folder were made.

    Returns:
        dict from fingerprint to `kseg.studies.design.settings`.

    Raises:
        UserError: if a file is damaged or does not bear the fingerprint of its content.
    """
    found = {}
    for file in sorted(pathlib.Path(folder).glob("settings/*.json")):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            values = None
        if not isinstance(values, dict) or fingerprint(values) != file.stem:
            raise UserError(
                f"{file} was changed: its content does not have the fingerprint that it is named "
                "by. Restore it, or remove it with its lines of the results"
            )
        found[file.stem] = values
    return found


def _repair_end(file):
    """Cuts off a last line that a killed writer left unfinished."""
    if not file.exists():
        return
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(file, "r+b") as out:
            out.truncate(content.rfind(b"\n") + 1)
