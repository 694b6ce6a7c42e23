"""Makes mistakes at the commands where TensorFlow cannot be imported; for `test_early_mistakes`.

Reads a JSON list of `[command, arguments, packages that are missing]`, and prints one of `[exit
code, what was written to stderr]`.
"""

import importlib
import importlib.abc
import json
import os
import sys
import tempfile


class _Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            raise AssertionError("TensorFlow was imported")
        return None


def attempt(command, arguments, missing):
    """Runs a command in a process of its own."""
    with tempfile.TemporaryFile() as said:
        process = os.fork()
        if not process:
            os.dup2(said.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            for name in missing:
                sys.modules[name] = None
            sys.argv = [f"kseg {command}", *arguments]
            commands.run(command)
            os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said.seek(0)
        return code, said.read().decode()


if __name__ == "__main__":
    sys.meta_path.insert(0, _Forbid())
    # What most of them import, once for all.
    for name in ("config", "evaluation.results", "runs", "studies.design", "weights.hub"):
        importlib.import_module(f"kseg.{name}")
    importlib.import_module("pipelines.preparation")
    from kseg.commands import __main__ as commands

    for name in commands.COMMANDS:
        importlib.import_module(f"kseg.commands.{name}")
    print(json.dumps([attempt(*mistake) for mistake in json.load(sys.stdin)]))
