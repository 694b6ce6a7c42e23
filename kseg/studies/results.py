"""Results of a study on disk: one JSON line per run, and the pixel counts of its images.

<folder>/results.jsonl              a line per finished run; results-<i>-of-<n>.jsonl for a part
         settings/<fingerprint>.json    the settings of runs
         counts/<run>-<fingerprint>-<backend>.npz   counts of each image of the evaluation split
         runs/<arm>-<seed>/             the run in training; deleted when finished
         table.md, table.csv, classes.csv, scores.png

Each of several machines writes its own part; folders are merged by copying one into the other.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from kseg import files
from kseg.errors import UserError
from kseg.evaluation.image_counts import ImageCounts
from kseg.json_text import parse_json
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
        """Returns a value of the line, or `default` if it is missing."""
        return self.line.get(key, default)

    @property
    def counts(self):
        """`kseg.evaluation.image_counts.ImageCounts` of the last step."""
        return ImageCounts.load(self.folder / self.line["counts"])


def read(folder):
    """Reads the results of a folder; of several lines of the same run, the first is used.

    A truncated last line, left by a killed writer, is skipped: its run is repeated.

    Args:
        folder: folder of results; it need not exist.

    Returns:
        list of `Result`.

    Raises:
        UserError: if a line is damaged.
    """
    folder = pathlib.Path(folder)
    results = {}
    for file in sorted(folder.glob("results*.jsonl")):
        text = file.read_text(encoding="utf-8")
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                values = parse_json(line)
                missing = [key for key in REQUIRED if key not in values]
            except (ValueError, TypeError):
                if not text.endswith("\n") and number == text.count("\n") + 1:
                    continue
                raise UserError(
                    f"{file}:{number} is damaged. Remove the line; its run will be repeated"
                ) from None
            if missing:
                raise UserError(f"{file}:{number} lacks {', '.join(missing)}. Remove the line")
            key = (values["arm"], values["seed"], values["backend"], values["fingerprint"])
            results.setdefault(key, Result(values, folder))
    return list(results.values())


def append(folder, line, counts, values, *, part=None):
    """Adds a finished run; the line is written last, so that its counts always exist.

    Args:
        folder: folder of results; created if missing.
        line: dict without `fingerprint` and `counts`, which this function sets.
        counts: `ImageCounts` of the evaluation split at the last step.
        values: dict, `kseg.studies.design.settings` of the run.
        part: `(i, n)` or None, the part of the study that this process runs.

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
    """Reads the settings of the runs in a folder.

    Returns:
        dict from fingerprint to `kseg.studies.design.settings`.

    Raises:
        UserError: if a file is damaged, or its name is not the fingerprint of its content.
    """
    settings = {}
    for file in sorted(pathlib.Path(folder).glob("settings/*.json")):
        try:
            values = parse_json(file.read_text(encoding="utf-8"))
        except ValueError:
            values = None
        if not isinstance(values, dict) or fingerprint(values) != file.stem:
            raise UserError(
                f"{file} was changed: its name is not the fingerprint of its content. Restore it, "
                "or remove it together with its lines of the results"
            )
        settings[file.stem] = values
    return settings


def _repair_end(file):
    """Removes an incomplete last line, left by a killed writer."""
    if not file.exists():
        return
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(file, "r+b") as out:
            out.truncate(content.rfind(b"\n") + 1)
