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


EXCEL = "name;color;value;ignore\r\nroad;#804080;0;\r\nvoid;#000000;1;yes\r\ncar;#00008e;2;\r\n"


@pytest.mark.parametrize(
    "content",
    [
        EXCEL,
        EXCEL.replace(";", "\t"),
        EXCEL.replace(";", ","),
        "sep=;\r\n" + EXCEL,
        EXCEL.replace(";0;", ";0,0;").replace(";2;", ";2.00;"),
        EXCEL.replace("\r\n", ";;\r\n") + ";;;;;\r\n",
        EXCEL.replace("#804080", "128,64,128"),
        EXCEL.replace("#804080", '"128,64,128"'),
        EXCEL.replace(";", '";"').replace("\r\n", '"\r\n"').rstrip('"').replace("name", '"name', 1),
        EXCEL.replace("\r\n", "\r"),
        EXCEL.replace("car", '" car"'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_as_excel_saves(content, encoding):
    table = ClassTable(content.encode(encoding), "a.csv")
    assert [(r.name, r.color, r.value, r.label) for r in table.rows] == EXPECTED
    assert table.notes == [] and table.has_values


def test_ansi():
    table = ClassTable("name\nStraße\ncafé\n".encode("cp1252"), "a.csv")
    assert [row.name for row in table.rows] == ["Straße", "café"]
    assert "Windows-1252" in table.notes[0]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("_classes.csv", "Pixel Value, Class\n0, road\n1, car\n", [("road", 0), ("car", 1)]),
        ("a.json", '{"7": "road", "2": "car"}', [("road", 7), ("car", 2)]),
        ("a.json", '{"id2label": {"0": "road", "1": "car"}}', [("road", 0), ("car", 1)]),
        ("a.json", '["road", "car"]', [("road", 0), ("car", 1)]),
        ("classes.txt", "road\r\n\r\ncar\r\n", [("road", 0), ("car", 1)]),
        ("a.tsv", "name\tvalue\nroad\t7\ncar\t2\n", [("road", 7), ("car", 2)]),
    ],
)
def test_tables_of_other_tools(name, content, expected):
    assert [(n, value) for n, _, value, _ in rows(content, name)] == expected


def test_cvat():
    content = "# label:color_rgb:parts:actions\nroad:128,64,128::\na:b:0,0,142:x,y:walk\n"
    assert rows(content, "labelmap.txt") == [
        ("road", (128, 64, 128), 0, 0),
        ("a:b", (0, 0, 142), 1, 1),
    ]
    with pytest.raises(DataError, match="class 1: a line must be name:red,green,blue:parts:act"):
        rows("# label:color_rgb:parts:actions\nroad\n", "labelmap.txt")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("$x_1^2$", "$x_1^2$"),
        ('"two\nlines  and\ttab"', "two lines and tab"),
        (
            "\N{TRACTOR}\N{ZERO WIDTH JOINER}\N{RAINBOW}",
            "\N{TRACTOR}\N{ZERO WIDTH JOINER}\N{RAINBOW}",
        ),
        ('"road, paved"', "road, paved"),
        ('"a ""b"" c"', 'a "b" c'),
        ("x" * 400, "x" * 400),
        ("cafe\u0301", "caf\u00e9"),
        ("=1+1", "=1+1"),
    ],
)
def test_names(name, expected):
    assert rows(f"name,value\n{name},0\nb,1\n", "a.csv")[0][0] == expected


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["0: road", "1: car"], {0: "road", 1: "car"}),
        (["# mine", "7 road", "11 parked car"], {7: "road", 11: "parked car"}),
        (["1,road", "2,car"], {1: "road", 2: "car"}),
        (["1) road", "2) car"], {1: "road", 2: "car"}),
        (["1 Euro", "2 Euro"], {0: "1 Euro", 1: "2 Euro"}),  # Numbers that belong to the names.
        (["2 wheels", "car"], {0: "2 wheels", 1: "car"}),
        (["10 cars", "2 wheels"], {0: "10 cars", 1: "2 wheels"}),
        (["3d model", "4d model"], {0: "3d model", 1: "4d model"}),
    ],
)
def test_numbers_and_comments_in_lines(lines, expected):
    table = ClassTable("\r\n".join(lines).encode(), "classes.txt")
    assert {row.value: row.name for row in table.rows} == expected
    said = [note for note in table.notes if "numbers before the names" in note]
    assert len(said) == (expected.keys() != {0, 1} or lines[0] == "0: road")


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
        ("a.json", "[]", "must have 1 to 255 classes .* It has 0"),
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
        ("a.csv", "name,value,value\na,1,2\n", "once each"),
        ("a.csv", 'name,value\n"a,1\nb,2\n', "is no sound CSV, line 3: unexpected end of data"),
        ("a.csv", 'name,value\n"a"b,1\n', "is no sound CSV, line 2"),
        ("a.csv", "name\n" + "x" * 200000, "is no sound CSV, .*field limit"),
        ("a.csv", "name\na\ufffdb\n", "must consist of printable characters"),
        ("a.csv", "name,value\na,1e3\n", "a value must be 0 to 65535, not '1e3'"),
        ("a.csv", "name,value\na,0.5\n", "a value must be 0 to 65535, not '0.5'"),
        ("a.csv", "name,value\na,٣\n", "a value must be 0 to 65535"),
        ("a.csv", "name\na\u200d\nA\u0301\n\u00c1\n", "Used twice: 'Á'"),
        ("a.json", '[{"name": "a\\ud800"}]', "must consist of printable characters"),
        ("a.json", '[{"name": "a\\u0007"}]', "must consist of printable characters"),
        ("a.json", '[{"name": "a", "name": "b"}]', "a.json has a key twice: 'name'"),
        ("a.json", '{"0": "a", "0": "b"}', "a.json has a key twice: '0'"),
        ("a.json", "[" * 100000, "a.json must be JSON"),
        ("a.json", '[{"name": "a", "value": true}]', "not True"),
        (
            "a.json",
            '[{"name": "a", "value": %s}]' % ("9" * 5000),
            "must be JSON|must be 0 to 65535",
        ),
        ("classes.txt", "", "must have 1 to 255 classes .* It has 0"),
        ("classes.txt", "a\na\n", "Used twice: 'a'"),
        ("a.csv", "name,value\na,1,2\n", "class 1: a row must have 2 cells, this has 3"),
    ],
)
def test_mistakes(name, content, message):
    with pytest.raises(DataError, match=message):
        ClassTable(content.encode(), name)
