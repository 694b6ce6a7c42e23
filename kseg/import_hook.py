"""A hook on the import of a module that has not been imported yet.

`kseg.quiet` wraps the import of TensorFlow, `kseg.registration` that of Keras; both share this one.
"""

import functools
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
    """Finds one module and wraps its loader, until the module is executed."""

    def __init__(self, name, wrap):
        self._name, self._wrap = name, wrap
        self._is_searching = False

    def find_spec(self, name, path=None, target=None):
        if name != self._name or self._is_searching:
            return None
        self._is_searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_searching = False
        if spec is not None:
            spec.loader.exec_module = functools.partial(self._execute, spec.loader.exec_module)
        return spec

    def _execute(self, execute, module):
        # Here and not in `find_spec`, which programs also call to see whether a module exists.
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._wrap(execute, module)
