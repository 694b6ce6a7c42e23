import codecs

import pytest

from pipelines.datasets.text_files import decode_text
from pipelines.errors import DataError

TEXT = "name,value\r\nStraße,0\r\nÉtang,1\r\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    ],
)
def test_unicode(content):
    assert decode_text(content, "a.csv") == (TEXT, None)


def test_ansi_is_said():
    text, note = decode_text(TEXT.encode("cp1252"), "a.csv")
    assert text == TEXT
    assert note.startswith("a.csv is not UTF-8: read as Windows-1252")
    assert "'Straße,0'" in note


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"name\0,value",
        b"na\x81me",
        b"PK\x03\x04\x14\x00\x06\x00",
        codecs.BOM_UTF16_LE + b"a\0\x00\xd8b\0",
        codecs.BOM_UTF16_LE + b"a\0b",
        codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff",
    ],
)
def test_what_is_no_text(content):
    with pytest.raises(DataError, match=r"^a.csv (must be a text file|begins as UTF-)"):
        decode_text(content, "a.csv")
