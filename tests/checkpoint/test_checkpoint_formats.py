# SPDX-License-Identifier: Apache-2.0
"""Weight files: sound ones give their exact values, broken and hostile ones give an error and nothing else."""

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from paddlemix.checkpoint.formats import base
from paddlemix.checkpoint.formats.base import BLOCK_VALUES, cast, fill, from_float32, is_finite, to_float32
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from paddlemix.checkpoint.formats.source import open_file, open_folder
from paddlemix.utils.errors import CheckpointError
from tests.checkpoint import checkpoint_kit as kit

RNG = np.random.default_rng(0)
ONE = kit.tensor("float32", "0", 6, (2, 3))
SIX = np.arange(6, dtype=np.float32).tobytes()

WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "exec", "compile", "pickle.find_class")
_events: list[str] = []
_listening = False


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _listening and (event in WATCHED or (event == "open" and "w" in str(arguments[1]))):
        _events.append(event)


sys.addaudithook(_listen)


def watched(action) -> list[str]:
    """The audit events of an action that would mean that something ran or was written."""
    global _listening
    _events.clear()
    _listening = True
    try:
        action()
    finally:
        _listening = False
    return list(_events)


@pytest.fixture(autouse=True, scope="module")
def _loaded_codecs(tmp_path_factory):
    """The first archive makes zipfile import a codec, which is an exec of the standard library."""
    open_file(evil(tmp_path_factory.mktemp("honest") / "x.bin", in_dict(ONE))).read("w")


def evil(path: Path, pickle_bytes: bytes) -> Path:
    return kit.write_pickle(path, pickle_bytes, _0=SIX)


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return b"\x80\x02" + kit.global_(module, name) + kit.tuple_of(*arguments) + b"R."


def in_dict(value: bytes) -> bytes:
    return kit.dict_of({"w": value})


COMMAND = kit.text("echo pwned > pwned.txt")
PICKLES = {
    "os.system": call("os", "system", COMMAND),
    "posix.system": call("posix", "system", COMMAND),
    "eval": call("builtins", "eval", kit.text("open('pwned.txt','w')")),
    "getattr": call("builtins", "getattr", kit.text("x"), kit.text("upper")),
    "import": call("builtins", "__import__", kit.text("os")),
    "torch.load": call("torch", "load", kit.text("other.bin")),
    "dotted name": call("torch", "serialization.os.system", COMMAND),
    "name with blank": b"\x80\x02ctorch FloatStorage\nx\n.",
    "subprocess": call("subprocess", "Popen", COMMAND),
    "runpy": call("runpy", "run_path", kit.text("x.py")),
    "partial": call("functools", "partial", kit.text("x")),
    "stack global": b"\x80\x02" + kit.text("os") + kit.text("system") + b"\x93" + kit.tuple_of(COMMAND) + b"R.",
    "inst": b"\x80\x02(" + COMMAND + b"ios\nsystem\n.",
    "obj": b"\x80\x02(" + kit.global_("os", "system") + COMMAND + b"o.",
    "newobj": b"\x80\x02" + kit.global_("os", "system") + kit.tuple_of(COMMAND) + b"\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "persid text": b"\x80\x02Pfoo\n.",
    "frame": b"\x80\x02\x95" + struct.pack("<Q", 1) + b"N.",
    "protocol 4": b"\x80\x04N.",
    "protocol twice": b"\x80\x02\x80\x02N.",
    "build on a tensor": in_dict(ONE + b"}b"),
    "build on a dict": b"\x80\x02}}b.",
    "call of a storage": in_dict(kit.global_("torch", "FloatStorage") + b")R"),
    "call of a text": in_dict(kit.text("x") + b")R"),
    "memo bomb": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "unknown memo": b"\x80\x02h\x05.",
    "cycle": b"\x80\x02]q\x00h\x00a.",
    "dict in itself": b"\x80\x02}q\x00" + kit.text("w") + b"h\x00s.",
    "deep nest": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 20_000 + b".",
    "too many steps": b"\x80\x02" + b"N" * 2_000_001 + b".",
    "key is a list": b"\x80\x02}]Ns.",
    "key twice": b"\x80\x02}(" + kit.text("w") + ONE + kit.text("w") + ONE + b"u.",
    "odd items": b"\x80\x02}(" + kit.text("w") + b"u.",
    "mark at the end": b"\x80\x02(.",
    "empty": b"",
    "no stop": b"\x80\x02}",
    "rest after stop": b"\x80\x02}.}",
    "two values": b"\x80\x02}}.",
    "text past the end": b"\x80\x02X\xff\xff\xff\xffabc.",
    "text not utf-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "long past the end": b"\x80\x02\x8a\xff1.",
    "not a dict": b"\x80\x02]q\x00.",
    "value is a number": in_dict(b"K\x01"),
    "value is a dict": in_dict(b"}"),
    "value is a storage": in_dict(kit.storage("float32", "0", 6)),
    "value is a global": in_dict(kit.global_("torch", "FloatStorage")),
    "shape past storage": in_dict(kit.tensor("float32", "0", 6, (3, 3))),
    "offset past storage": in_dict(kit.tensor("float32", "0", 6, (2, 3), offset=1)),
    "stride past storage": in_dict(kit.tensor("float32", "0", 6, (2, 3), (4, 1))),
    "negative stride": in_dict(kit.tensor("float32", "0", 6, (2, 3), (-3, 1))),
    "negative offset": in_dict(kit.tensor("float32", "0", 6, (2, 3), offset=-1)),
    "expand bomb": in_dict(kit.tensor("float32", "0", 6, (1 << 40,), (0,))),
    "huge size": in_dict(kit.tensor("float32", "0", 6, (1 << 62,), (1,))),
    "rank 9": in_dict(kit.tensor("float32", "0", 6, (1,) * 9)),
    "storage missing": in_dict(kit.tensor("float32", "7", 6, (2, 3))),
    "storage too small": in_dict(kit.tensor("float32", "0", 7, (2, 3))),
    "storage of wider type": in_dict(kit.tensor("float64", "0", 6, (2, 3))),
    "storage key is a path": in_dict(kit.tensor("float32", "../0", 6, (2, 3))),
    "storage key not ascii": in_dict(kit.tensor("float32", "²", 6, (2, 3))),
}


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_or_broken_pickle_is_refused_and_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = evil(tmp_path / "x.bin", PICKLES[name])

    def load() -> None:
        with pytest.raises(CheckpointError, match="x.bin"):
            open_file(path)

    assert watched(load) == []
    assert sorted(os.listdir(tmp_path)) == ["x.bin"]


def test_the_hostile_pickle_would_run_in_pythons_own_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    events = watched(lambda: pickle.loads(PICKLES["posix.system"]))
    assert "os.system" in events
    assert (tmp_path / "pwned.txt").exists()


def _members(**changes: bytes | None) -> dict[str, bytes]:
    members = {"data.pkl": kit.dict_of({"w": ONE}), "byteorder": b"little", "data/0": SIX}
    members.update(changes)
    return {name: data for name, data in members.items() if data is not None}


def _flip(path: Path, needle: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[data.index(needle) + 2] ^= 1
    path.write_bytes(bytes(data))
    return path


def _second_root(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", kit.dict_of({}))
    return path


def _duplicate(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", kit.dict_of({"w": ONE}))
        archive.writestr("archive/data/0", SIX)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data/0", SIX)
    return path


def _encrypted(path: Path) -> Path:
    kit.write_zip(path, _members())
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(bytes(data))
    return path


def _overlap(path: Path) -> Path:
    """Two directory entries that point at the same bytes."""
    kit.write_zip(path, {"data/0": SIX, "data/1": SIX, "data.pkl": kit.dict_of({"w": ONE})})
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    path.write_bytes(bytes(data))
    return path


def _half(path: Path) -> Path:
    kit.write_zip(path, _members())
    path.write_bytes(path.read_bytes()[:-60])
    return path


ARCHIVES = {
    "deflated": lambda path: kit.write_zip(path, _members(), method=zipfile.ZIP_DEFLATED),
    "flipped bit in the data": lambda path: _flip(kit.write_zip(path, _members()), SIX),
    "flipped bit in the pickle": lambda path: _flip(kit.write_zip(path, _members()), b"_rebuild_tensor_v2"),
    "big endian": lambda path: kit.write_zip(path, _members(byteorder=b"big")),
    "no pickle": lambda path: kit.write_zip(path, {"data/0": SIX}),
    "pickle too deep": lambda path: kit.write_zip(path, {"sub/data.pkl": kit.dict_of({})}),
    "two pickles": lambda path: _second_root(kit.write_zip(path, _members())),
    "torchscript": lambda path: kit.write_zip(path, {**_members(), "code/__torch__.py": b"x"}),
    "duplicate member": _duplicate,
    "encrypted": _encrypted,
    "overlapping members": _overlap,
    "truncated": _half,
    "empty file": lambda path: (path.write_bytes(b""), path)[1],
    "old torch format": lambda path: (path.write_bytes(pickle.dumps({"a": 1}, protocol=2)), path)[1],
    "html": lambda path: (path.write_bytes(b"<html>404</html>"), path)[1],
    "git lfs pointer": lambda path: (path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), path)[1],
    "noise": lambda path: (path.write_bytes(b"\x07" * 300), path)[1],
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_broken_archive_is_an_error_that_names_the_file(name, tmp_path):
    path = ARCHIVES[name](tmp_path / "x.bin")

    def load() -> None:
        with pytest.raises(CheckpointError, match="x.bin"):
            open_file(path).read("w")

    assert watched(load) == []


HEADERS = {
    "too short": lambda path: (path.write_bytes(b"\x01\x00"), path)[1],
    "length past the end": lambda path: kit.write_header(path, {}, length=1000),
    "length 2^63": lambda path: kit.write_header(path, {}, length=1 << 63),
    "not JSON": lambda path: kit.write_header(path, b"{abc"),
    "not UTF-8": lambda path: kit.write_header(path, b'{"\xff": 1}'),
    "a list": lambda path: kit.write_header(path, []),
    "deep": lambda path: kit.write_header(path, b"[" * 100_000),
    "name twice": lambda path: kit.write_header(
        path,
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
    ),
    "metadata of numbers": lambda path: kit.write_header(path, {"__metadata__": {"a": 1}}),
    "unknown dtype": lambda path: kit.write_header(path, {"w": kit.entry("F8_E4M3", [1], 0, 1)}, b"1"),
    "missing key": lambda path: kit.write_header(path, {"w": {"dtype": "U8", "shape": [1]}}, b"1"),
    "further key": lambda path: kit.write_header(path, {"w": {**kit.entry("U8", [1], 0, 1), "x": 1}}, b"1"),
    "negative size": lambda path: kit.write_header(path, {"w": kit.entry("U8", [-1], 0, 1)}, b"1"),
    "size is true": lambda path: kit.write_header(path, {"w": kit.entry("U8", [True], 0, 1)}, b"1"),
    "product overflows": lambda path: kit.write_header(path, {"w": kit.entry("U8", [1 << 33, 1 << 33], 0, 4)}, b"1234"),
    "offsets too small": lambda path: kit.write_header(path, {"w": kit.entry("F32", [2], 0, 4)}, b"1234"),
    "offsets reversed": lambda path: kit.write_header(path, {"w": kit.entry("U8", [1], 1, 0)}, b"1"),
    "overlap": lambda path: kit.write_header(
        path, {"a": kit.entry("U8", [2], 0, 2), "b": kit.entry("U8", [2], 1, 3)}, b"123"
    ),
    "hole": lambda path: kit.write_header(
        path, {"a": kit.entry("U8", [1], 0, 1), "b": kit.entry("U8", [1], 2, 3)}, b"123"
    ),
    "truncated": lambda path: kit.write_header(path, {"a": kit.entry("U8", [4], 0, 4)}, b"123"),
    "trailing bytes": lambda path: kit.write_header(path, {"a": kit.entry("U8", [2], 0, 2)}, b"123"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_broken_safetensors_is_an_error_that_names_the_file(name, tmp_path):
    path = HEADERS[name](tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="x.safetensors"):
        open_file(path)


def test_every_torn_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [Stored("w", "float32", (4, 4), lambda: np.zeros((4, 4), np.float32))])
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_file(path)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "uint8"])
def test_bin_gives_the_stored_bytes(dtype, tmp_path):
    array = RNG.integers(0, 200, (3, 5)).astype(kit_type(dtype))
    source = open_file(kit.write_bin(tmp_path / "x.bin", {"w": (dtype, array)}))
    assert source.infos()["w"].dtype == dtype
    assert source.read("w").tobytes() == array.tobytes()


def kit_type(dtype: str) -> np.dtype:
    return np.dtype("<u2") if dtype == "bfloat16" else np.dtype(dtype)


VIEWS = {
    "columns": ((4, 3), (6, 1), 1),
    "transposed": ((6, 4), (1, 6), 0),
    "every second row": ((2, 6), (12, 1), 6),
    "scalar": ((), (), 5),
    "empty": ((0, 3), (3, 1), 0),
    "expanded": ((4, 6), (0, 1), 0),
}


@pytest.mark.parametrize("name", VIEWS)
def test_strided_views_of_a_bin_are_right(name, tmp_path):
    shape, stride, offset = VIEWS[name]
    values = np.arange(24, dtype=np.float32)
    pickled = kit.dict_of({"w": kit.tensor("float32", "0", 24, shape, stride, offset)})
    source = open_file(kit.write_pickle(tmp_path / "x.bin", pickled, _0=values.tobytes()))
    expected = np.lib.stride_tricks.as_strided(values[offset:], shape, tuple(4 * step for step in stride))
    np.testing.assert_array_equal(source.read("w"), expected)


def test_tied_tensors_share_a_storage_and_parameters_are_tensors(tmp_path):
    parameter = kit.global_("torch._utils", "_rebuild_parameter") + kit.tuple_of(ONE, b"\x88", kit.ORDERED) + b"R"
    pickled = kit.dict_of({"a": ONE, "b": parameter})
    source = open_file(kit.write_pickle(tmp_path / "x.bin", pickled, _0=SIX))
    np.testing.assert_array_equal(source.read("a"), source.read("b"))


def test_an_ordered_dict_with_metadata_is_a_state_dict(tmp_path):
    state = b"}" + kit.text("_metadata") + kit.ORDERED + b"s"
    pickled = b"\x80\x02" + kit.ORDERED + b"(" + kit.text("w") + ONE + b"u" + state + b"b."
    source = open_file(kit.write_pickle(tmp_path / "x.bin", pickled, _0=SIX))
    assert list(source.infos()) == ["w"]


def test_our_safetensors_are_read_by_the_public_library(tmp_path):
    from safetensors.numpy import load_file

    arrays = {"a": RNG.normal(size=(3, 7)).astype(np.float32), "b": np.arange(5), "c": np.float16([[1.5]])}
    items = [Stored(name, str(value.dtype), value.shape, lambda value=value: value) for name, value in arrays.items()]
    write_safetensors(tmp_path / "x.safetensors", items)
    found = load_file(tmp_path / "x.safetensors")
    assert {name: value.tobytes() for name, value in found.items()} == {n: v.tobytes() for n, v in arrays.items()}


def test_we_read_the_public_librarys_safetensors(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"a": RNG.normal(size=(3, 7)).astype(np.float32), "s": np.array(3.5, np.float32), "e": np.zeros((0, 4))}
    save_file(arrays, tmp_path / "x.safetensors")
    source = open_file(tmp_path / "x.safetensors")
    for name, value in arrays.items():
        np.testing.assert_array_equal(source.read(name), value)


def test_bfloat16_to_float32_is_exact_for_all_65536_values():
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(to_float32(bits, "bfloat16"), expected)


def test_float32_to_bfloat16_rounds_to_nearest_even_and_keeps_nan():
    bits = RNG.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([np.inf, -np.inf, 0.0, -0.0, 3.4e38])])
    ours = from_float32(values, "bfloat16")
    with np.errstate(invalid="ignore"):
        theirs = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    nan = np.isnan(values)
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(to_float32(ours[nan], "bfloat16")).all()


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
def test_filling_in_blocks_equals_casting_at_once(source, target):
    values = from_float32(RNG.normal(size=(900, 700)).astype(np.float32), source)
    assert values.size > 2 * BLOCK_VALUES
    out = np.empty((700, 900), kit_type(target))
    assert fill(values, source, out, target, transpose=True)
    np.testing.assert_array_equal(out, cast(values, source, target).T)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("source", ["float16", "bfloat16"])
def test_filling_gives_every_half_precision_value_its_exact_bits(source, transpose):
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(kit_type(source)).reshape(256, 256)
    wide = to_float32(bits, source)
    for chosen in (np.isfinite(wide), ~np.isfinite(wide)):
        block = np.where(chosen.reshape(256, 256), values, values.flat[0])
        out = np.empty((256, 256), np.float32)
        assert fill(block, source, out, "float32", transpose=transpose) == np.isfinite(to_float32(block, source)).all()
        expected = to_float32(block, source)
        assert (out.T if transpose else out).tobytes() == expected.tobytes()


def test_float16_is_widened_where_subnormal_numbers_are_switched_off(monkeypatch):
    monkeypatch.setattr(base, "_HALF_SCALE", np.float32(0))  # what the processor makes of a subnormal then
    values = np.array([[6e-8, -0.0, 0.02, 65504]], np.float16)
    out = np.empty((4, 1), np.float32)
    assert fill(values, "float16", out, "float32", transpose=True)
    assert out.T.tobytes() == values.astype(np.float32).tobytes()


@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(700, 1200), (1100, 600), (513, 257), (5, 170_000), (700, 3, 20, 20)])
def test_threads_fill_what_one_thread_fills(shape, source, monkeypatch):
    monkeypatch.setattr(base, "_WORTH_THREADS", 0)
    values = from_float32(RNG.normal(size=shape).astype(np.float32), source)
    transpose = len(shape) == 2
    made = []
    for threads in (1, 5):
        monkeypatch.setattr(base, "_threads", lambda threads=threads: threads)
        made.append(np.zeros(shape[::-1] if transpose else shape, np.float32))
        assert fill(values, source, made[-1], "float32", transpose=transpose)
    assert made[0].tobytes() == made[1].tobytes()
    np.testing.assert_array_equal(made[1].T if transpose else made[1], to_float32(values, source))
    values.reshape(-1)[0] = from_float32(np.float32([np.nan]), source)[0]
    assert not fill(values, source, made[1], "float32", transpose=transpose)


@pytest.mark.parametrize("stop", [CheckpointError, KeyboardInterrupt])
def test_an_error_of_one_thread_ends_the_others(stop):
    done = []

    def write(place, spare):
        done.append(place)
        if place == 3:
            raise stop("the file and the tensor")
        time.sleep(0.001)
        return True

    with pytest.raises(stop, match="the file and the tensor"):
        base._share(write, list(range(1000)), 2)
    assert len(done) < 500
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_ends_the_threads():
    seen: dict[int, int] = {}
    sent = []

    def write(place, spare):
        me = threading.get_ident()
        seen[me] = seen.get(me, 0) + 1
        if not sent and len(seen) == 2 and min(seen.values()) > 20:  # both are at work, the first thread waits
            sent.append(place)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.001)
        return True

    with pytest.raises(KeyboardInterrupt):
        base._share(write, list(range(2000)), 2)
    assert sum(seen.values()) < 1500
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]


BITS_NOT_FINITE = {
    "float64": (0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 0xFFF0_0000_0000_0001),
    "float32": (0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000),
    "float16": (0x7C00, 0xFC00, 0x7C01, 0xFE00),
    "bfloat16": (0x7F80, 0xFF80, 0x7F81, 0xFFC0),
}


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", BITS_NOT_FINITE)
def test_filling_reports_a_single_value_that_is_not_finite(dtype, transpose):
    kind = kit_type(dtype)
    values = np.array([[-1.5], [2.0]]).repeat(300, 0).repeat(2000, 1)  # negative values are large as bits
    values = values.astype(kind) if dtype != "bfloat16" else from_float32(values.astype(np.float32), dtype)
    out = np.empty(values.shape[::-1] if transpose else values.shape, np.float32)
    assert fill(values, dtype, out, "float32", transpose=transpose)
    for bits in BITS_NOT_FINITE[dtype]:
        broken = values.copy()
        broken.view(f"<u{kind.itemsize}")[577, 1999] = bits
        with np.errstate(invalid="ignore"):
            assert not fill(broken, dtype, out, "float32", transpose=transpose), hex(bits)
            assert not np.isfinite(out.T[577, 1999] if transpose else out[577, 1999])
            assert not is_finite(broken[577, 1999], dtype)
            assert not is_finite(broken[:, 1::3][::577], dtype)


def test_large_finite_values_are_finite():
    values = np.full((4, 4), 3e38, np.float32)
    assert fill(values, "float32", np.empty_like(values), "float32")


def two_shards(folder: Path) -> Path:
    kit.write_bin(folder / "a.bin", {"w": ("float32", np.zeros((2, 3), np.float32))})
    kit.write_bin(folder / "b.bin", {"v": ("float32", np.zeros((2, 3), np.float32))})
    return folder


def index(folder: Path, weight_map: object) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_joins_its_shards(tmp_path):
    index(two_shards(tmp_path), {"w": "a.bin", "v": "b.bin"})
    assert sorted(open_folder(tmp_path).infos()) == ["v", "w"]


INDEXES = {
    "missing shard": ({"w": "a.bin", "v": "c.bin"}, "the shard c.bin is missing; it holds v"),
    "missing tensor": ({"w": "a.bin", "v": "a.bin"}, 'tensor "v" should be in a.bin'),
    "path upwards": ({"w": "../../etc/passwd"}, "only plain file names"),
    "absolute path": ({"w": "/etc/passwd"}, "only plain file names"),
    "dots": ({"w": ".."}, "only plain file names"),
    "number": ({"w": 1}, "only plain file names"),
    "empty": ({}, "weight_map"),
    "list": ([], "weight_map"),
    "unknown ending": ({"w": "a.txt"}, "unknown kind of weight file"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_wrong_index_names_shard_and_tensor(name, tmp_path):
    weight_map, message = INDEXES[name]
    (two_shards(tmp_path) / "a.txt").write_text("x")
    index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=message):
        open_folder(tmp_path)


def test_a_tensor_in_two_shards_is_an_error(tmp_path):
    two_shards(tmp_path)
    both = {name: ("float32", np.zeros(1, np.float32)) for name in ("v", "w")}
    kit.write_bin(tmp_path / "b.bin", both)
    index(tmp_path, {"w": "a.bin", "v": "b.bin"})
    with pytest.raises(CheckpointError, match='tensor "w" is in two files, a.bin and b.bin'):
        open_folder(tmp_path)


def test_safetensors_are_taken_before_bin_and_it_is_said(tmp_path):
    tensors = {"w": ("float32", np.zeros(1, np.float32))}
    kit.write_weights(tmp_path, "bin", tensors)
    kit.write_weights(tmp_path, "safetensors", tensors)
    assert "took model.safetensors, left pytorch_model.bin unread" in open_folder(tmp_path).notes[0]


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match="looked for model.safetensors, model.safetensors.index.json, pytorch"):
        open_folder(tmp_path)


def test_shards_without_an_index_are_named(tmp_path):
    two_shards(tmp_path)
    with pytest.raises(CheckpointError, match=r"it holds a.bin, b.bin but no index"):
        open_folder(tmp_path)


def test_an_old_bin_says_how_to_convert_it(tmp_path):
    with pytest.raises(CheckpointError, match="weights_only=True"):
        open_file(ARCHIVES["old torch format"](tmp_path / "x.bin"))


@pytest.mark.slow
def test_mutated_pickles_never_run_anything_nor_escape(tmp_path):
    from paddlemix.checkpoint.formats.pickle_machine import Machine, PickleRefusedError

    honest = kit.dict_of({f"w{i}": kit.tensor("bfloat16", str(i), 6, (2, 3)) for i in range(4)})
    rng = np.random.default_rng(1)

    def attack() -> None:
        for _ in range(20_000):
            data = bytearray(honest)
            for _ in range(int(rng.integers(1, 6))):
                data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
            try:
                Machine(bytes(data)).run()
            except PickleRefusedError:
                continue

    assert watched(attack) == []


TORCH = """
import sys, torch, json
base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
odd = {
    "columns": base[:, 1:4], "transposed": base.t(), "tied": base, "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "bf16": torch.randn(5, 7).bfloat16(), "half": torch.randn(3).half(), "double": torch.randn(2, 2).double(),
    "ints": torch.arange(5), "flag": torch.tensor([True, False]), "parameter": torch.nn.Parameter(torch.randn(2, 3)),
}
torch.save(odd, sys.argv[1])
torch.save(torch.nn.Linear(3, 2).state_dict(), sys.argv[2])
def raw(v):
    return v.detach().contiguous().reshape(-1).view(torch.uint8).tolist() if v.numel() and v.dim() else v.tolist()
json.dump({k: raw(v) for k, v in odd.items()}, open(sys.argv[3], "w"))
"""


@pytest.mark.reference
def test_bin_files_of_torch_itself_are_read_bit_for_bit(tmp_path):
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    paths = [str(tmp_path / name) for name in ("odd.bin", "linear.bin", "raw.json")]
    subprocess.run([python, "-c", TORCH, *paths], check=True, timeout=100)
    expected = json.loads(Path(paths[2]).read_text())
    source = open_file(paths[0])
    for name, raw in expected.items():
        values = source.read(name)
        if values.size and values.ndim:
            assert list(values.tobytes()) == raw, name
        else:
            assert values.tolist() == raw, name
    assert open_file(paths[1]).infos()["weight"].shape == (2, 3)


@pytest.mark.parametrize("transpose", [False, True])
def test_a_tensor_is_filled_in_parts_of_which_the_pages_are_given_back(transpose, tmp_path, monkeypatch):
    from paddlemix.checkpoint.formats import source

    monkeypatch.setattr(source, "_RELEASED", 100)
    array = RNG.normal(size=(37, 5)).astype(np.float32)
    items = [Stored("w", "float32", (37, 5), lambda: array), Stored("s", "float32", (), lambda: np.float32(7))]
    write_safetensors(tmp_path / "x.safetensors", items)
    source = open_file(tmp_path / "x.safetensors")
    target = np.zeros((5, 37) if transpose else (37, 5), np.float32)
    assert source.fill("w", target, "float32", transpose=transpose)
    np.testing.assert_array_equal(target.T if transpose else target, array)
    scalar = np.zeros((), np.float32)
    assert source.fill("s", scalar, "float32")
    assert scalar == 7
