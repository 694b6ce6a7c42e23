"""Errors that are shown to the user as one line, and the naming of options in messages."""

import contextlib
import json
import re

_state = {"style": None}


def option(name, value=None):
    """Formats an argument for a message: `` `overwrite=True` ``, or as set by `name_options`.

    The same message is read by callers of functions and by users of the command line, for whom the
    argument is a flag. Library code names arguments; only the commands know the flags.

    Args:
        name: str, an argument of a function behind a command.
        value: suggested value: True, str, numbers, or a list or dict of values; None: only the
            argument is named.

    Returns:
        str.
    """
    if _state["style"] is not None:
        return _state["style"](name, value)
    if value is None:
        return f"`{name}`"
    if isinstance(value, tuple):
        return f"`{name}=({', '.join(f'{number:g}' for number in value)})`"
    text = value if isinstance(value, bool) else json.dumps(value, default=str, ensure_ascii=False)
    return f"`{name}={text}`"


def name_options(style):
    """Sets how messages format arguments, for the rest of the process.

    Args:
        style: function of an argument's name and value, see `option`, that returns a str; None:
            Python syntax.
    """
    _state["style"] = style


class UserError(ValueError):
    """A mistake that the user can fix: in a config, a file, an option.

    The message is one line: the rule, what was received, the way out. Scripts print it without a
    traceback and exit with code 2. Characters that would break the line are shown as escapes.

    Example:
        >>> import kseg
        >>> try:
        ...     kseg.train("quickstrat")
        ... except kseg.UserError as error:
        ...     print("error:", error)
        error: ...quickstart...
    """

    def __str__(self):
        text = super().__str__()
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UnavailableError(UserError):
    """A required download is not possible."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it.
    """Work stopped by SIGINT or SIGTERM, after saving its state."""


@contextlib.contextmanager
def as_user_error(what):
    """Converts errors raised while building something from a config to a `UserError`.

    Each key of a config is checked individually when it is read; whether values fit together is
    known only when layers are built from them.

    Args:
        what: str, the object that is built; begins the message.

    Raises:
        UserError: instead of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = re.sub(r"\{\{.*?\}\} ?", "", " ".join(str(error).split()))[:600]
        if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
            raise UserError(
                f"{what} does not fit into memory ({reason}). Make it smaller"
            ) from error
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{what} cannot be built: {kind}{reason}") from error
