import pytest

from kseg.json_text import parse_json


def test_options_and_values_are_those_of_json():
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    assert parse_json('{"a": 1}', object_pairs_hook=list) == [("a", 1)]


@pytest.mark.parametrize(
    "text", ["", "{", b"\x00" * 8, "[" * 100_000, '{"a":' * 100_000, "9" * 10_000]
)
def test_whatever_is_wrong_is_one_kind_of_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
