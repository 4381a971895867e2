"""Lists of classes: every form that is allowed, and errors that name the line."""

import numpy as np
import pytest

from resnest_seg.data.class_lists import infer_classes, read_classes
from resnest_seg.errors import DatasetError
from resnest_seg.labels import IGNORE_LABEL, LabelSpace

FULL = LabelSpace("mine", ("road", "car"), ((1, 2, 3), (4, 5, 6)), (7, 9), (0, IGNORE_LABEL), ((0, 0, 0),))


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("c.csv", "name,id,red,green,blue,ignore\nroad,7,1,2,3,\nvoid,0,0,0,0,true\ncar,9,4,5,6,no\n", FULL),
        ("c.csv", "\ufeffname,id,red,green,blue,ignore\nroad,7,1,2,3,0\nvoid,0,0,0,0,1\ncar,9,4,5,6,0\n", FULL),
        ("c.yaml", "- {name: road, id: 7, color: [1, 2, 3]}\n- {name: void, id: 0, color: [0, 0, 0], ignore: true}\n"
                   "- {name: car, id: 9, color: [4, 5, 6]}\n", FULL),
        ("c.csv", "name\nroad\ncar\n", LabelSpace.numbered(2, names=["road", "car"], name="mine")),
        ("c.yml", "[road, car]", LabelSpace.numbered(2, names=["road", "car"], name="mine")),
        ("c.csv", "name\nroad\n\n  \ncar\n", LabelSpace.numbered(2, names=["road", "car"], name="mine")),
        ("c.csv", "name, id ,ignore\r\n road,0,\r\n,,\r\n\"a, b\", 1, No\r\n , ,\r\n",
         LabelSpace.numbered(2, names=["road", "a, b"], name="mine")),
        ("c.yaml", "- 'no'\n- \"1.7\"\n", LabelSpace.numbered(2, names=["no", "1.7"], name="mine")),
    ],
)  # fmt: skip
def test_forms(file, text, expected, tmp_path):
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_classes(tmp_path / file, name="mine") == expected


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("c.csv", "label,id\nroad,1\n", "unknown columns label"),
        ("c.csv", "name,id\nroad,1\ncar,1\n", "the id 1 is listed twice"),
        ("c.csv", "name,id\nroad,x\n", "line 2: the id must be a whole number, not 'x'"),
        ("c.csv", "name,id\nroad,300\n", "ids must lie in 0..255"),
        ("c.csv", "name,red,green,blue\nroad,1,2,999\n", "does not lie in 0..255"),
        ("c.csv", "name\n", "0 classes"),
        ("c.yaml", "road: 1", "not a list"),
        ("c.yaml", "- {name: road, colour: [1, 2, 3]}", "unknown keys colour"),
        ("c.yaml", "- {id: 3}", "entry 1 has no name"),
        ("c.yaml", "[a: b: c", "is not a class list"),
        ("c.csv", "name,id,id\nroad,1,2\n", "each column once"),
        ("c.csv", "id\n1\n", "must have name"),
        ("c.csv", "", "must have name"),
        ("c.csv", "name\nroad,1\n", "line 2 has more values than the header"),
        ("c.csv", "name,id\n,1\n", "line 2: the name '' is empty"),
        ("c.csv", "name,id\nroad,1\ncar,\n", "line 3 has no id, but others have"),
        ("c.csv", "name\nroad\n\nroad\n", "the name 'road' is listed twice, in line 2 and line 4"),
        ("c.csv", "name\nro\0ad\n", "line 2: the name 'ro\\x00ad' is empty or holds control characters"),
        (
            "c.csv",
            'name,id\n"road,1\ncar,2\n',
            'after line 1: unexpected end of data. Is a quote (") without its partner',
        ),
        ("c.csv", "name,green\nroad,3\n", "line 2: a colour's share must be a whole number, not ''"),
        ("c.csv", "name,ignore\nroad,\ncar,ja\n", "line 3: ignore must be yes, true, 1 or x"),
        ("c.yaml", "[road, no]", "entry 2: YAML reads the name as False"),
        ("c.yaml", "[road, 1.7]", "entry 2: YAML reads the name as 1.7, which is not text"),
        ("c.yaml", "[road, 17]", "write it in quotes"),
        ("c.yaml", "- road\n-\n", "entry 2: YAML reads the name as None"),
        ("c.yaml", "[road, [car]]", "entry 2: YAML reads the name as ['car']"),
        ("c.yaml", "- &a [*a]", "entry 1: YAML reads the name as [[["),
        ("c.yaml", "- {name: road, id: 1.7}", "entry 1: the id must be a whole number without quotes, not 1.7"),
        ("c.yaml", "- {name: road, id: yes}", "not True"),
        ("c.yaml", "- {name: road, id: '1'}", "not '1'"),
        ("c.yaml", "- {name: road, color: '123'}", "three whole numbers, [red, green, blue], not '123'"),
        ("c.yaml", "- {name: road, color: [1, 2.5, 3]}", "three whole numbers"),
        ("c.yaml", "- {name: road, ignore: never}", "entry 1: ignore must be"),
        ("c.yaml", "- {name: road, id: 1, name: car}", "duplicate key 'name' on lines 1 and 1"),
        ("c.yaml", "[road, '']", "entry 2: the name '' is empty"),
        ("c.yaml", "[road, car, road]", "the name 'road' is listed twice, in entry 1 and entry 3"),
        ("c.yaml", "[" * 3000, "nested more than 50 levels"),
    ],
)
def test_what_is_no_list_is_named(file, text, says, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(DatasetError) as error:
        read_classes(tmp_path / file)
    assert says in str(error.value)
    assert str(tmp_path / file) in str(error.value)


@pytest.mark.parametrize("word", ["yes", "No", "TRUE", "false", "x", "X", "1", "0", "", " yes "])
def test_what_ignore_may_say(word, tmp_path):
    (tmp_path / "c.csv").write_text(f"name,ignore\nroad,\nvoid,{word}\n")
    (tmp_path / "c.yaml").write_text(f"- road\n- {{name: void, ignore: {word}}}\n")
    expected = 1 if word.strip().lower() in ("yes", "true", "x", "1") else 2
    assert len(read_classes(tmp_path / "c.csv")) == len(read_classes(tmp_path / "c.yaml")) == expected


@pytest.mark.parametrize("file", ["c.csv", "c.yaml"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_list_that_is_not_utf_8_is_named(file, encoding, tmp_path):
    (tmp_path / file).write_bytes("name\nstra\u00dfe\n".encode(encoding))
    with pytest.raises(
        DatasetError, match=r"c\.\w+ is not a class list \(its byte \d+ is not UTF-8: save it as UTF-8\)"
    ):
        read_classes(tmp_path / file)


def test_inferred_from_ids_and_from_colours():
    ids = infer_classes([np.array([[3, 255]], np.uint8), np.array([[9, 3]], np.uint8)])
    assert (ids.raw_ids, ids.names, ids.ignored_raw_ids) == ((3, 9), ("class 3", "class 9"), (255,))
    colours = np.array([[[0, 0, 0], [9, 8, 7]]], np.uint8)
    space = infer_classes([colours])
    assert space.colors == ((0, 0, 0), (9, 8, 7))
    assert space.encode_colors(colours).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ([], "hold no class"),
        ([np.full((2, 2), 255, np.uint8)], "hold no class"),
        ([np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)], "some masks hold ids and some hold colours"),
        ([np.arange(300 * 3).reshape(1, 300, 3).astype(np.uint8)], "more than 253 colours"),
    ],
)
def test_what_cannot_be_inferred(masks, says):
    with pytest.raises(DatasetError, match=says):
        infer_classes(masks)


def test_colours_of_no_class_are_named():
    with pytest.raises(DatasetError, match=r"colours that are not in label space 'mine': \(9, 9, 9\)"):
        FULL.encode_colors(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8))
    assert FULL.encode_colors(np.array([[[0, 0, 0], [4, 5, 6]]], np.uint8)).tolist() == [[IGNORE_LABEL, 1]]
    twins = LabelSpace("twins", ("a", "b"), ((1, 1, 1), (1, 1, 1)), (0, 1))
    with pytest.raises(DatasetError, match=r"several classes .* share the colour \(1, 1, 1\)"):
        twins.encode_colors(np.zeros((1, 1, 3), np.uint8))
    assert LabelSpace.from_dict(FULL.to_dict()) == FULL
