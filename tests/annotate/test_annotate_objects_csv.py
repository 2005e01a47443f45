# SPDX-License-Identifier: Apache-2.0
"""CSV files of objects: what the csv module writes is read back, and what people write is read as they mean it."""

import csv
import io
import random

import pytest

from paddlemix.annotate.objects import read_objects
from paddlemix.annotate.objects_csv import SEPARATORS
from paddlemix.utils.errors import DataError


def read(folder, text, key="id", name="o.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return read_objects(folder / name, key)


def pairs(records, key="id"):
    return [(record[key], record.get("caption")) for record in records]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("header", [None, ("id", "caption"), ("Object ID", "Description")])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_what_the_csv_module_writes_is_read_back(tmp_path, separator, header, ends):
    draw = random.Random(f"{separator}{header}")
    pieces = ["a", "chair", '"', '""', ",", ";", "\t", "|", "\n", " red", "é", "椅子", "12"]
    rows = [
        (f"o{number:03d}", "x" + "".join(draw.choice(pieces) for _ in range(draw.randint(0, 9))) + ".")
        for number in range(200)
    ]
    stream = io.StringIO()
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    csv.writer(stream, delimiter=separator, lineterminator=ends, quoting=quoting).writerows(
        [header, *rows][not header :]
    )
    assert pairs(read(tmp_path, stream.getvalue(), encoding="utf-8-sig")) == rows


@pytest.mark.parametrize(
    ("text", "records"),
    [
        # Separators, quotes and line breaks inside of captions.
        ("a1,A chair, red; old\nb2,x", [("a1", "A chair, red; old"), ("b2", "x")]),
        ("a1;A chair, red; old\nb2;x, y\n", [("a1", "A chair, red; old"), ("b2", "x, y")]),
        ("a1\tA chair, red\tblue\n", [("a1", "A chair, red\tblue")]),
        ('a1, "red, round"\nb2,12" ruler\nc3,"one" and "two"\n', [("a1", "red, round"), ("b2", '12" ruler'),
                                                                 ("c3", '"one" and "two"')]),
        ('a1,"one\n\ntwo; ""x"", three"\nb2,y', [("a1", 'one\n\ntwo; "x", three'), ("b2", "y")]),
        ('a1\t"one, two\nthree, four\nfive, six"\nb2\ty\n', [("a1", "one, two\nthree, four\nfive, six"), ("b2", "y")]),
        ('a1,red, "12 inch\nb2,x\n', [("a1", 'red, "12 inch'), ("b2", "x")]),
        ('"a,1",x\n"b;2",y\n', [("a,1", "x"), ("b;2", "y")]),
        ("a1\n\nb2\n", [("a1", None), ("b2", None)]),
        # Headers.
        ("name,caption\na1,x\n", [("a1", "x")]),
        ("UID;Text\na1;x\n", [("a1", "x")]),
        ("id,caption\na1;x, y\nb2;z\n", [("a1", "x, y"), ("b2", "z")]),
        ("whatever,caption\na1,x\n", [("a1", "x")]),
        ("编号,描述\na1,红色\n", [("a1", "红色")]),
        ('"id","caption"\n"a1","x"\n', [("a1", "x")]),
        ("sep=;\nid;caption\na1;x\n", [("a1", "x")]),
        ("id\na1\n", [("a1", None)]),
        # Objects whose name or caption is a word of a header.
        ("image,A red chair\na1,x\n", [("image", "A red chair"), ("a1", "x")]),
        ("a1,caption\nb2,text\n", [("a1", "caption"), ("b2", "text")]),
    ],
)  # fmt: skip
def test_what_people_write_is_read_as_they_mean_it(tmp_path, text, records):
    assert pairs(read(tmp_path, text)) == records


def test_columns_go_by_their_names_wherever_they_stand(tmp_path):
    text = 'score,caption,image_path,\n3,"red, round",a.png,1\n'
    assert read(tmp_path, text, "image_pth") == [
        {"score": "3", "caption": "red, round", "image_pth": "a.png", "column 4": "1"}
    ]


def test_the_key_is_the_name_where_several_columns_could_be(tmp_path):
    assert pairs(read(tmp_path, "name\tid\ttext\nchair\ta1\ta, b\n", name="o.tsv")) == [("a1", "a, b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a1,x\nb2,"12 inch\nc3,y\n', r"o\.csv:2: a quote opens here"),
        ("a1,x\nb2;y\n" + "c3,z\n" * 2, r'o\.csv:2: no "," in this line, but a ";"; use one separator'),
        ("caption,id\nx, y,a1\n", r"o\.csv:2: 3 cells where the header has 2; put a text with \",\" in it in quotes"),
        ("id,caption\n\n,x\n", r'o\.csv:3: "id" is ""'),
        ("id,caption\n", "expected a list of objects that is not empty"),
    ],
)
def test_what_could_mean_two_things_is_an_error_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)
