# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in every published layout and in ours, as tables that are walked both ways.

A *form* is a way of naming: ``paddlemix`` (ours), ``llava`` (the original, and plain Llama or Vicuna), ``llava_hf``,
``llava_hf_new`` and ``llava_hf_5`` (transformers before 4.52, since then, and 5), ``clip`` (openai's towers, and those
of EVA-CLIP), ``intern_vit`` (InternViT's towers), ``peft`` and ``peft_hf`` (what peft makes of the original's names and
of llava-hf's). A form is a list of parts: their prefix, our prefix, and the table of the tails below both.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

PREFIX_LLM = "llama."
PREFIX_TOWER = "llama.vision_tower.vision_tower."
PREFIX_CLIP = f"{PREFIX_TOWER}vision_model."
POSITION_TABLE = f"{PREFIX_TOWER}embeddings.position_embedding"
"""InternViT's positions ``[1, 1 + side * side, C]``; their number may be another than config.json says."""

PREFIX_PROJECTOR = "llama.mm_projector."
NEWLINE = "llama.image_newline"


@dataclass(frozen=True)
class Target:
    """Where a tensor goes. ``transpose``: a Linear weight, ``[out, in]`` there and ``[in, out]`` here."""

    name: str
    transpose: bool


@dataclass(frozen=True)
class Ignored:
    """A tensor that is known and not needed."""

    reason: str


@dataclass(frozen=True)
class _Row:
    """Tail there, tail here. ``{n}`` is a number, ``{a|b}`` one of the words; both stand in the same order."""

    theirs: str
    ours: str
    transpose: bool = False


_LLM = (
    _Row("embed_tokens.weight", "embed_tokens.weight"),
    _Row("norm.weight", "norm.weight"),
    _Row(
        "layers.{n}.{input_layernorm|post_attention_layernorm}.weight",
        "layers.{n}.{input_layernorm|post_attention_layernorm}.weight",
    ),
    _Row(
        "layers.{n}.self_attn.{q_proj|k_proj|v_proj|o_proj}.weight",
        "layers.{n}.self_attn.{q_proj|k_proj|v_proj|o_proj}.weight",
        True,
    ),
    _Row(
        "layers.{n}.self_attn.{q_proj|k_proj|v_proj|o_proj}.bias",
        "layers.{n}.self_attn.{q_proj|k_proj|v_proj|o_proj}.bias",
    ),
    _Row(
        "layers.{n}.mlp.{gate_proj|up_proj|down_proj}.weight",
        "layers.{n}.mlp.{gate_proj|up_proj|down_proj}.weight",
        True,
    ),
)
_HEAD = (_Row("lm_head.weight", "lm_head.weight", True),)
_NEWLINE = (_Row("image_newline", "image_newline"),)
_PROJECTOR = (
    _Row("{n}.weight", "{n}.weight", True),
    _Row("{n}.bias", "{n}.bias"),
    _Row("weight", "weight", True),
    _Row("bias", "bias"),
)
_PROJECTOR_HF = (
    _Row("linear_1.weight", "0.weight", True),
    _Row("linear_1.bias", "0.bias"),
    _Row("linear_2.weight", "2.weight", True),
    _Row("linear_2.bias", "2.bias"),
)
_CLIP = (
    _Row("embeddings.class_embedding", "class_embedding"),
    _Row("embeddings.patch_embedding.{weight|bias}", "conv1.{weight|bias}"),  # a bias in EVA-CLIP
    _Row("embeddings.position_embedding.weight", "positional_embedding.weight"),
    _Row("pre_layrnorm.{weight|bias}", "ln_pre.{weight|bias}"),  # the reference misspells it
    _Row("post_layernorm.{weight|bias}", "ln_post.{weight|bias}"),
    _Row("encoder.layers.{n}.layer_norm1.{weight|bias}", "transformer.layers.{n}.norm1.{weight|bias}"),
    _Row("encoder.layers.{n}.layer_norm2.{weight|bias}", "transformer.layers.{n}.norm2.{weight|bias}"),
    _Row(
        "encoder.layers.{n}.self_attn.{q_proj|k_proj|v_proj|out_proj}.weight",
        "transformer.layers.{n}.self_attn.{q_proj|k_proj|v_proj|out_proj}.weight",
        True,
    ),
    _Row(
        "encoder.layers.{n}.self_attn.{q_proj|k_proj|v_proj|out_proj}.bias",
        "transformer.layers.{n}.self_attn.{q_proj|k_proj|v_proj|out_proj}.bias",
    ),
    _Row("encoder.layers.{n}.mlp.fc1.weight", "transformer.layers.{n}.linear1.weight", True),
    _Row("encoder.layers.{n}.mlp.fc1.bias", "transformer.layers.{n}.linear1.bias"),
    _Row("encoder.layers.{n}.mlp.fc2.weight", "transformer.layers.{n}.linear2.weight", True),
    _Row("encoder.layers.{n}.mlp.fc2.bias", "transformer.layers.{n}.linear2.bias"),
)


_INTERN_VIT_SAME = (
    "embeddings.{class_embedding|position_embedding}",
    "embeddings.patch_embedding.{weight|bias}",
    "encoder.layers.{n}.{ls1|ls2}",
    "encoder.layers.{n}.{norm1|norm2}.weight",
    "encoder.layers.{n}.attn.{q_norm|k_norm}.weight",
    "encoder.layers.{n}.attn.{qkv|proj}.bias",
    "encoder.layers.{n}.mlp.{fc1|fc2}.bias",
)
_INTERN_VIT_TURNED = ("encoder.layers.{n}.attn.{qkv|proj}.weight", "encoder.layers.{n}.mlp.{fc1|fc2}.weight")
_INTERN_VIT = (
    *(_Row(name, name) for name in _INTERN_VIT_SAME),
    *(_Row(name, name, True) for name in _INTERN_VIT_TURNED),
)


def _own(rows: tuple[_Row, ...]) -> tuple[_Row, ...]:
    return tuple(_Row(row.ours, row.ours) for row in rows)


_LLAVA = (
    ("model.", PREFIX_LLM, _LLM),
    ("model.", PREFIX_LLM, _NEWLINE),
    ("", "", _HEAD),
    ("model.mm_projector.", PREFIX_PROJECTOR, _PROJECTOR),
    ("model.vision_tower.vision_tower.vision_model.", PREFIX_CLIP, _CLIP),
    ("model.vision_tower.vision_tower.", PREFIX_TOWER, _INTERN_VIT),
)

_LLAVA_HF = (
    ("language_model.model.", PREFIX_LLM, _LLM),
    ("language_model.", "", _HEAD),
    ("", PREFIX_LLM, _NEWLINE),
    ("multi_modal_projector.", PREFIX_PROJECTOR, _PROJECTOR_HF),
    ("vision_tower.vision_model.", PREFIX_CLIP, _CLIP),
)
_LLAVA_HF_5 = (*_LLAVA_HF[:-1], ("vision_tower.", PREFIX_CLIP, _CLIP))
_LLAVA_HF_NEW = (
    ("model.language_model.", PREFIX_LLM, _LLM),
    ("", "", _HEAD),
    ("model.", PREFIX_LLM, _NEWLINE),
    ("model.multi_modal_projector.", PREFIX_PROJECTOR, _PROJECTOR_HF),
    ("model.vision_tower.vision_model.", PREFIX_CLIP, _CLIP),
    ("model.vision_tower.", PREFIX_CLIP, _CLIP),  # read only: newest transformers leave vision_model out
)

_Parts = tuple[tuple[str, str, tuple[_Row, ...]], ...]


def _below(prefix: str, parts: _Parts) -> _Parts:
    return tuple((f"{prefix}{theirs}", ours, rows) for theirs, ours, rows in parts)


FORMS: dict[str, _Parts] = {
    "paddlemix": (
        (PREFIX_LLM, PREFIX_LLM, _own(_LLM)),
        (PREFIX_LLM, PREFIX_LLM, _own(_NEWLINE)),
        ("", "", _own(_HEAD)),
        (PREFIX_PROJECTOR, PREFIX_PROJECTOR, _own(_PROJECTOR)),
        (PREFIX_CLIP, PREFIX_CLIP, _own(_CLIP)),
        (PREFIX_TOWER, PREFIX_TOWER, _own(_INTERN_VIT)),
    ),
    "llava": _LLAVA,
    "peft": (
        *_below("base_model.model.", _LLAVA),
        *_below("base_model.", _LLAVA),  # read only: older adapters
        *_below("base_model.model.", _LLAVA_HF_NEW),  # read only, like the next: adapters of llava-hf models
        *_below("base_model.model.", _LLAVA_HF),
    ),
    "peft_hf": _below("base_model.model.", _LLAVA_HF_NEW),
    "llava_hf": _LLAVA_HF,
    "llava_hf_new": _LLAVA_HF_NEW,
    "llava_hf_5": _LLAVA_HF_5,
    "clip": (("vision_model.", PREFIX_CLIP, _CLIP),),
    "intern_vit": (("", PREFIX_TOWER, _INTERN_VIT),),
}
"""Forms by name. Where two parts could write a name, the first one does."""

TOWER_FORMS = ("clip", "intern_vit")
"""Forms of folders that hold a vision tower alone."""

_SIGNATURES = (
    ("paddlemix", (PREFIX_LLM,)),
    ("peft", ("base_model.",)),
    ("llava_hf_new", ("model.language_model.", "model.multi_modal_projector.")),
    ("llava_hf_5", ("vision_tower.embeddings.", "vision_tower.encoder.")),
    ("llava_hf", ("language_model.", "multi_modal_projector.")),
    ("llava", ("model.embed_tokens.", "model.layers.", "model.mm_projector.", "model.norm.", "model.image_newline")),
    ("clip", ("vision_model.",)),
    ("intern_vit", ("embeddings.", "encoder.layers.")),
)
"""The first form one of whose prefixes begins any name."""

_IGNORED = (
    (re.compile(r"(.*\.)?rotary_emb\.inv_freq"), "rotary tables are computed from rope_theta"),
    (re.compile(r"(.*\.)?position_ids"), "a buffer of consecutive numbers"),
    (re.compile(r"text_model\..*"), "CLIP's text tower takes no part"),
    (re.compile(r"(text|visual)_projection\.weight|logit_scale"), "CLIP's contrastive head takes no part"),
)

_ANY_PROJECTOR = re.compile(r"((?:.*\.)?)((?:mm_projector|multi_modal_projector)\..+|image_newline)")

_PLACE = re.compile(r"\{([^}]*)\}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    text, position = "", 0
    for match in _PLACE.finditer(template):
        words = r"0|[1-9][0-9]{0,3}" if match[1] == "n" else match[1]
        text += re.escape(template[position : match.start()]) + f"({words})"
        position = match.end()
    return re.compile(text + re.escape(template[position:]))


def _insert(template: str, values: tuple[str, ...]) -> str:
    remaining = iter(values)
    return _PLACE.sub(lambda _: next(remaining), template)


def _match(name: str, prefix: str, template: str) -> tuple[str, ...] | None:
    if not name.startswith(prefix):
        return None
    found = _pattern(template).fullmatch(name, len(prefix))
    return found.groups() if found else None


def detect(names: Iterable[str]) -> str | None:
    """The form that a set of names is written in, or None."""
    names = list(names)
    for form, prefixes in _SIGNATURES:
        if any(name.startswith(prefixes) for name in names):
            return form
    return None


def ours(name: str, form: str) -> Target | Ignored | None:
    """Our name for ``name`` of ``form``; Ignored with the reason; None for a name that nobody knows."""
    for prefix, our_prefix, rows in FORMS[form]:
        for row in rows:
            places = _match(name, prefix, row.theirs)
            if places is not None:
                return Target(our_prefix + _insert(row.ours, places), row.transpose)
    for pattern, reason in _IGNORED:
        if pattern.fullmatch(name):
            return Ignored(reason)
    return None


def projector(name: str) -> Target | None:
    """Our name for a tensor of a projector file, whatever stands in front of it; None for any other tensor.

    LLaVA takes what follows ``mm_projector.``, so its files may say ``model.mm_projector.0.weight``,
    ``mm_projector.0.weight`` or ``module.model.mm_projector.0.weight``.
    """
    found = _ANY_PROJECTOR.fullmatch(name)
    if found is None:
        return None
    before, part = found.groups()
    if before.endswith(PREFIX_LLM):
        target = ours(f"{PREFIX_LLM}{part}", "paddlemix")
    elif part.startswith("multi_modal_projector."):
        target = ours(part, "llava_hf")
    else:
        target = ours(f"model.{part}", "llava")
    return target if isinstance(target, Target) else None


def theirs(name: str, form: str) -> Target | None:
    """The name in ``form`` for our ``name``, and whether the values are transposed; None for a name not ours."""
    for prefix, our_prefix, rows in FORMS[form]:
        for row in rows:
            places = _match(name, our_prefix, row.ours)
            if places is not None:
                return Target(prefix + _insert(row.theirs, places), row.transpose)
    return None
