# SPDX-License-Identifier: Apache-2.0
"""The language model of a foreign config.json, by the description of its decoder (``settings/decoders``)."""

import math
from typing import Any

from paddlemix.settings.decoders.base import Fact
from paddlemix.settings.decoders.table import DECODERS
from paddlemix.settings.model import TextConfig
from paddlemix.settings.published.reader import KeyReader

_LARGEST = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 4096,
    "max_position_embeddings": 1 << 27,
    "head_dim": 1 << 14,
}
_CORE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def read_text(reader: KeyReader, family: str, *, complete: bool) -> TextConfig:
    """The language model. ``complete``: the file must hold the sizes itself."""
    decoder = DECODERS.get(family)
    reader.take("model_type", str, family)
    values: dict[str, Any] = {}
    for name, default in decoder.defaults.items():
        kind = int if default is None else type(default)
        needed = complete and name in _CORE
        if name == "eos_token_id":
            values[name] = _first_end(reader, default)
            continue
        values[name] = reader.need(name, kind) if needed else reader.take(name, kind, default)
    if "sliding_window" in reader.data and reader.data["sliding_window"] is None:
        values["sliding_window"] = None
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    values["rope_theta"], values["rope_scaling"] = _rope(
        reader, values["rope_theta"], values["max_position_embeddings"]
    )
    for name, (accepted, why) in decoder.expected.items():
        reader.expect(name, accepted, why=why)
    reader.ignore(decoder.ignored)
    reader.expect("hidden_act", "silu", why="only silu is supported")
    reader.expect("mlp_bias", False, why="only layers without bias are supported")
    reader.expect("alibi", False, why="only rotary positions are supported")
    for name in ("fuse_attention_qkv", "fuse_attention_ffn"):
        reader.expect(name, False, why="fused weights cannot be read; save the model with separate ones")
    _check_text(reader, values)
    return TextConfig(model_type=family, **values)


def _first_end(reader: KeyReader, default: Fact) -> Fact:
    """The id that ends a text: of a list (Llama-3.1 and newer) the first, as its tokenizer and the conversation
    template name the end of an answer.
    """
    value = reader.take("eos_token_id", (int, list), default)
    if isinstance(value, list):
        if not value or any(type(number) is not int for number in value):
            reader.wrong("eos_token_id", value, "expected an int, or a list of them")
        return value[0]
    return value


def _check_text(reader: KeyReader, values: dict[str, Any]) -> None:
    reader.positive(values, *_CORE, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")
    reader.at_most(values, _LARGEST)
    for name in ("head_dim", "sliding_window"):
        if values.get(name) is not None:
            reader.positive(values, name)
    heads = values["num_attention_heads"]
    if (values.get("head_dim") or 2) % 2:
        reader.wrong("head_dim", values["head_dim"], "expected an even number; rotary positions turn pairs")
    if values.get("head_dim") is None and values["hidden_size"] % heads:
        reader.wrong("num_attention_heads", heads, f"hidden_size {values['hidden_size']} is no multiple of it")
    if heads % values["num_key_value_heads"]:
        reader.wrong("num_key_value_heads", values["num_key_value_heads"], f"num_attention_heads is {heads}")


def _rope(reader: KeyReader, theta: float, longest: int) -> tuple[float, dict[str, Any] | None]:
    """``rope_theta`` and ``rope_scaling`` in the three spellings: transformers' old keys and its ``rope_parameters``
    (since version 5, theta inside), and PaddleNLP's two keys. ``longest``: ``max_position_embeddings``.
    """
    newest = reader.take("rope_parameters", dict, None)
    name = "rope_scaling" if newest is None else "rope_parameters"
    scaling = reader.take("rope_scaling", dict, None)
    kind = reader.take("rope_scaling_type", str, None)
    factor = reader.take("rope_scaling_factor", float, 1.0)
    if newest is not None:
        inner = KeyReader(newest, reader.file, f"{reader.pointer}rope_parameters/")
        theta = inner.take("rope_theta", float, theta)
        inner.positive({"rope_theta": theta}, "rope_theta")
        inner.expect("partial_rotary_factor", 1.0, why="only whole heads are turned")
        _require_alike(reader, scaling, newest)
        scaling = {key: value for key, value in newest.items() if key not in _NO_SCALING}
    if kind is not None and scaling is None:
        scaling = {"type": kind, "factor": factor}
    if scaling is None:
        return theta, None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in _ROPE_NUMBERS:
        reader.wrong(name, scaling, f"expected a type of {', '.join(_ROPE_NUMBERS)}")
    if kind in _WINDOWED and scaling.get("original_max_position_embeddings") is None:
        scaling = {**scaling, "original_max_position_embeddings": longest}  # as transformers does
    numbers = [*_ROPE_NUMBERS[kind], *(key for key in _YARN if kind == "yarn" and scaling.get(key) is not None)]
    for key in numbers:
        number = scaling.get(key)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            reader.wrong(name, scaling, f'"{key}" is to be a number above 0')
    if kind == "yarn" and not isinstance(scaling.get("truncate", True), bool):
        reader.wrong(name, scaling, '"truncate" is to be true or false')
    left = set(scaling) - {"type", "rope_type", "truncate", "finetuned", *_YARN, *_ALL_NUMBERS}
    if left:
        reader.wrong(name, scaling, f'"{min(left)}" is not supported')
    return theta, None if newest is not None and kind == "default" else scaling


def _require_alike(reader: KeyReader, older: dict[str, Any] | None, newest: dict[str, Any]) -> None:
    """``rope_scaling`` beside ``rope_parameters`` says the same: which one is taken depends on the reader."""

    def spelled(scaling: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in scaling.items() if key not in ("type", *_NO_SCALING)}
        return {"rope_type": scaling.get("type"), **kept}

    if older is not None and spelled(older) != spelled(newest):
        reader.wrong("rope_scaling", older, 'another one stands in "rope_parameters"; take the wrong one out')


_NO_SCALING = ("rope_theta", "partial_rotary_factor")
"""What ``rope_parameters`` holds beside the scaling."""
_ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""Kinds of rotary scaling, and the numbers that each needs."""
_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_WINDOWED = ("llama3", "yarn")
_ALL_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
