import json

import keras
import pytest

from kseg.classes import Classes
from kseg.errors import UserError
from kseg.evaluation.boundary_iou import BoundaryIou
from kseg.evaluation.evaluator import check_logits
from kseg.heads import build_head
from pipelines.datasets.class_table import ClassTable
from pipelines.datasets.dataset import Taxonomy


def names(count):
    return [f"class {i}" for i in range(count)]


def colors(count):
    return [[i % 256, 0, 0] for i in range(count)]


def build(count):
    """A head on maps of few channels."""
    features = {f"c{i}": keras.Input((8, 8, 4)) for i in range(2, 6)}
    build_head("hrnet", features, count)


RULES = [
    lambda count: Classes(names(count), colors(count)),
    lambda count: Taxonomy(names(count), colors(count), {}),
    lambda count: ClassTable(json.dumps(names(count)).encode(), "classes.json"),
    lambda count: BoundaryIou(count),
    lambda count: check_logits(keras.ops.zeros((1, 2, 2, count)), count),
    build,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_most_classes_are_the_same_everywhere(rule):
    """Labels are uint8, and 255 marks ignored pixels: class numbers are 0 to 254."""
    rule(255)
    for count in (0, 256):
        with pytest.raises(UserError, match="1 to 255"):
            rule(count)


def test_class_254_of_a_table_is_no_ignored_one():
    table = ClassTable(json.dumps(names(255)).encode(), "classes.json")
    assert [row.label for row in table.rows] == list(range(255))
    assert table.taxonomy().label_map == {i: i for i in range(256)}
