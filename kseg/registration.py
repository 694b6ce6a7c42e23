"""The registration of kseg's classes with Keras, so that `keras.models.load_model` finds them.

Each class registers itself where it is defined. Loading a model requires that its module is
imported, while `import kseg` must not import Keras. So the modules are imported together with
Keras, whether it is imported before or after kseg. One order is left out: where the first import of
Keras is that of a kseg module (`import kseg.losses`), only that module's classes are registered
until a name of `kseg` itself is used; the others cannot be imported meanwhile.
"""

import importlib
import sys

from kseg.import_hook import wrap_import

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
    else:
        wrap_import("keras", _register_after)


def _register_after(execute, module):
    """Executes Keras, and registers the classes at the end."""
    # A module of kseg that is being imported must not be imported by another one meanwhile.
    interrupts_kseg = _is_importing()
    execute(module)
    if not interrupts_kseg:
        register()


def _is_importing():
    """Returns True while a module of kseg is being imported."""
    modules = [module for name, module in sys.modules.items() if name.startswith("kseg.")]
    return any(getattr(module.__spec__, "_initializing", False) for module in modules)
