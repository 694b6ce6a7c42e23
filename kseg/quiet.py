"""Removal of TensorFlow's start-up messages from stderr, wherever it is imported.

Importing this module has this effect; it must be imported before TensorFlow.
"""

import os
import sys
import tempfile

from kseg.import_hook import wrap_import

# The C++ logs of TensorFlow, absl and XLA: errors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Parts of lines that are written while it loads, before its log level applies.
_CHATTER = ("All log messages before absl::InitializeLog", "oneDNN custom", "Could not find cuda")


def _quietly(function, *arguments):
    """Calls a function that writes to stderr from C++, and removes the start-up lines."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 2)
        try:
            return function(*arguments)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            output.seek(0)
            for line in output.read().decode(errors="replace").splitlines():
                if not any(part in line for part in _CHATTER):
                    print(line, file=sys.stderr, flush=True)


if "tensorflow" not in sys.modules:
    wrap_import("tensorflow", _quietly)
