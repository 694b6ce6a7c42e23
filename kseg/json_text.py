"""Parsing of JSON from untrusted files."""

import json


def parse_json(text, **options):
    """Parses JSON like `json.loads`, with a single type of error.

    Args:
        text: str or bytes.
        **options: as for `json.loads`.

    Returns:
        The parsed value.

    Raises:
        ValueError: if the text is not JSON, or nested too deeply for Python (instead of a
            `RecursionError`).
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
