# SPDX-License-Identifier: Apache-2.0
"""Rows by their byte offsets: the same rows, errors and order as reading the file as a whole."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddlemix.datasets import index, lazy
from paddlemix.datasets.lazy import Look, open_all, read_all
from paddlemix.datasets.records import UnreadKeys
from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.selection import Selection
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.utils.errors import DataError

texts = st.text(st.sampled_from('\\\\"[]{},:| ä\n1'), max_size=6)
values = st.recursive(
    st.one_of(texts, st.integers(), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=12,
)


def by_index(path: Path) -> list | None:
    """The rows as the index finds them; None for what is no list."""
    try:
        file = index.open_rows(str(path))
        found = [json.loads(raw) for raw in file.raw_range(0, len(file))]
        assert found == [json.loads(file.raw(number)) for number in range(len(file))]
    except (index.NotAListError, ValueError):
        return None
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=120)
@given(
    rows=st.lists(values, max_size=5), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]),
    block=st.sampled_from([2, 3, 7, 1 << 20]), cut=st.integers(0, 60), broken=st.booleans(),
    put=st.sampled_from(["", '"', ",", "]", "[", "}", "\\"]),
)  # fmt: skip
def test_rows_are_those_of_the_whole_file_whatever_stands_in_it(
    tmp_path, monkeypatch, rows, ascii_only, indent, block, cut, put, broken
):
    text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    if broken:
        text = text[:cut] + put + text[cut + 1 :]
    try:
        wanted = json.loads(text)
    except ValueError:
        wanted = None
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(index, "_BLOCK", block)
    assert by_index(tmp_path / "rows.json") == (wanted if isinstance(wanted, list) else None)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("{}", 1), ("{}\n", 1), ("\n{}\n\n{}", 4), ("\ufeff{}\n[]\n", 2)])
def test_lines_end_at_line_feeds_alone(tmp_path, text, count):
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    assert len(index.open_rows(str(tmp_path / "rows.jsonl"))) == count


@pytest.fixture
def large(tmp_path: Path, monkeypatch) -> Path:
    """A file that counts as large: its offsets are kept, and its rows are read from the disk."""
    monkeypatch.setattr(index, "_LARGE", 10)
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "home"))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"conversations": [[f"question {i}", "yes"]], "id": str(i)} for i in range(50)]))
    return path


def lazily(path: Path, bad: BadSamples | None = None, jobs: int = 1):
    unread = UnreadKeys()
    rows, _ = read_all(open_all([DatasetEntry((str(path),))]), bad or BadSamples(), unread, Look(), jobs=jobs)
    return rows


def kept(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "home" / "row_index").iterdir()
    return found


def test_the_offsets_of_a_large_file_are_kept_and_used(large, tmp_path, monkeypatch):
    first = list(lazily(large))
    assert kept(tmp_path).stat().st_mode & 0o077 in (0o044, 0o000, 0o004, 0o040)
    monkeypatch.setattr(index, "_list_bounds", None)
    assert list(lazily(large)) == first == read(DatasetEntry((str(large),)))


@pytest.mark.parametrize("damage", ["bytes", "shorter", "empty", "head", "other"])
def test_offsets_that_are_damaged_are_not_believed(large, tmp_path, damage):
    first = list(lazily(large))
    path = kept(tmp_path)
    data = path.read_bytes()
    _, _, body = data.partition(b"\n")
    found = {
        "bytes": data[:-9] + b"x" + data[-8:],
        "shorter": data[:-8],
        "empty": b"",
        "head": b"[" * 99999 + b"\n" + body,
        "other": json.dumps({"file": {}, "sum": ""}).encode() + b"\n" + body,
    }[damage]
    path.write_bytes(found)
    assert list(lazily(large)) == first
    assert path.read_bytes() == data


def test_offsets_of_a_file_that_was_written_anew_are_made_anew(large):
    lazily(large)
    times = os.stat(large)
    rows = json.loads(large.read_text())
    rows[0], rows[1] = {**rows[0], "id": "123"}, {**rows[1], "conversations": [["question", "ye"]]}
    text = json.dumps(rows)
    large.write_text(text + " " * (times.st_size - len(text)))
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time: who looks at these is fooled
    assert list(lazily(large)) == read(DatasetEntry((str(large),)))


def test_a_home_that_cannot_be_written_costs_nothing(large, monkeypatch, tmp_path):
    (tmp_path / "home").write_text("a file")
    assert len(lazily(large)) == 50


def test_a_row_that_is_written_over_during_a_run_is_an_error_that_names_it(large):
    rows = lazily(large)
    with large.open("r+b") as stream:
        stream.seek(large.read_bytes().index(b"question 7"))
        stream.write(b"QUESTION")
    assert rows[6].id == "6"
    with pytest.raises(DataError, match=r"rows.json: /7: the row says something else than when the run began"):
        rows[7]


def test_several_processes_find_what_one_finds(large, monkeypatch):
    monkeypatch.setattr(lazy, "PORTION", 7)
    monkeypatch.setattr(lazy, "_FEW", 0)
    text = large.read_text().replace('"question 11", "yes"', '"question 11"').replace('"question 30", "yes"', "3, 4")
    large.write_text(text)
    bad, same = (BadSamples("skip", limit=1) for _ in range(2))
    several, one = lazily(large, bad, jobs=2), lazily(large, same)
    assert list(several) == list(one)
    assert len(one) == 48
    assert bad.unread == same.unread == 2
    assert np.array_equal(several.digests, one.digests)
    for jobs in (1, 2):
        with pytest.raises(DataError, match=r"rows.json: /11/conversations/0: expected a pair"):
            lazily(large, jobs=jobs)


def test_a_list_that_is_broken_behind_a_bad_row_is_told_as_broken(large):
    large.write_text('[{"conversations": []},\n{"conversations": [["a", "b"]]},\n{"a": }]')
    with pytest.raises(DataError, match=r"rows.json:3:7: not JSON"):
        lazily(large)


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        (Selection(eval_split=3), r"training \(eval_split 3\)"),
        (Selection("first:0", side="eval"), r"evaluation \(sampling_strategy first:0\)"),
    ],
)
def test_keys_that_leave_no_row_are_named(tmp_path, selection, told):
    (tmp_path / "rows.json").write_text(json.dumps([{"conversations": [["a", "b"]]}] * 3))
    with pytest.raises(DataError, match=r"rows\.json: none of its 3 rows are left for " + told):
        open_all([DatasetEntry((str(tmp_path / "rows.json"),), selection=selection)])
