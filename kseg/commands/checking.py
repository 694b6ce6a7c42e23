"""Argument checks for the commands' Python functions.

The command line makes the same checks when it parses flags. Each function raises a `UserError` that
names the argument, states the rule and shows the received value.
"""

import os
import re

from kseg.errors import UserError, option

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def check_path(name, value, *, optional=False):
    """Rejects a value that is not a path.

    Args:
        name: str, the argument.
        value: its value.
        optional: bool, whether None is allowed.
    """
    if not (isinstance(value, (str, os.PathLike)) and str(value)) and not (
        optional and value is None
    ):
        _refuse(name, "a path", value)


def check_choice(name, value, choices):
    """Rejects a value that is neither None nor one of `choices`, which are strings."""
    if value is not None and value not in choices:
        _refuse(name, f"one of {', '.join(map(repr, choices))}, or None", value)


def check_count(name, value, *, least=1):
    """Rejects a value that is neither None nor an int of at least `least`."""
    if value is not None and not (_is_number(value, int) and value >= least):
        _refuse(name, f"a whole number of {least} or more, or None", value)


def check_size(name, value, *, empty=False):
    """Rejects a value that is neither None nor `(height, width)` in pixels.

    Args:
        name: str, the argument.
        value: its value.
        empty: bool, whether an empty list is allowed.
    """
    if value is None or (empty and isinstance(value, (list, tuple)) and not value):
        return
    if not (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(_is_number(side, int) and side > 0 for side in value)
    ):
        _refuse(name, "(height, width), two whole numbers above 0", value)


def check_numbers(name, value, rule, *, length=None):
    """Rejects a value that is neither None nor a list or tuple of numbers.

    Args:
        name: str, the argument.
        value: its value.
        rule: str, the rule that the error message states.
        length: int, the required length; None: any.
    """
    if value is not None and not (
        isinstance(value, (list, tuple))
        and length in (None, len(value))
        and all(_is_number(number, (int, float)) for number in value)
    ):
        _refuse(name, rule, value)


def check_checkpoint(name, value):
    """Rejects a value that is neither None nor a step or the name of a checkpoint."""
    if value is not None and not isinstance(value, str) and not _is_number(value, int):
        _refuse(name, "'best', 'latest' or a step", value)


def refuse(message):
    """Raises a UserError for a message that is worded for the command line.

    Args:
        message: str; each flag in it is replaced by the name of the argument.
    """
    raise UserError(re.sub(r"--([a-z-]+)", lambda f: option(f[1].replace("-", "_")), message))


def _is_number(value, kinds):
    return isinstance(value, kinds) and not isinstance(value, bool)


def _refuse(name, rule, value):
    raise UserError(f"{option(name)} must be {rule}. Received: {value!r}"[:400])
