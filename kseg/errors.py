class UserError(ValueError):
    """Something the user can put right: a config, a file, an option.

    The message is one line: the rule, what was received, the way out. Scripts print it without a
    traceback and exit with code 2.
    """


class UnavailableError(UserError):
    """Something that has to be downloaded, and cannot be."""
