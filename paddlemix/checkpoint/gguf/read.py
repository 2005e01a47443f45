# SPDX-License-Identifier: Apache-2.0
"""A GGUF file of a language model as a folder that transformers and every command here open."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddlemix.checkpoint.folders import CONFIG, GENERATION
from paddlemix.checkpoint.formats.safetensors import Stored
from paddlemix.checkpoint.gguf import names
from paddlemix.checkpoint.gguf.package import library
from paddlemix.checkpoint.gguf.vocabulary import PREFIX, pipeline_of
from paddlemix.checkpoint.save_files import write_json, write_weights
from paddlemix.settings.decoders.table import DECODERS, decoders
from paddlemix.text.tokenizer_files import AddedToken, write_byte_level
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import publish_folder

if TYPE_CHECKING:
    from gguf import ReaderTensor

_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


@dataclass(frozen=True)
class GgufModel:
    """A language model in an open GGUF file. ``fields`` are its values by key, ``tensors`` its tensors by name."""

    path: Path
    fields: dict[str, Any]
    tensors: "dict[str, ReaderTensor]"

    @property
    def arch(self) -> str:
        """``general.architecture``."""
        return str(self.fields.get("general.architecture"))

    def value(self, key: str) -> Any:
        """A field of the architecture. CheckpointError when it is missing."""
        found = self.fields.get(f"{self.arch}.{key}")
        if found is None:
            raise CheckpointError(f"{self.path}: the field {self.arch}.{key} is missing")
        return found


def open_gguf(path: str | Path) -> GgufModel:
    """Open a GGUF file; its tensors stay in the mapped file. CheckpointError for what is no Llama or Qwen2."""
    path, gguf = Path(path), library()
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no GGUF file that can be read ({error}); fetch it again") from error
    model = GgufModel(path, fields, {tensor.name: tensor for tensor in reader.tensors})
    known = [decoder.kind for decoder in decoders() if decoder.kind == decoder.gguf]
    if model.arch not in known:
        raise CheckpointError(
            f'{path}: its architecture is "{model.arch}"; language models of {", ".join(known)} are read'
        )
    scaled = fields.get(f"{model.arch}.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in model.tensors
    if scaled:
        raise CheckpointError(f"{path}: its positions are scaled (rope.scaling), which is not read from a GGUF file")
    return model


def folder_of_gguf(path: str | Path, folder: str | Path) -> dict[str, Any]:
    """Write the language model of a GGUF file to the new ``folder`` in the layout of HF transformers, in float32.

    Quantized blocks become the values that they stand for, one tensor at a time. The tokenizer must be a byte-level
    one. Returns the config.json that was written. CheckpointError when something is missing or not supported.
    """
    model = open_gguf(path)
    pipeline = pipeline_of(model.fields, str(model.path))
    config = config_of(model)
    with publish_folder(folder) as staging:
        write_weights(staging, list(_tensors(model, config)), metadata={"format": "pt"})
        write_json(staging / CONFIG, config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
        write_json(staging / GENERATION, {**ids, "do_sample": False})
        _write_tokenizer(model, pipeline, config, staging)
    return config


def config_of(model: GgufModel) -> dict[str, Any]:
    """The config.json of transformers for the model of a GGUF file."""
    sizes = {key: model.value(name) for key, name in _SIZES.items()}
    decoder, heads = DECODERS.get(model.arch), sizes["num_attention_heads"]
    ids = {role: model.fields.get(f"{PREFIX}{role}_token_id") for role in ("bos", "eos", "padding")}
    named = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    return {
        "architectures": [decoder.hf_class],
        "model_type": decoder.kind,
        **sizes,
        # A GGUF file holds float32; the published number is the shortest that rounds to it.
        "rms_norm_eps": _shortest(sizes["rms_norm_eps"]),
        "rope_theta": _shortest(model.fields.get(f"{model.arch}.rope.freq_base", 10000.0)),
        "num_key_value_heads": model.fields.get(f"{model.arch}.attention.head_count_kv", heads),
        "head_dim": model.fields.get(f"{model.arch}.attention.key_length", sizes["hidden_size"] // heads),
        "hidden_act": "silu",
        "vocab_size": len(model.fields.get(f"{PREFIX}tokens", ())),
        "attention_bias": bool(decoder.biased_by_key) and "blk.0.attn_q.bias" in model.tensors,
        "tie_word_embeddings": "output.weight" not in model.tensors,
        **{named[role]: number for role, number in ids.items() if number is not None},
        "torch_dtype": "float32",
    }


def _shortest(value: float) -> float:
    return float(str(np.float32(value)))


def _tensors(model: GgufModel, config: dict[str, Any]) -> Iterator[Stored]:
    for name, tensor in model.tensors.items():
        source = names.decoder_source(name)
        if source is None:
            raise CheckpointError(f'{model.path}: the tensor "{name}" has no place in a {model.arch} model')
        shape = tuple(int(size) for size in reversed(tensor.shape))
        yield Stored(source, "float32", shape, _reader(model, tensor, config))


def _reader(model: GgufModel, tensor: "ReaderTensor", config: dict[str, Any]) -> Any:
    """A function that gives the values of a tensor, float32, rows in transformers' order."""
    quants = library().quants
    key = "num_attention_heads" if ".attn_q." in tensor.name else "num_key_value_heads"
    turned = DECODERS.get(model.arch).gguf_pairs and names.is_rotated(tensor.name)

    def values() -> np.ndarray:
        try:
            found = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise CheckpointError(
                f'{model.path}: the tensor "{tensor.name}" is of a kind that the package gguf cannot read ({error})'
            ) from error
        return names.halves_apart(found, config[key]) if turned else found

    return values


def _write_tokenizer(model: GgufModel, pipeline: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    tokens = model.fields[f"{PREFIX}tokens"]
    numbers = {role: model.fields.get(f"{PREFIX}{role}_token_id") for role in _ROLES}
    roles = {name: None if numbers[role] is None else tokens[numbers[role]] for role, name in _ROLES.items()}
    marks = ("lstrip", "rstrip", "normalized", "special")
    added = [
        AddedToken(row["content"], row["id"], **{mark: row[mark] for mark in marks}) for row in pipeline["added_tokens"]
    ]
    settings: dict[str, Any] = {
        "add_bos_token": bool(model.fields.get(f"{PREFIX}add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    program = model.fields.get("tokenizer.chat_template")
    if program:
        (folder / "chat_template.jinja").write_text(program, encoding="utf-8")
        settings["chat_template"] = program
    write_byte_level(folder, pipeline, settings, added, roles)
