class DataError(ValueError):
    """Data that cannot be used. One line: the rule, what was received, the way out."""
