"""Prints a config that comes with kseg, or copies it to be edited.

    kseg config                                     the names of all of them
    kseg config camvid_small_ce                     the file, as it is
    kseg config camvid_small_ce --resolved          with all values, those of its bases and defaults
    kseg config camvid_small_ce --output mine.json  a copy

`--config` of the other commands takes the same names, and so does `extends` in a config.
"""

import pathlib
import sys

from kseg import files
from kseg.commands import console
from kseg.config import load
from kseg.config.loading import find, read_json, shipped
from kseg.errors import UserError


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("name", nargs="?", help="name or path of a config")
    parser.add_argument(
        "--resolved", action="store_true", help="include the values of its bases and all defaults"
    )
    parser.add_argument("--output", metavar="FILE", help="file to write; default: print it")
    options = parser.parse_args(arguments)
    if options.name is None and (options.output or options.resolved):
        parser.error("--output and --resolved need the name of a config")
    return options


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    if options.name is None:
        print("\n".join(names()))
        print(
            "start with quickstart, or `kseg init DATA`; configs/README.md describes them",
            file=sys.stderr,
        )
        return 0
    path = find(options.name)
    read_json(path)
    text = load(path).to_json() if options.resolved else path.read_text(encoding="utf-8-sig")
    if options.output is None:
        print(text, end="")
        return 0
    output = pathlib.Path(options.output)
    if output.exists():
        raise UserError(f"{output} is there already. Give --output another name")
    files.write_text(output, text)
    print(f"config: {output}. Train with it: kseg train --config {output}")
    return 0


def names():
    """Lists the names of the experiments that ship with kseg, sorted."""
    return sorted(path.stem for path in shipped().glob("*.json") if path.name != "schema.json")
