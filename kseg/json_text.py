"""JSON from files that anybody may have written."""

import json


def parse_json(text, **options):
    """Reads JSON as `json.loads` does, with one kind of error.

    Args:
        text: str or bytes.
        **options: as for `json.loads`.

    Returns:
        What the text holds.

    Raises:
        ValueError: if it is no JSON, or nested too deeply for Python, which would end in a
            `RecursionError`.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
