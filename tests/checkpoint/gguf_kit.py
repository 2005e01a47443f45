# SPDX-License-Identifier: Apache-2.0
"""Small model folders to be written as GGUF files, and what the files hold."""

import functools
import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint.gguf.package import library
from paddlemix.checkpoint.save import save_model
from paddlemix.text.tokenizer import load_tokenizer
from tests.text.text_tools import folder as llama_tokenizer
from tests.tiny import tiny_config, tiny_model

MISSING = importlib.util.find_spec("gguf") is None
"""Whether the package is not there (it comes with the extras "gguf" and "dev")."""
BYTE_BPE = Path(__file__).parents[1] / "data" / "byte_bpe"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
KINDS = ("llama", "mistral", "qwen2", "llama3", "linear", "tied")


@functools.cache
def made(kind: str, family: str | None = None) -> Path:
    """``folder_of`` without changes, made once: not to be written to."""
    return folder_of(Path(tempfile.mkdtemp(prefix="gguf-")) / "model", kind, family)


def folder_of(root: Path, kind: str, family: str | None = None, **changes: Any) -> Path:
    """A folder of ours with a small LLaVA whose decoder is of ``kind`` (see ``KINDS``).

    ``family`` names a tokenizer of ``BYTE_BPE``; without it the tokenizer is that of the kind, or one like Llama's.
    """
    config = tiny_config(**changes)
    family = family or {"qwen2": "qwen2", "llama3": "llama3"}.get(kind)
    tokenizer = load_tokenizer(BYTE_BPE / family if family else llama_tokenizer(legacy=False))
    text = replace(
        config.text,
        model_type=kind if kind in ("mistral", "qwen2") else "llama",
        vocab_size=max(448, -(-tokenizer.vocab_size // 64) * 64),
        rope_scaling={"llama3": LLAMA3, "linear": LINEAR}.get(kind),
        tie_word_embeddings=kind == "tied",
    )
    template = {"qwen2": "qwen_2", "llama3": "llava_llama_3"}.get(kind, "vicuna_v1")
    model = tiny_model(config=config.with_changes(text=text, template=template))
    return save_model(root, model, model.config, tokenizer)


def fields_in(path: Path) -> dict[str, Any]:
    """Every field of a file but those of the container itself."""
    reader = library().GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def tensors_in(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Form and values (float32, numpy's order of axes) of every tensor of a file."""
    gguf = library()
    found = gguf.GGUFReader(path).tensors
    return {
        tensor.name: (
            tensor.tensor_type.name.lower(),
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32),
        )
        for tensor in found
    }
