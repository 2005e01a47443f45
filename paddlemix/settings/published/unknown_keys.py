# SPDX-License-Identifier: Apache-2.0
"""Keys of foreign files that no reader took: those that cannot matter, those that stop, and the rest, which is told.

Published files collect keys of every program that ever wrote them. A key that says nothing, or belongs to text
generation, to training or to bookkeeping, is passed over. A key that is known to change the numbers, with a value
that is not supported, is an error. Every other one is named in a warning with what it might change; an error under
``utils.options.strict_config``.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.logging import get_logger
from paddlemix.utils.shown import as_json

_HARMLESS = re.compile(
    r"_.*"  # private to the program that wrote the file
    r"|.*_version|.*(_lr|learning_rate)|(train|training|wandb|deepspeed|gradient|optim)_.*"  # bookkeeping, training
    r"|(generation|forced|suppress|begin_suppress|num_beam|no_repeat)_.*|.*_penalty"  # text generation
    r"|.*(flash_attn|flash_attention|recompute|checkpointing).*"  # kernels and memory
)
_TOKEN = re.compile(r".*token_(id|ids|index)")

_EXPERTS = "mixtures of experts are not supported"
_SCALED = "a factor on values inside the model is not supported"
_CAPPED = "capped or rescaled attention is not supported"
_ROTARY = "only whole heads are turned"
_NORMED = "norms on queries and keys are not supported in the language model"

_REFUSED: dict[str, tuple[tuple[JsonValue, ...], str]] = {
    "quantization_config": ((), "weights of few bits are not supported; take the model with 16 or 32 bits"),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "num_experts_per_tok", "n_routed_experts", "moe_intermediate_size"),
        ((), _EXPERTS),
    ),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), ((1,), _ROTARY)),
    **dict.fromkeys(
        ("logit_scale", "logits_scaling", "residual_multiplier", "embedding_multiplier", "attention_multiplier",
         "scale_emb", "scale_depth"),
        ((1,), _SCALED),
    ),
    **dict.fromkeys(
        ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "clip_qkv"), ((), _CAPPED)
    ),
    **dict.fromkeys(("qk_norm", "use_qk_norm", "qk_layernorm"), ((), _NORMED)),
    **dict.fromkeys(
        ("use_sliding_window", "sliding_window_pattern"), ((), "attention over a window in some layers only")
    ),
    "no_rope_layers": ((), "layers without rotary positions are not supported"),
    "cross_attention_layers": ((), "layers that look at the image by themselves are not supported"),
    "position_embedding_type": (("rope", "rotary", "absolute"), "only the usual positions are supported"),
    "use_dense_connector": ((), "features of several layers are not supported"),
    "mm_vision_select_layers": ((), "features of several layers are not supported"),
}  # fmt: skip
"""Key to the values that change nothing (beside null, false and empty ones) and why no other is supported."""

_MIGHT_CHANGE = (
    (r"rope|rotary|position", "where a word stands"),
    (r"attn|attention|window|head", "attention"),
    (r"image|img|crop|pixel|tile|patch|anyres|video|frame", "how pictures are cut or read"),
    (r"mm_|vision|projector|connector|resampler|tower", "what the model is given of a picture"),
    (r"norm|act|scale|factor|multiplier|bias|dropout", "the arithmetic of the layers"),
    (r"token|vocab|prompt|template|conv", "how text becomes ids"),
)

Unread: TypeAlias = tuple[JsonValue, str]
"""The value of a key that nobody took, and the nearest known name as a question, or an empty text."""

_TOLD: set[str] = set()
"""Warnings of this process: a file is read several times on the way to a model, and told of once."""


def is_harmless(name: str, value: JsonValue) -> bool:
    """Whether an unknown key can be passed over: it says nothing, or belongs to training, generation or the writer.

    ``{"unk_token_id": 0}``, ``{"_model_name": "x"}``, ``{"use_x": false}`` are; ``{"blur": 0}`` is not.
    """
    if value is None or value is False or value in ("", [], {}):
        return True
    if _TOKEN.fullmatch(name):
        return all(type(item) is int for item in (value if isinstance(value, list) else [value]))
    return bool(_HARMLESS.fullmatch(name))


def might_change(name: str) -> str:
    """What a key of this name could be about, in words."""
    return next((text for pattern, text in _MIGHT_CHANGE if re.search(pattern, name)), "what the model computes")


def refusal(name: str, value: JsonValue) -> str | None:
    """Why this value of an unread key stops the loading; None when it does not."""
    if name == "layer_types" and isinstance(value, list):
        kinds = {str(item) for item in value} - {"full_attention"}
        return f"layers of the kind {', '.join(sorted(kinds))} are not supported" if kinds else None
    accepted, why = _REFUSED.get(name, (None, ""))
    return None if accepted is None or value in accepted else why


def tell(where: str, found: Mapping[str, Unread]) -> None:
    """Name the unread keys of the file ``where``, by their places in it, in one warning.

    Keys that ``refusal`` looks at are left out: their values change nothing. CheckpointError under ``strict_config``.
    """
    found = {place: row for place, row in found.items() if _last(place) not in (*_REFUSED, "layer_types")}
    if not found:
        return
    listed = "; ".join(
        f'"{place}" ({as_json(value)}{hint}) might change {might_change(_last(place))}'
        for place, (value, hint) in sorted(found.items())
    )
    if options.is_strict():
        raise CheckpointError(
            f"{where}: unknown key{'s' * (len(found) > 1)}: {listed}. If the model computes the same without, take "
            f"{'them' if len(found) > 1 else 'it'} out of the file, or load without {options.current().strict_config}"
        )
    text = (
        f"{where}: not used, because nothing here knows {'them' if len(found) > 1 else 'it'}: {listed}. Compare an "
        f"answer with the original's; {options.current().strict_config} makes this an error"
    )
    warn_once(text)


def warn_once(text: str) -> None:
    """A warning about a file, unless this process gave it before."""
    if text not in _TOLD:
        _TOLD.add(text)
        get_logger(__name__).warning(text)


def _last(place: str) -> str:
    return place.rpartition("/")[2]
