import json

import pytest

from pipelines.datasets.class_table import ClassTable
from pipelines.errors import DataError

ROAD, VOID, CAR = ("road", (128, 64, 128), 0), ("void", (0, 0, 0), 1), ("car", (0, 0, 142), 2)


def rows(content, name="classes.json"):
    return [(r.name, r.color, r.value, r.label) for r in ClassTable(content.encode(), name).rows]


EXPECTED = [(*ROAD, 0), (*VOID, 255), (*CAR, 1)]


@pytest.mark.parametrize(
    "name, content",
    [
        (
            "classes.json",
            '[{"name": "road", "color": [128, 64, 128]}, {"name": "void", "color": "#000000", '
            '"ignore": true}, {"name": "car", "color": "0 0 142", "ignore": false}]',
        ),
        (
            "classes.json",
            '{"classes": [{"name": "road", "color": "#804080", "value": 0}, {"name": "void", '
            '"color": "#000000", "ignore": 1, "value": 1}, {"name": "car", "color": "0,0,142", '
            '"value": "2"}]}',
        ),
        ("a.CSV", "name,color,ignore\nroad,#804080,\n\nvoid,#000000,yes\ncar,0 0 142,no\n"),
        (
            "a.csv",
            "\ufeffName, R, G, B, ignore\r\nroad,128,64,128,\r\nvoid,0,0,0,1\r\ncar,0,0,142\r\n",
        ),
        (
            "a.csv",
            "name,red,green,blue,ignore\nroad,128,64,128,0\nvoid,0,0,0,True\ncar,0,0,142,0\n",
        ),
    ],
)
def test_formats(name, content):
    assert rows(content, name) == EXPECTED


def test_values_and_missing_colours():
    content = "name,value\nroad,7\ncar,300\n"
    assert rows(content, "a.csv") == [("road", None, 7, 0), ("car", None, 300, 1)]
    table = ClassTable(content.encode(), "a.csv")
    assert not table.has_colors
    taxonomy = table.taxonomy()
    assert taxonomy.class_names == ["road", "car"]
    assert taxonomy.label_map == {0: 0, 1: 1, 255: 255}
    assert len(set(map(tuple, taxonomy.palette))) == 2


def test_invented_colours_differ():
    content = json.dumps([{"name": str(i)} for i in range(200)])
    palette = ClassTable(content.encode(), "a.json").taxonomy().palette
    assert len(set(map(tuple, palette))) == 200


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", "nonsense", r"a\.json must be JSON or end in \.csv"),
        ("a.json", '{"road": 0}', r"a\.json must be a list of classes such as"),
        ("a.json", "[3]", "must be a list of classes"),
        ("a.json", "[]", "must have 1 to 254 classes .* It has 0"),
        ("a.json", '[{"name": "a", "ignore": true}]', "It has 0"),
        ("a.json", '[{"color": [0, 0, 0]}]', "class 1: a class must have a name, not None"),
        ("a.json", '[{"name": "a"}, {"name": " "}]', "class 2: a class must have a name, not ' '"),
        ("a.json", '[{"name": "a", "colr": [0, 0, 0]}]', "class 1: unknown key 'colr'"),
        ("a.json", '[{"name": "a", "color": [0, 0]}]', r"not \[0, 0\]"),
        (
            "a.json",
            '[{"name": "a", "color": [0, 0, 256]}]',
            "must be .red, green, blue. or #rrggbb",
        ),
        ("a.json", '[{"name": "a", "color": "#12345g"}]', "not '#12345g'"),
        ("a.json", '[{"name": "a", "color": 7}]', "not 7"),
        ("a.json", '[{"name": "a", "value": -1}]', "a value must be 0 to 65535, not -1"),
        ("a.json", '[{"name": "a", "value": 1.5}]', "not 1.5"),
        ("a.json", '[{"name": "a", "ignore": "perhaps"}]', "must be true or false, not 'perhaps'"),
        (
            "a.json",
            '[{"name": "a", "value": 1}, {"name": "b"}]',
            "class 2: either all rows or none",
        ),
        ("a.json", '[{"name": "a"}, {"name": "a"}]', "a name of its own. Used twice: 'a'"),
        ("a.csv", "name,value\na,1\nb,1\n", "a value of its own. Used twice: 1"),
        (
            "a.csv",
            "name,r,g,b\na,1,2,3\nb,1,2,3\n",
            r"a color of its own\. Used twice: \(1, 2, 3\)",
        ),
        ("a.csv", "name,r,g,b\na,1,2\n", "must be .red, green, blue."),
        ("a.csv", "label,r,g,b\n", "must begin with a line of columns: name, .* begins with label"),
        ("a.csv", "", "It begins with nothing"),
        ("a.csv", "name,value\na,1,2\n", "class 1: a row must have 2 cells, this has 3"),
    ],
)
def test_mistakes(name, content, message):
    with pytest.raises(DataError, match=message):
        ClassTable(content.encode(), name)
