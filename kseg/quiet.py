"""A quiet start: TensorFlow's lines about itself are left out of stderr, whoever imports it.

Importing this module sets that up. It has to come before TensorFlow is imported.
"""

import importlib.abc
import importlib.util
import os
import sys
import tempfile

# Its C++ logs, absl's and those of XLA: errors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# What it says as it is loaded, before its log levels hold.
_CHATTER = ("All log messages before absl::InitializeLog", "oneDNN custom", "Could not find cuda")


class _QuietImport(importlib.abc.MetaPathFinder):
    """Takes these lines out of stderr while TensorFlow is imported; others stay."""

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _quietly(execute, module)
        return spec


def _quietly(function, *arguments):
    """Calls a function whose library writes to stderr past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            return function(*arguments)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                if not any(part in line for part in _CHATTER):
                    print(line, file=sys.stderr, flush=True)


if "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, _QuietImport())
