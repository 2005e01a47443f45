# SPDX-License-Identifier: Apache-2.0
"""Tars of webdataset and img2dataset: rows and captions with the images beside them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from paddlemix.datasets.lazy import LazyRows, Look, open_all, read_all
from paddlemix.datasets.pictures import DECODE, PLAIN_RULES
from paddlemix.datasets.records import UnreadKeys
from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.sources import DatasetEntry
from paddlemix.utils.errors import DataError
from tests.tiny import tiny_image


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def png(kind: int) -> bytes:
    stream = io.BytesIO()
    tiny_image(kind).save(stream, "PNG")
    return stream.getvalue()


def talk(text: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]}


def write(path: Path, members: list[tuple[str, bytes | dict[str, Any]]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            data = json.dumps(content).encode() if isinstance(content, dict) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def lazily(path: Path) -> tuple[LazyRows, dict[int, DataError]]:
    entry = DatasetEntry((str(path),), None)
    return read_all(open_all([entry]), BadSamples(), UnreadKeys(), Look(rules=PLAIN_RULES, how=DECODE))


def test_rows_captions_several_images_and_text_alone(tmp_path):
    said = talk("<image>\nwhat?", "a")
    path = write(tmp_path / "rows.tar", [
        ("a/1.png", png(1)), ("a/1.json", {**said, "image": "an/other/name.png", "id": "own"}),
        ("b/1.txt", b"a red square\n"), ("b/1.png", png(2)), ("b/1.json", {"url": "https://x", "width": 4}),
        ("b/2.json", talk("<image> or <image>?", "both")), ("b/2.10.png", png(0)), ("b/2.9.png", png(1)),
        ("b/3.json", talk("no image", "none")),
    ])  # fmt: skip
    samples, faults = lazily(path)
    assert not faults
    assert [sample.id for sample in samples] == ["own", "1", "2", "3"]
    assert [message.text for message in samples[1].messages] == ["<image>", "a red square"]
    shown = [[PLAIN_RULES.load(sample, image).tobytes() for image in sample.images] for sample in samples]
    bare = [tiny_image(kind).tobytes() for kind in range(3)]
    assert shown == [[bare[1]], [bare[2]], [bare[1], bare[0]], []]
    assert samples[2].where == f'{path}: /2 (id "2")'
    again, _ = lazily(path)
    assert (again.digests == samples.digests).all()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.mp4", b"x")], "rows.tar: 1.mp4: not read; a row is NAME.json or NAME.txt and images"),
        ([("1.png", b"x")], "./1: neither a conversation in .json nor a caption in .txt"),
        ([("1.json", b"[1]")], "1.json: expected an object"),
        ([("1.json", b"{no")], "1.json"),
        ([("1.txt", b"\xff")], "1.txt: byte 0: not UTF-8"),
        ([("1.txt", b"a"), ("1.txt", b"b")], "1.txt: is there twice"),
        ([("1.txt", b"a"), ("1.png", b"no image")], "rows.tar: /0"),
    ],
)
def test_what_is_no_row_is_told_by_its_name(tmp_path, home, members, message):
    path = write(tmp_path / "rows.tar", members)
    try:
        told = str(lazily(path)[1][0])  # an image that is none is a fault of its row
    except DataError as error:
        told = str(error)
    assert message in told


def test_a_file_that_is_no_tar_or_ends_early_leaves_nothing(tmp_path, home):
    (tmp_path / "no.tar").write_bytes(b"a tar" * 300)
    path = write(tmp_path / "torn.tar", [(f"{number}.txt", b"caption " * 99) for number in range(9)])
    path.write_bytes(path.read_bytes()[:4000])
    for name in ("no.tar", "torn.tar"):
        with pytest.raises(DataError, match=f"{name}: not a tar, or damaged"):
            lazily(tmp_path / name)
    assert not list(home.rglob("rows.jsonl*"))
