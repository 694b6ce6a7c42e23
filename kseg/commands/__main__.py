"""Command line: `kseg NAME ...` or `python -m kseg.commands NAME ...`."""

import difflib
import importlib
import sys

import kseg
from kseg.commands import console

COMMANDS = {
    "init": "write a config for prepared data and this machine",
    "train": "train an experiment, evaluate its best weights and export them",
    "evaluate": "score a run or a SavedModel, or compare two runs",
    "predict": "label images or a video",
    "export": "write a SavedModel, or a file for LiteRT or ONNX",
    "serve": "serve a network over HTTP, with a page for a browser",
    "push": "share a trained network on the Hugging Face hub, or as a folder",
    "prepare": "turn a data set into records, or check records",
    "convert": "turn published weights into Keras weights",
    "analyze": "look at what a run has learned",
    "config": "print a config that comes with kseg, or copy it",
    "study": "train several arms with several seeds, and compare them",
}


def main():
    """Runs the command named by the first argument and ends the process with its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    if name == "--version":
        print(f"kseg {kseg.__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        known = ", ".join(COMMANDS)
        print(f"error: kseg has no command {name!r}. {hint}Choose from: {known}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"kseg {name}", *arguments]
    run(name)


def run(name):
    """Runs a command with the arguments of the process, then ends the process.

    Args:
        name: str, a key of `COMMANDS`.
    """
    console.run(importlib.import_module(f"kseg.commands.{name}").main)


def _help():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: kseg COMMAND ...",
            "",
            "Semantic segmentation with supervised contrastive learning.",
            "",
            *lines,
            "",
            "kseg COMMAND --help describes a command; kseg --version prints the version.",
        ]
    )


if __name__ == "__main__":
    main()
