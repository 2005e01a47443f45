# SPDX-License-Identifier: Apache-2.0
"""Paddle's .pdparams: what paddle.save wrote comes out bit for bit, and nothing in a file ever runs."""

import inspect
import json
import os
import pickle
import struct

import numpy as np
import paddle
import pytest
from paddle.framework import io_utils

from paddlemix.checkpoint.formats import pdparams
from paddlemix.checkpoint.formats.pdparams import NAMES_TABLE, PIECES_TABLE, write_pdparams
from paddlemix.checkpoint.formats.safetensors import Stored
from paddlemix.checkpoint.formats.source import open_file
from paddlemix.checkpoint.load import load_model
from paddlemix.utils.errors import CheckpointError
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_model

RNG = np.random.default_rng(3)


def state() -> dict:
    """Tensors of every dtype a weight has, with a scalar and an empty one."""
    values = {name: paddle.to_tensor(RNG.normal(size=(6, 5)).astype("float32")).astype(name) for name in
              ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8")}  # fmt: skip
    values["large"] = paddle.to_tensor(RNG.normal(size=(70, 40)).astype("float32"))
    values["scalar"] = paddle.to_tensor(3.5)
    values["empty"] = paddle.zeros([0, 4])
    return {**values, **{f"linear.{key}": value for key, value in paddle.nn.Linear(3, 4).state_dict().items()}}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_saved_comes_out_bit_for_bit(protocol, tmp_path):
    tensors = state()
    paddle.save(tensors, str(tmp_path / "x.pdparams"), protocol=protocol)
    source = open_file(tmp_path / "x.pdparams")
    assert source.infos().keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert source.infos()[name].dtype == str(tensor.dtype).rpartition(".")[2]
        assert source.infos()[name].shape == tuple(tensor.shape)
        assert source.read(name).tobytes() == tensor.numpy().tobytes(), name


def test_tensors_outside_a_state_dict_are_read_too(tmp_path):
    saved = {"a": paddle.ones([2]), "b": None}
    saved.pop("b")
    with (tmp_path / "x.pdparams").open("wb") as handle:
        paddle.framework.io._pickle_save(saved, handle, 4)
    np.testing.assert_array_equal(open_file(tmp_path / "x.pdparams").read("a"), [1, 1])


@pytest.mark.parametrize("protocol", [2, 3])
def test_pieces_of_a_large_array_become_one_again(protocol, tmp_path):
    whole = RNG.normal(size=(40, 90)).astype(np.float32)
    flat = whole.reshape(-1)
    data = {"small": whole[0], "w@@.0": flat[:2000], "w@@.1": flat[2000:], NAMES_TABLE: {"w": "linear_0.w_0"}}
    data[PIECES_TABLE] = {"w": {"OriginShape": (40, 90), "slices": ["w@@.0", "w@@.1"]}}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(data, protocol=protocol))
    source = open_file(tmp_path / "x.pdparams")
    assert sorted(source.infos()) == ["small", "w"]
    np.testing.assert_array_equal(source.read("w"), whole)


@pytest.mark.parametrize("protocol", [2, 3])
def test_pieces_that_paddle_itself_cuts_are_joined(protocol, tmp_path, monkeypatch):
    """Paddle's own splitter, which begins at 1 GiB, with a threshold of 1000 bytes."""
    namespace = dict(vars(io_utils))
    source = inspect.getsource(io_utils._unpack_saved_dict)
    assert source.count("2**30 - 1") == 1
    exec(source.replace("2**30 - 1", "1000"), namespace)
    monkeypatch.setattr(paddle.framework.io, "_unpack_saved_dict", namespace["_unpack_saved_dict"])
    tensors = state()
    paddle.save(tensors, str(tmp_path / "x.pdparams"), protocol=protocol)
    assert b"large@@.11" in (tmp_path / "x.pdparams").read_bytes()
    source = open_file(tmp_path / "x.pdparams")
    assert source.infos().keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert source.read(name).tobytes() == tensor.numpy().tobytes(), name


def test_values_written_as_text_are_decoded_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(pdparams, "_BLOCK", 17)
    array = RNG.integers(0, 255, 9000).astype(np.uint8)
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"w": array}, protocol=2))
    np.testing.assert_array_equal(open_file(tmp_path / "x.pdparams").read("w"), array)


def test_fortran_arrays_keep_their_places(tmp_path):
    array = np.asfortranarray(RNG.normal(size=(4, 7)).astype(np.float32))
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"w": array}, protocol=4))
    np.testing.assert_array_equal(open_file(tmp_path / "x.pdparams").read("w"), array)


def test_paddle_loads_what_we_write(tmp_path):
    tensors = state()
    paddle.save(tensors, str(tmp_path / "x.pdparams"))
    source = open_file(tmp_path / "x.pdparams")
    stored = [Stored(name, i.dtype, i.shape, lambda name=name: source.read(name)) for name, i in source.infos().items()]
    write_pdparams(tmp_path / "y.pdparams", stored)
    back = paddle.load(str(tmp_path / "y.pdparams"))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].numpy().tobytes() == tensor.numpy().tobytes(), name


class _Attack:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


COMMAND = "echo pwned > pwned.txt"
ATTACKS = {
    "os.system": _Attack(os.system, COMMAND),
    "eval": _Attack(eval, f"__import__('os').system({COMMAND!r})"),
    "exec": _Attack(exec, "open('pwned.txt','w')"),
    "getattr": _Attack(getattr, "x", "upper"),
    "open": _Attack(open, "pwned.txt", "w"),
    "tuple of text": _Attack(tuple, "abc"),
    "numpy load": _Attack(np.load, "x.npy"),
    "object array": np.array([1, "x"], dtype=object),
    "text array": np.array(["abc"]),
    "complex": np.ones(2, np.complex64),
    "big endian": np.ones(2, ">f4"),
    "record": np.zeros(2, [("a", "f4")]),
    "number": 5,
    "list": [1, 2],
    "dict": {"a": np.ones(2)},
    "none": None,
    "bytes": b"abc",
    "set": {1},
    "scalar of numpy": np.float32(1),
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", ATTACKS)
def test_anything_but_arrays_is_refused_and_nothing_runs(name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"good": np.ones(3, np.float32), "w": ATTACKS[name]}, protocol=protocol)
    (tmp_path / "x.pdparams").write_bytes(data)
    with pytest.raises(CheckpointError, match="x.pdparams"):
        open_file(tmp_path / "x.pdparams")
    assert os.listdir(tmp_path) == ["x.pdparams"]


def _array(shape: bytes = b"K\x02\x85", data: bytes = b"C\x08" + bytes(8), dtype: bytes = b"X\x02\0\0\0f4") -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01" + shape
    kind = b"cnumpy\ndtype\n" + dtype + b"\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return made + kind + b"\x89" + data + b"tb"


def _dict(value: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + b"}X\x01\0\0\0w" + value + b"s."


PICKLES = {
    "protocol 5": _dict(_array(), 5),
    "protocol 1": _dict(_array(), 1),
    "too few bytes": _dict(_array(data=b"C\x04" + bytes(4))),
    "too many bytes": _dict(_array(data=b"C\x09" + bytes(9))),
    "negative size": _dict(_array(shape=b"J\xff\xff\xff\xff\x85")),
    "huge shape": _dict(_array(shape=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86")),
    "bytes past the end": _dict(_array(data=b"\x8e" + struct.pack("<Q", 1 << 62))),
    "text past the end": _dict(_array(data=b"X\xff\xff\xff\xff")),
    "frame past the end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}.",
    "no state": _dict(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"),
    "state twice": _dict(_array() + _array()[-40:]),
    "stack global of os": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.",
    "stack global of numbers": b"\x80\x04K\x01K\x02\x93.",
    "newobj": b"\x80\x04cnumpy\nndarray\n)\x81.",
    "bytearray8": b"\x80\x04\x96" + bytes(8) + b".",
    "memoize a mark": b"\x80\x04(\x94.",
    "memoize nothing": b"\x80\x04\x94.",
    "storage of torch": _dict(kit.tensor("float32", "0", 6, (2, 3))),
    "a list": b"\x80\x04].",
    "cut": _dict(_array())[:-9],
    "rest behind": _dict(_array()) + b"x",
    "zip": b"PK\x03\x04" + bytes(40),
    "html": b"<html>not found</html>",
    "empty": b"",
    "pieces without a table": b"\x80\x04}X\x16\0\0\0UnpackBigParamInfor@@}X\x01\0\0\0w]ss.",
    "pieces are a list": b"\x80\x04}X\x16\0\0\0UnpackBigParamInfor@@]s.",
    "pieces missing": pickle.dumps({PIECES_TABLE: {"w": {"OriginShape": (2,), "slices": ["w@@.0"]}}}, 2),
    "pieces too few": pickle.dumps(
        {"p": np.ones(3), PIECES_TABLE: {"w": {"OriginShape": (2,), "slices": ["p"]}}}, 2
    ),
    "memo bomb": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "deep": b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_crafted_pdparams_are_refused_with_the_files_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pdparams").write_bytes(PICKLES[name])
    with pytest.raises(CheckpointError, match="x.pdparams"):
        open_file(tmp_path / "x.pdparams")


def test_the_crafted_array_without_a_fault_is_read(tmp_path):
    (tmp_path / "x.pdparams").write_bytes(_dict(_array()))
    np.testing.assert_array_equal(open_file(tmp_path / "x.pdparams").read("w"), [0, 0])


def test_every_torn_pdparams_is_refused(tmp_path):
    data = pickle.dumps({"w": np.arange(20, dtype=np.float32)}, protocol=4)
    for length in range(len(data)):
        (tmp_path / "x.pdparams").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            open_file(tmp_path / "x.pdparams")


def test_a_paddlemix_folder_loads(tmp_path):
    model = tiny_model(1)
    hub = kit.hub(tmp_path, model)
    folder = kit.write_config(tmp_path / "paddlemix" / "llava", {**kit.llava_config(model, "openai/tiny-clip")})
    paddle.save(model.state_dict(), str(folder / "model_state.pdparams"))
    assert hub["clip"].is_dir()
    for name, parameter in load_model(folder).model.named_parameters():
        np.testing.assert_array_equal(parameter.numpy(), dict(model.named_parameters())[name].numpy(), err_msg=name)


def _paddle_adapter(folder, model, **more):
    """A LoRA folder as PaddleMIX's own training writes it."""
    kit.write_config(folder, kit.llava_config(model, "openai/tiny-clip"))
    config = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": [".*q_proj.*"], "merge_weights": False,
              "dtype": "float32", "base_model_name_or_path": "liuhaotian/tiny", **more}  # fmt: skip
    (folder / "lora_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = dict(model.named_parameters())
    data = {}
    for layer in ("llama.layers.0.self_attn.q_proj", "llama.layers.1.self_attn.q_proj"):
        into, out = weights[f"{layer}.weight"].shape
        data[f"{layer}.lora_A"] = paddle.to_tensor(RNG.normal(size=(into, 4)).astype("float32"))
        data[f"{layer}.lora_B"] = paddle.to_tensor(RNG.normal(size=(4, out)).astype("float32"))
    data["llama.mm_projector.0.weight"] = weights["llama.mm_projector.0.weight"] * 0.5
    paddle.save(data, str(folder / "lora_model_state.pdparams"))
    return data


def test_a_paddlemix_adapter_is_folded_into_its_base(tmp_path):
    model = tiny_model(1)
    kit.hub(tmp_path, model)
    data = _paddle_adapter(tmp_path / "paddlemix" / "lora", model)
    merged = dict(load_model(tmp_path / "paddlemix" / "lora").model.named_parameters())
    layer = "llama.layers.1.self_attn.q_proj"
    expected = dict(model.named_parameters())[f"{layer}.weight"] + data[f"{layer}.lora_A"] @ data[f"{layer}.lora_B"] * 2
    np.testing.assert_allclose(merged[f"{layer}.weight"].numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    projector = "llama.mm_projector.0.weight"
    np.testing.assert_array_equal(merged[projector].numpy(), data[projector].numpy())


def test_switches_of_paddlenlp_that_change_the_numbers_are_refused(tmp_path):
    model = tiny_model(1)
    kit.hub(tmp_path, model)
    _paddle_adapter(tmp_path / "lora", model, trainable_bias="lora")
    with pytest.raises(CheckpointError, match=r"lora_config.json: \"trainable_bias\""):
        load_model(tmp_path / "lora")
