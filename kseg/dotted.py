"""Objects of other packages by name: `"my_package.my_module:my_head"` in a config."""

import importlib
import os
import sys

from kseg.errors import UserError


def is_dotted(name):
    """Returns True if a name is `module:attribute`, and not a name of kseg's registries."""
    return isinstance(name, str) and ":" in name


def load_object(name):
    """Imports an object by its dotted name.

    Modules are found as Python finds them, and in the current folder after all others.

    Args:
        name: str, `package.module:attribute`.

    Raises:
        UserError: if the module cannot be imported, or has no such attribute.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise UserError(
            f"{name!r} must name something in a module. {module} has no {attribute!r}"
        ) from None
    except Exception as error:  # A user's module may raise anything.
        raise UserError(
            f"{name!r} must name something in a module that can be imported. {module} cannot: "
            f"{type(error).__name__}: {error}. Install it, or start in its folder"
        ) from error
