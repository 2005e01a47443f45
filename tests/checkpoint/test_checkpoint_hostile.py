# SPDX-License-Identifier: Apache-2.0
"""Folders with something crafted in them, through the commands: a line that names the file, exit code 2, no rest."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from paddlemix.checkpoint.formats.pdparams import PIECES_TABLE
from paddlemix.checkpoint.formats.source import open_file
from paddlemix.tools import convert_weights, doctor
from paddlemix.utils.errors import CheckpointError
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_model

SIX = np.arange(6, dtype=np.float32).tobytes()
NESTED = b"N\x85" + b"q\x00h\x00\x86" * 60
"""A tuple of two halves that are one tuple of two halves ...: 2^60 ends, which no error may spell out."""

_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
_F4 = b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R"
_STATE = b"(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
_END = b"\x89C\x08" + bytes(8) + b"tb"


def config(**changes):
    def make(folder: Path) -> str:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, **changes}))
        return "config.json"

    return make


def torch(value: bytes, **members: bytes):
    def make(folder: Path) -> str:
        (folder / "model.safetensors").unlink()
        kit.write_pickle(folder / "pytorch_model.bin", value, _0=SIX, **members)
        return "pytorch_model.bin"

    return make


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return kit.dict_of({"w": kit.global_(module, name) + kit.tuple_of(*arguments) + b"R"})


def rebuilt(shape: bytes, stride: bytes) -> bytes:
    return call("torch._utils", "_rebuild_tensor_v2", kit.storage("float32", "0", 6), b"K\x00", shape, stride, b"\x89",
                kit.ORDERED)  # fmt: skip


def paddle(data: bytes):
    def make(folder: Path) -> str:
        (folder / "model.safetensors").unlink()
        (folder / "model_state.pdparams").write_bytes(data)
        return "model_state.pdparams"

    return make


def array(shape: bytes = b"K\x02\x85", dtype: bytes = _F4, state: bytes = _STATE, end: bytes = _END) -> bytes:
    return b"\x80\x04}X\x01\0\0\0w" + _ARRAY + shape + dtype + state + end + b"s."


def header(raw: bytes | dict, data: bytes = b""):
    def make(folder: Path) -> str:
        kit.write_header(folder / "model.safetensors", raw, data)
        return "model.safetensors"

    return make


def one(name: str, **changes):
    entry = {**kit.entry("F32", [1], 0, 4), **changes}
    return header({name: entry}, b"1234")


def changed(edit):
    """The folder's own safetensors with another header."""

    def make(folder: Path) -> str:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        found = json.loads(raw[8 : 8 + length])
        edit(found, len(raw) - 8 - length)
        kit.write_header(path, found, raw[8 + length :])
        return "model.safetensors"

    return make


def index(weight_map: object = None, raw: str | None = None):
    def make(folder: Path) -> str:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        text = json.dumps({"weight_map": weight_map}) if raw is None else raw
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        return "model.safetensors.index.json"

    return make


def archive(edit):
    def make(folder: Path) -> str:
        (folder / "model.safetensors").unlink()
        path = kit.write_pickle(folder / "pytorch_model.bin", kit.dict_of({"w": kit.tensor("float32", "0", 6, (2, 3))}),
                                _0=SIX)  # fmt: skip
        data = bytearray(path.read_bytes())
        path.write_bytes(edit(data) or data)
        return "pytorch_model.bin"

    return make


def _poke(signature: bytes, at: int, value: bytes):
    def edit(data: bytearray) -> None:
        place = data.index(signature) + at
        data[place : place + len(value)] = value

    return edit


def file(name: str, data: bytes):
    def make(folder: Path) -> str:
        (folder / name).write_bytes(data)
        return name

    return make


def link(target: str):
    def make(folder: Path) -> str:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(target)
        return "tiny"

    return make


NORM = "model.norm.weight"
CASES = {
    "zip64 sizes that lie": archive(_poke(b"PK\x01\x02", 20, b"\xff" * 8)),
    "a length of the local header": archive(_poke(b"PK\x03\x04", 28, struct.pack("<H", 4000))),
    "a header offset past the end": archive(_poke(b"PK\x01\x02", 42, struct.pack("<I", 1 << 31))),
    "bytes before the archive": archive(lambda data: b"MZ" + data),
    "far more bytes behind it": archive(lambda data: data + b"y" * 70_000),
    "a NUL in a member's name": archive(lambda data: data.replace(b"archive/version", b"archive/data/0\0")),
    "a nested tuple as key": torch(b"\x80\x02}" + NESTED + b"Ns."),
    "a nested tuple as value": torch(b"\x80\x02}" + kit.text("w") + NESTED + b"s."),
    "a nested tuple as shape": torch(rebuilt(NESTED, NESTED)),
    "a nested tuple that is called": torch(b"\x80\x02" + NESTED + b")R."),
    "a huge shape with a zero": torch(rebuilt(b"(" + kit.number(1 << 61) + b"K\x00t", b"K\x00K\x00\x86")),
    "a name of 9 MB twice": torch(b"\x80\x02}(" + (kit.text("k" * 9_000_000) + b"N") * 2 + b"u."),
    "a name with control characters": torch(kit.dict_of({"w\x1b[31m\n": kit.tensor("float32", "0", 6, (2, 3))})),
    "a storage of bytes": torch(call("torch.storage", "UntypedStorage")),
    "a newer rebuild": torch(call("torch._utils", "_rebuild_tensor_v3")),
    "a sparse tensor": torch(call("torch._utils", "_rebuild_sparse_tensor")),
    "a meta tensor": torch(call("torch._utils", "_rebuild_meta_tensor_no_storage")),
    "a loader in a codec": torch(call("codecs", "decode", kit.text("x"), kit.text("zip"))),
    "a storage in a storage": torch(kit.dict_of({"w": kit.tuple_of(kit.storage("float32", "0", 6)) + b"Q"})),
    "paddle: nested tuple as shape": paddle(array(shape=NESTED)),
    "paddle: nested tuple as state": paddle(array(state=NESTED + b"b")),
    "paddle: nested tuple as name": paddle(array(dtype=b"cnumpy\ndtype\n" + NESTED + b"\x89\x88\x87R")),
    "paddle: nested tuple as value": paddle(b"\x80\x04}X\x01\0\0\0w" + NESTED + b"s."),
    "paddle: huge shape with a zero": paddle(
        array(shape=b"\x8a\x08" + struct.pack("<Q", 1 << 61) + b"K\x00\x86", end=b"\x89C\x00tb")
    ),
    "paddle: a piece of rank 100": paddle(
        pickle.dumps({"p": np.ones(1, "f4"), PIECES_TABLE: {"w": {"OriginShape": (1,) * 100, "slices": ["p"]}}}, 2)
    ),
    "paddle: one piece many times": paddle(
        pickle.dumps({"p": np.ones(1, "f4"), PIECES_TABLE: {"w": {"OriginShape": (2,), "slices": ["p", "p"]}}}, 2)
    ),
    "a huge safetensors shape with a zero": one("w", shape=[1 << 62, 0], data_offsets=[0, 0]),
    "many names, the last one twice": header(
        ("{" + "".join(f'"n{i}":0,' for i in range(60_000)) + '"n59999":1}').encode()
    ),
    "a number of 5000 digits": header(
        b'{"w":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"1"
    ),
    "NaN as a size": header(b'{"w":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"1"),
    "half a character as name": one("\ud800"),
    "a name that clears the screen": one("w\x1b[2J"),
    "a name without an end": one("w" * 100_000),
    "no name": one(""),
    "offsets in the other order": changed(lambda found, _: found[NORM]["data_offsets"].reverse()),
    "two tensors at one place": changed(
        lambda found, _: found.update({"model.mm_projector.2.bias": found["model.mm_projector.0.bias"]})
    ),
    "numbers of 8 bits": changed(lambda found, end: found.update(x={**kit.entry("F8_E4M3", [0], end, end)})),
    "integers as a weight": changed(lambda found, _: found[NORM].update(dtype="I32")),
    "a name twice in the index": index(raw='{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}'),
    "a shard without an end": index({"w": "s" * 5000}),
    "a shard that rings": index({"w": "s\n\x07.safetensors"}),
    "a shard that is a list": index({"w": ["a.safetensors"]}),
    "the index as its own shard": index({"w": "model.safetensors.index.json"}),
    "an index without a bottom": index(raw="[" * 200_000),
    "weights that are /etc/passwd": link("/etc/passwd"),
    "weights that are /dev/zero": link("/dev/zero"),
    "weights that are themselves": link("model.safetensors"),
    "a billion layers": config(num_hidden_layers=10**9),
    "a width of 2^40": config(hidden_size=1 << 40),
    "a vocabulary of 2^50": config(vocab_size=1 << 50),
    "heads of width -8": config(head_dim=-8),
    "heads of width 3": config(head_dim=3),
    "a window of -1": config(sliding_window=-1),
    "200000 pinpoints": config(image_aspect_ratio="anyres", image_grid_pinpoints=[[28, 28]] * 20_000),
    "a pinpoint without an end": config(image_aspect_ratio="anyres", image_grid_pinpoints=[[28 * 10**9, 28]]),
    "a tower with a NUL": config(mm_vision_tower="a\0b"),
    "a tower without an end": config(mm_vision_tower="a" * 6000),
    "a tower that is a file": config(mm_vision_tower="/etc/passwd"),
    "a tower that is the model": config(mm_vision_tower="."),
    "a generation file cut off": file("generation_config.json", b'{"eos_token_id": '),
    "a tokenizer of noise": file("tokenizer.model", bytes(range(256)) * 20),
    "a configuration without a bottom": file("config.json", b'{"a":' + b"[" * 300_000),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return kit.hub(tmp_path_factory.mktemp("hub"), tiny_model(2))


@pytest.mark.parametrize("name", CASES)
def test_a_crafted_folder_is_refused_in_a_line_and_leaves_nothing(name, hub, tmp_path, capsys, monkeypatch):
    place = tmp_path / "liuhaotian" / "tiny"
    place.mkdir(parents=True)
    for path in hub["llava"].iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (tmp_path / "openai").symlink_to(hub["clip"].parent)
    monkeypatch.chdir(tmp_path)
    names = CASES[name](place)
    before = sorted(os.listdir(tmp_path))
    assert convert_weights.main(["--src", str(place), "--dst", str(tmp_path / "out"), "--to", "own"]) == 2
    said = capsys.readouterr().err
    assert names in said
    assert len(said) < 3000
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "Traceback" not in said
    assert sorted(os.listdir(tmp_path)) == before
    assert doctor.main(["--verify", str(place)]) in (0, 1)
    assert doctor.main([str(place)]) in (0, 1)


def test_every_torn_bin_is_refused(tmp_path):
    path = kit.write_bin(tmp_path / "x.bin", {"w": ("float32", np.zeros((4, 4), np.float32))})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.bin"):
            open_file(path).read("w")


def test_an_archive_that_was_streamed_is_read(tmp_path):
    """Its local headers have no sizes; the directory has them."""
    values = np.arange(6, dtype=np.float32)
    kit.write_bin(tmp_path / "a.bin", {"w": ("float32", values)})
    with zipfile.ZipFile(tmp_path / "a.bin") as source, open(tmp_path / "b.bin", "wb") as raw:
        raw.seekable = lambda: False
        with zipfile.ZipFile(raw, "w") as target:
            for item in source.infolist():
                target.writestr(item.filename, source.read(item))
    np.testing.assert_array_equal(open_file(tmp_path / "b.bin").read("w"), values)


def test_a_folder_of_links_into_a_cache_is_read(hub, tmp_path):
    """The cache of a hub keeps files elsewhere and links them."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for path in hub["llava"].iterdir():
        (folder / path.name).symlink_to(path)
    assert "model.norm.weight" in open_file(folder / "model.safetensors").infos()
