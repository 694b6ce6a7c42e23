"""The error for unusable data."""

from kseg.errors import UserError


class DataError(UserError):
    """Data that cannot be used. One line: the rule, what was received, the way out."""
