# SPDX-License-Identifier: Apache-2.0
"""Parquet files as the HF hub has them: the same samples as from JSON, images out of the file itself."""

import builtins
import io
import json
from pathlib import Path
from typing import Any

import pytest

from paddlemix.datasets.index import open_rows
from paddlemix.datasets.lazy import LazyRows, Look, open_all, read_all
from paddlemix.datasets.parquet import written_out
from paddlemix.datasets.pictures import DECODE, PLAIN_RULES
from paddlemix.datasets.records import UnreadKeys
from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.datasets.unpacked import ROWS
from paddlemix.utils.errors import DataError
from tests.tiny import tiny_image

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def png(kind: int) -> bytes:
    stream = io.BytesIO()
    tiny_image(kind).save(stream, "PNG")
    return stream.getvalue()


def talk(text: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]


def rows(count: int = 40) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        image = None if number % 4 == 0 else {"bytes": png(number % 3), "path": f"{number}.png"}
        mark = "<image>\n" if image else ""
        found.append(
            {"id": f"é{number}", "image": image, "conversations": talk(f"{mark}what {number}?", f"a {number}")}
        )
    return found


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(found), path, row_group_size=8)
    return path


def lazily(path: Path, folder: str | None = None) -> tuple[LazyRows, dict[int, DataError]]:
    entry = DatasetEntry((str(path),), folder)
    return read_all(open_all([entry]), BadSamples(), UnreadKeys(), Look(rules=PLAIN_RULES, how=DECODE))


def test_rows_of_parquet_say_what_those_of_json_say_and_bring_their_images(tmp_path):
    path = write(tmp_path / "rows.parquet", rows())
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "image": row["image"] and "x.png"} for row in rows()]))
    tiny_image().save(tmp_path / "x.png")
    samples, faults = lazily(path, str(tmp_path))
    same, _ = lazily(tmp_path / "rows.json", str(tmp_path))
    assert not faults
    assert [sample.messages for sample in samples] == [sample.messages for sample in same]
    assert samples[5].where == f'{path}: /5 (id "é5")'
    for number in (1, 5, 38):
        picture = PLAIN_RULES.load(samples[number], samples[number].images[0])
        assert picture.tobytes() == tiny_image(number % 3).tobytes()
    assert len([file for file in (Path(samples[1].image_root)).rglob("*") if file.is_file()]) == 3


def test_a_parquet_file_is_written_out_once_and_anew_when_it_changes(tmp_path):
    path = write(tmp_path / "rows.parquet", rows())
    first = written_out(str(path)).rows
    time = first.stat().st_mtime_ns
    assert written_out(str(path)).rows == first
    assert first.stat().st_mtime_ns == time
    write(path, rows(12))
    assert written_out(str(path)).rows != first
    assert len(read(DatasetEntry((str(path),)))) == 12


def test_images_that_are_paths_lie_in_the_image_folder(tmp_path):
    tiny_image(1).save(tmp_path / "a.png")
    row = {"image": {"bytes": None, "path": "a.png"}, "conversations": talk("<image>what?", "a")}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    turn = pyarrow.struct([("from", pyarrow.string()), ("value", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("conversations", pyarrow.list_(turn))])
    parquet.write_table(pyarrow.Table.from_pylist([row], schema=schema), tmp_path / "rows.parquet")
    samples, faults = lazily(tmp_path / "rows.parquet", str(tmp_path))
    assert not faults
    assert samples[0].images == (str(tmp_path / "a.png"),)
    mixed = [row, {**row, "image": {"bytes": png(0), "path": None}}]
    parquet.write_table(pyarrow.Table.from_pylist(mixed, schema=schema), tmp_path / "mixed.parquet")
    with pytest.raises(DataError, match=r"mixed.parquet: /1: some images of this file hold their bytes"):
        lazily(tmp_path / "mixed.parquet", str(tmp_path))


def test_a_damaged_image_or_row_is_told_by_file_and_record(tmp_path):
    broken = rows(8)
    broken[2]["image"]["bytes"] = b"no image"
    _, faults = lazily(write(tmp_path / "rows.parquet", broken))
    assert list(faults) == [2]
    assert f'{tmp_path}/rows.parquet: /2 (id "é2")' in str(faults[2])
    broken[3]["conversations"] = []
    with pytest.raises(DataError, match=r"rows.parquet: /3/conversations"):
        lazily(write(tmp_path / "rows.parquet", broken))


def test_a_file_that_is_no_parquet_or_ends_early_leaves_nothing(tmp_path, home):
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"no.parquet: not a parquet file"):
        lazily(tmp_path / "no.parquet")
    path = write(tmp_path / "torn.parquet", rows(200))
    data = bytearray(path.read_bytes())
    data[40:4000] = bytes(3960)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"torn.parquet: cannot be read"):
        lazily(path)
    assert not list(home.rglob("rows.jsonl*"))


def test_large_files_are_read_from_the_disk_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr("paddlemix.datasets.index._LARGE", 100)
    path = write(tmp_path / "rows.parquet", rows())
    samples, _ = lazily(path)
    assert isinstance(samples.chosen[0].file.source, int)
    assert samples[39].id == "é39"
    kept = open_rows(str(written_out(str(path)).rows))
    assert len(kept) == 40


def test_without_pyarrow_the_pip_line_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.parquet", rows(4))
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"rows.parquet: parquet is read with pyarrow.*pip install 'pyarrow<22'"):
        lazily(path)


def test_the_rows_that_were_written_are_json_lines(tmp_path):
    written = written_out(str(write(tmp_path / "rows.parquet", rows(5))))
    first = json.loads((written.rows.parent / ROWS).read_text(encoding="utf-8").splitlines()[1])
    assert first["conversations"] == talk("<image>\nwhat 1?", "a 1")
    assert first["image"].count("/") == 1
