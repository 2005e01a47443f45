# SPDX-License-Identifier: Apache-2.0
"""Builders of checkpoint files for tests: torch zips without torch, safetensors headers by hand, whole folders."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.formats.base import from_float32
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from tests.tiny import tiny_tokenizer_folder

STORAGE = {
    "float64": b"DoubleStorage",
    "float32": b"FloatStorage",
    "float16": b"HalfStorage",
    "bfloat16": b"BFloat16Storage",
    "int64": b"LongStorage",
    "uint8": b"ByteStorage",
}
CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint8": "U8"}


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """BININT, or LONG1 where it does not fit."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*parts: bytes) -> bytes:
    """MARK ... TUPLE."""
    return b"(" + b"".join(parts) + b"t"


def global_(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def storage(dtype: str, key: str, count: int) -> bytes:
    """A persistent id of a storage."""
    return tuple_of(text("storage"), b"ctorch\n" + STORAGE[dtype] + b"\n", text(key), text("cpu"), number(count)) + b"Q"


ORDERED = global_("collections", "OrderedDict") + b")R"


def tensor(
    dtype: str, key: str, count: int, shape: tuple[int, ...], stride: tuple[int, ...] | None = None, offset: int = 0
) -> bytes:
    """A call of _rebuild_tensor_v2."""
    stride = contiguous(shape) if stride is None else stride
    sizes, steps = tuple_of(*map(number, shape)), tuple_of(*map(number, stride))
    arguments = tuple_of(storage(dtype, key, count), number(offset), sizes, steps, b"\x89", ORDERED)
    return global_("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous array, in values."""
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def dict_of(items: dict[str, bytes]) -> bytes:
    """A whole pickle of a dict."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in items.items()) + b"u."


def write_zip(path: Path, members: dict[str, bytes], root: str = "archive", method: int = zipfile.ZIP_STORED) -> Path:
    """A zip in torch's arrangement."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def write_pickle(path: Path, pickle: bytes, **members: bytes) -> Path:
    """A torch zip around a pickle."""
    data = {f"data/{key.lstrip('_')}": value for key, value in members.items()}
    return write_zip(path, {"data.pkl": pickle, "byteorder": b"little", **data, "version": b"3\n"})


def write_bin(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> Path:
    """A torch ``.bin`` of (dtype, array) by name; bfloat16 as uint16."""
    items, data = {}, {}
    for key, (name, (dtype, array)) in enumerate(tensors.items()):
        items[name] = tensor(dtype, str(key), array.size, array.shape)
        data[f"_{key}"] = np.ascontiguousarray(array).tobytes()
    return write_pickle(path, dict_of(items), **data)


def write_header(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with a header of our choice."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def weights_in(form: str, model: Any, dtype: str = "float32") -> dict[str, tuple[str, np.ndarray]]:
    """The weights of a model by the names of ``form``, as (dtype, array)."""
    found = {}
    for name, parameter in model.named_parameters():
        target = keymap.theirs(name, form)
        if target is not None:
            values = parameter.numpy().T if target.transpose else parameter.numpy()
            found[target.name] = (dtype, from_float32(np.ascontiguousarray(values), dtype))
    return found


def write_weights(folder: Path, kind: str, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """``model.safetensors`` or ``pytorch_model.bin``."""
    if kind == "bin":
        write_bin(folder / "pytorch_model.bin", tensors)
        return
    items = [Stored(name, dtype, array.shape, lambda array=array: array) for name, (dtype, array) in tensors.items()]
    write_safetensors(folder / "model.safetensors", items)


def llama_config(model: Any) -> dict[str, Any]:
    """The language model's keys of a config.json."""
    text_config = model.config.text
    keys = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings rms_norm_eps rope_theta bos_token_id eos_token_id"
    )
    return {key: getattr(text_config, key) for key in keys.split()}


def clip_config(model: Any) -> dict[str, Any]:
    """A tower's config.json."""
    vision = model.config.vision
    keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"]
    return {"model_type": "clip_vision_model", **{key: getattr(vision, key) for key in keys}}


def llava_config(model: Any, tower: str) -> dict[str, Any]:
    """An original LLaVA config.json."""
    return {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "torch_dtype": "float32",
        **llama_config(model),
        "mm_vision_tower": tower,
        "mm_hidden_size": model.config.vision.hidden_size,
        "mm_projector_type": model.config.projector_type,
        "mm_vision_select_layer": model.config.vision.select_layer,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 512,
    }


def hf_config(model: Any) -> dict[str, Any]:
    """A llava-hf config.json."""
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"model_type": "llama", **llama_config(model)},
        "vision_config": clip_config(model),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_token_index": 440,
    }


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def hub(root: Path, model: Any, kind: str = "safetensors", dtype: str = "float32") -> dict[str, Path]:
    """A hub of one model: ``clip`` (tower), ``vicuna`` (language model), ``llava`` (without a tower inside)."""
    weights = weights_in("llava", model, dtype)
    clip = write_config(root / "openai" / "tiny-clip", clip_config(model))
    write_weights(clip, kind, weights_in("clip", model, dtype))
    llm = {name: value for name, value in weights.items() if "vision_tower" not in name and "mm_proj" not in name}
    vicuna = write_config(root / "lmsys" / "tiny", {"model_type": "llama", **llama_config(model)})
    write_weights(vicuna, kind, llm)
    llava = write_config(root / "liuhaotian" / "tiny", llava_config(model, "openai/tiny-clip"))
    write_weights(llava, kind, {name: value for name, value in weights.items() if "vision_tower" not in name})
    for folder in (vicuna, llava):
        tiny_tokenizer_folder(folder)
    return {"clip": clip, "vicuna": vicuna, "llava": llava}


def peft_adapter(folder: Path, model: Any, base: str, *, r: int = 4, seed: int = 0, **config: Any) -> Path:
    """A peft adapter with projector for a model: random A and B, and a projector that differs from the model's."""
    rng = np.random.default_rng(seed)
    write_config(folder, llava_config(model, "openai/tiny-clip"))
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none"}
    settings["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}), encoding="utf-8")
    halves: dict[str, tuple[str, np.ndarray]] = {}
    others = {}
    for name, (dtype, array) in weights_in("peft", model).items():
        if "self_attn" in name and "vision_tower" not in name:
            layer = name.removesuffix(".weight")
            out, into = array.shape
            halves[f"{layer}.lora_A.weight"] = ("float32", rng.normal(size=(r, into)).astype(np.float32))
            halves[f"{layer}.lora_B.weight"] = ("float32", rng.normal(size=(out, r)).astype(np.float32))
        if "mm_projector" in name:
            others[name] = (dtype, array * np.float32(0.5))
    write_bin(folder / "adapter_model.bin", halves)
    write_bin(folder / "non_lora_trainables.bin", others)
    return folder
