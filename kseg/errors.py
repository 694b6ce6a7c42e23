"""Errors that reach the user as one line, without a traceback."""

import contextlib
import re


class UserError(ValueError):
    """A mistake that the user can fix: in a config, a file, an option.

    The message is one line: the rule, what was received, the way out. Scripts print it without a
    traceback and exit with code 2. Characters that would break the line are shown as escapes.
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
    """Makes errors of builders, which a config's values lead to, mistakes of the user's.

    Each key of a config is checked on its own when it is read; whether they fit together shows
    only when layers are made of them.

    Args:
        what: str, what is built; begins the message.

    Raises:
        UserError: in place of any other exception.
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
