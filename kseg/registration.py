"""Registration of kseg's classes with Keras, so that `keras.models.load_model` finds them.

Each class registers itself when its module is imported, but `import kseg` must not import Keras.
Therefore the modules are imported together with Keras, whether it is imported before or after kseg.
There is one exception: if Keras is first imported by a kseg module (`import kseg.losses`), only the
classes of that module are registered until a name of `kseg` itself is used.
"""

import importlib
import sys

from kseg.import_hook import wrap_import

# All modules that define serializable classes; a test compares the list with the source.
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
    else:
        wrap_import("keras", _register_after)


def _register_after(execute, module):
    """Executes the module `keras`, then registers the classes."""
    # A module of kseg that is being imported must not be imported again by another one.
    interrupts_kseg = _is_importing()
    execute(module)
    if not interrupts_kseg:
        register()


def _is_importing():
    """Returns True while a module of kseg is being imported."""
    modules = [module for name, module in sys.modules.items() if name.startswith("kseg.")]
    return any(getattr(module.__spec__, "_initializing", False) for module in modules)
