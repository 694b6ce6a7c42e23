"""The registration of kseg's classes with Keras, so that `keras.models.load_model` finds them.

Each class registers itself where it is defined. Loading a model needs the modules imported, while
`import kseg` must stay free of Keras: so they are imported together with Keras, whichever of the
two comes first.
"""

import importlib
import importlib.abc
import importlib.util
import sys

# All modules that define serializable classes; a test compares them with the source.
PORTABLE = (
    "kseg.backbones",
    "kseg.contrast.contextrast",
    "kseg.contrast.memory_bank",
    "kseg.contrast.multi_scale",
    "kseg.contrast.pixel_contrast",
    "kseg.contrast.region_contrast",
    "kseg.heads",
    "kseg.layers",
    "kseg.losses",
    "kseg.metrics",
    "kseg.segmenters",
)
NEEDS_TENSORFLOW = (
    "kseg.training.optimizers",
    "kseg.training.schedules",
    "kseg.training.trainer",
)
_state = {"registered": False}


def register():
    """Imports every module that defines serializable classes and runs on the backend of Keras."""
    if _state["registered"]:
        return
    _state["registered"] = True
    import keras

    tensorflow = keras.backend.backend() == "tensorflow"
    for module in PORTABLE + (NEEDS_TENSORFLOW if tensorflow else ()):
        importlib.import_module(module)


def follow_keras():
    """Registers the classes now if Keras is imported already, else when the user imports it."""
    if "keras" in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Registers the classes at the end of the import of Keras."""

    def find_spec(self, name, path=None, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or _is_importing():
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register
        return spec


def _is_importing():
    """Whether a module of kseg is being imported, which must not be imported by another then."""
    modules = [module for name, module in sys.modules.items() if name.startswith("kseg.")]
    return any(getattr(module.__spec__, "_initializing", False) for module in modules)
