import keras
import pytest

from kseg.heads import build_head


def features():
    return {f"c{level}": keras.Input((None, None, 2)) for level in (2, 3, 4, 5)}


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"name='ocrr'.*'hrnet', 'ocr'"):
        build_head("ocrr", features(), 3)


def test_number_of_classes():
    with pytest.raises(ValueError, match="num_classes=0"):
        build_head("ocr", features(), 0)


def test_unknown_argument():
    with pytest.raises(TypeError, match="widht"):
        build_head("ocr", features(), 3, widht=2)


def test_a_missing_stage():
    stages = features()
    del stages["c2"]
    with pytest.raises(ValueError, match=r"Received: \['c3', 'c4', 'c5'\], without \['c2'\]"):
        build_head("upernet", stages, 3)
