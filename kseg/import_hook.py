"""A hook on the import of a module that has not been imported yet.

`kseg.quiet` wraps the import of TensorFlow, `kseg.registration` that of Keras; both share this one.
"""

import importlib.abc
import importlib.util
import sys


def wrap_import(name, wrap):
    """Wraps the execution of a module when it is first imported, whoever imports it.

    Args:
        name: str, a top-level module that is not imported yet.
        wrap: function of `execute` and `module`; it must call `execute(module)`, which executes
            the module's code, once.
    """
    sys.meta_path.insert(0, _Wrapper(name, wrap))


class _Wrapper(importlib.abc.MetaPathFinder):
    """Finds one module, once, and wraps its loader."""

    def __init__(self, name, wrap):
        self._name, self._wrap = name, wrap

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._wrap(execute, module)
        return spec
