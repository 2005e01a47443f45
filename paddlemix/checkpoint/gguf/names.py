# SPDX-License-Identifier: Apache-2.0
"""Tensor names of HF transformers and of llama.cpp, and the order of rows that its ``llama`` wants for q and k.

The names are those of the package ``gguf`` (language model) and of llama.cpp's script for LLaVA's towers
(``convert_image_encoder_to_gguf.py``), whose ``ffn_down`` and ``ffn_up`` are the wrong way round: readers of every
age expect it so for a tower with the projector "mlp" and turn it by the shapes.
"""

import re
from collections.abc import Mapping

import numpy as np

_DECODER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOWER = {
    "embeddings.class_embedding": "class_embd",
    "embeddings.patch_embedding": "patch_embd",
    "embeddings.position_embedding": "position_embd",
    "pre_layrnorm": "pre_ln",
    "post_layernorm": "post_ln",
}
_TOWER_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_down",
    "mlp.fc2": "ffn_up",
}
_IN_LAYER = re.compile(r"(?:model|encoder)\.layers\.(\d+)\.(.+)")
_IN_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_PROJECTOR = re.compile(r"model\.mm_projector\.(\d+\.(?:weight|bias))")
TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
NEWLINE = "model.image_newline"
"""LLaVA's name for the newline row, and llama.cpp's."""


def decoder_name(name: str) -> str | None:
    """llama.cpp's name of a language model's tensor in transformers; None for one that it has no name for."""
    return _renamed(name, _DECODER, _LAYER, "")


def decoder_source(name: str) -> str | None:
    """The way back: transformers' name of a llama.cpp tensor, or None."""
    part, _, end = name.rpartition(".")
    found = _IN_BLOCK.fullmatch(part)
    table = {value: key for key, value in (_LAYER if found else _DECODER).items()}
    known = table.get(found[2] if found else part)
    if known is None or end not in ("weight", "bias"):
        return None
    return f"model.layers.{found[1]}.{known}.{end}" if found else f"{known}.{end}"


def tower_name(name: str) -> str | None:
    """llama.cpp's name of a tensor of CLIP's tower or of LLaVA's projector, both named as LLaVA does; or None."""
    if name == NEWLINE:
        return name
    projector = _PROJECTOR.fullmatch(name)
    if projector:
        return f"mm.{projector[1]}"
    return _renamed(name.removeprefix(TOWER_PREFIX), _TOWER, _TOWER_LAYER, "v.") if TOWER_PREFIX in name else None


def tower_layer(name: str) -> int | None:
    """Number of the tower's layer that a tensor (LLaVA's name) belongs to; None outside of the layers."""
    found = _IN_LAYER.fullmatch(name.removeprefix(TOWER_PREFIX)) if TOWER_PREFIX in name else None
    return int(found[1]) if found else None


def _renamed(name: str, whole: Mapping[str, str], layer: Mapping[str, str], prefix: str) -> str | None:
    if name in whole:  # the class token, which has no ".weight" behind it
        return prefix + whole[name]
    part, _, end = name.rpartition(".")
    found = _IN_LAYER.fullmatch(part)
    known = layer.get(found[2]) if found else whole.get(part)
    if known is None or end not in ("weight", "bias"):
        return None
    return f"{prefix}blk.{found[1]}.{known}.{end}" if found else f"{prefix}{known}.{end}"


def pairs_together(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in llama.cpp's order: the two that are rotated together lie side by side.

    ``values`` ``[heads * head_dim, ...]``; transformers has the partner of row i at i + head_dim / 2.
    """
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def halves_apart(values: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of ``pairs_together``: ``values`` ``[heads * head_dim, ...]``."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def is_rotated(name: str) -> bool:
    """Whether a llama.cpp name is that of q or k, whose rows have an order of their own in its ``llama``."""
    return bool(re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", name))
