# SPDX-License-Identifier: Apache-2.0
"""A model folder as GGUF files for llama.cpp: the language model, and beside it the tower with the projector.

``model-f16.gguf`` is what ``llama-cli -m`` takes, ``mmproj-model-f16.gguf`` what ``llama-mtmd-cli --mmproj`` takes.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.convert.layouts import Converted, refuse_target
from paddlemix.checkpoint.convert.tensors import stored
from paddlemix.checkpoint.folders import ADAPTERS, kind_of, resolve
from paddlemix.checkpoint.gguf import names, rope, tower
from paddlemix.checkpoint.gguf.package import BLOCK, Field, Item, library, write_file
from paddlemix.checkpoint.gguf.vocabulary import PREFIX, tokenizer_fields
from paddlemix.checkpoint.plan import LoadEntry
from paddlemix.checkpoint.sources import Sources, check, find_sources, require_floats, template_folder, tokenizer_folder
from paddlemix.settings.decoders.table import DECODERS
from paddlemix.settings.model import TextConfig
from paddlemix.settings.towers.table import TOWERS
from paddlemix.text.jinja_export import chat_jinja
from paddlemix.text.model_template import template_for
from paddlemix.text.templates import Template
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils.errors import CheckpointError, DataError
from paddlemix.utils.files import publish_folder

FORMS = {32: "f32", 16: "f16", 8: "q8_0"}
"""Form of the matrices by ``--bits``; vectors are float32 always, as in every GGUF file."""
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}
"""llama.cpp's numbers for ``general.file_type``."""


def convert_to_gguf(
    src: str | Path,
    dst: str | Path,
    bits: int = 16,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    projector: str | Path | None = None,
) -> Converted:
    """Write the model in ``src`` to the new folder ``dst`` as GGUF files; the arguments are those of ``load_model``.

    ``bits``: 32 or 16 (floats), or 8 (q8_0: blocks of 32 values with one scale; a matrix whose rows are no multiple
    of 32 stays float16). The tower's file holds float16 for 16 and 8, as llama.cpp's own has it.

    One tensor is in memory at a time, and the folder appears when it is complete. CheckpointError without the package
    gguf, for an adapter, and for what llama.cpp has no form for.
    """
    library()
    if bits not in FORMS:
        raise CheckpointError(f"{bits} bits: a GGUF file is written with {', '.join(map(str, FORMS))}")
    folder = resolve(src, "the model")
    refuse_target(folder, Path(dst))
    if kind_of(folder) in ADAPTERS:
        raise CheckpointError(f"{folder}: an adapter has no GGUF form here; merge it first (paddlemix merge)")
    sources = find_sources(folder, base=base, vision_tower=vision_tower, projector=projector)
    require_floats(sources)
    _check(sources)
    notes = [*sources.plan.report.warnings, *sources.plan.report.notes]
    form = FORMS[bits]
    with publish_folder(dst) as staging:
        fields = {**_general(sources, form), **_text_fields(sources.config.text), **_tokenizer_fields(sources, notes)}
        arch = str(DECODERS.get(sources.config.text.model_type).gguf)
        written = write_file(staging / f"model-{form}.gguf", arch, fields, _text_items(sources, form))
        if sources.config.vision is not None:
            form = "f32" if bits == 32 else "f16"
            fields = {**_general(sources, form), **tower.tower_fields(sources.config)}
            path = staging / f"mmproj-model-{form}.gguf"
            notes += tower.notes(sources.config)
            written += write_file(
                path, str(TOWERS.get(sources.config.vision.model_type).gguf), fields, _tower_items(sources, form)
            )
    forms = tuple(sorted({item.form for item in written}))
    return Converted(Path(dst), "gguf", len(written), sum(item.nbytes for item in written), forms, tuple(notes))


def _check(sources: Sources) -> None:
    """CheckpointError for what llama.cpp has no form for, and when a tensor is missing or left over."""
    from paddlemix.models.llava import build_empty

    text = sources.config.text
    if DECODERS.get(text.model_type).gguf is None:
        raise CheckpointError(f'a language model of the kind "{text.model_type}" has no GGUF form here')
    rope.require_known(text)
    if sources.config.vision is not None:
        tower.require_known(sources.config)
    model = build_empty(sources.config)
    check(sources, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()})


# ---- fields --------------------------------------------------------------------------------------------------------


def _general(sources: Sources, form: str) -> dict[str, Field]:
    return {
        "general.type": "model",
        "general.name": sources.parts.folder.name,
        "general.file_type": FILE_TYPES[form],
        "general.quantization_version": 2,
    }


def _text_fields(text: TextConfig) -> dict[str, Field]:
    arch = DECODERS.get(text.model_type).gguf
    width = text.width_per_head
    fields: dict[str, Field] = {
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "rope.freq_base": float(text.rope_theta),
        "rope.dimension_count": width,
        "vocab_size": text.vocab_size,
        **rope.scaling_fields(text),
    }
    return {f"{arch}.{key}": value for key, value in fields.items()}


def _tokenizer_fields(sources: Sources, notes: list[str]) -> dict[str, Field]:
    tokenizer = load_tokenizer(tokenizer_folder(sources.parts))
    config = sources.config
    fields = tokenizer_fields(tokenizer, config.text.vocab_size, notes)
    layout = template_for(template_folder(sources.parts), config.template)
    end = _end_of_turn(tokenizer, layout.stops if isinstance(layout, Template) else ())
    if end is not None:
        fields[f"{PREFIX}eot_token_id"] = end
    try:
        marks = config.use_im_start_end
        fields["tokenizer.chat_template"] = chat_jinja(layout, use_im_start_end=marks, media_markers=True)
    except DataError as error:
        notes.append(f"{error}; the file has no chat template")
    return fields


def _end_of_turn(tokenizer: Tokenizer, stops: tuple[str, ...]) -> int | None:
    """The token that ends an answer, where it is another one than the end of a text."""
    ids = [tokenizer.token_id(text) for text in stops]
    return next((number for number in ids if number is not None and number != tokenizer.eos_id), None)


# ---- tensors -------------------------------------------------------------------------------------------------------


def _named(sources: Sources) -> Iterator[tuple[str, str, LoadEntry]]:
    """Our name, LLaVA's name and the stored tensor, of everything in the model."""
    for name, entry in sorted(sources.plan.entries.items()):
        target = keymap.theirs(name, "llava")
        if target is None:
            raise CheckpointError(f'llama.cpp has no name for the tensor "{name}"')
        yield name, target.name, entry


def _text_items(sources: Sources, form: str) -> Iterator[Item]:
    text, last = sources.config.text, []
    for ours, theirs, entry in _named(sources):
        name = names.decoder_name(theirs)
        if name is not None:
            heads = text.num_attention_heads if ".attn_q." in name else text.num_key_value_heads
            turned = names.is_rotated(name) and DECODERS.get(text.model_type).gguf_pairs
            yield _item(sources, ours, entry, name, form, last, heads if turned else None)
        elif names.tower_name(theirs) is None:
            raise CheckpointError(f'llama.cpp has no name for the tensor "{theirs}"')
    factors = rope.frequency_factors(text)
    if factors is not None:
        yield Item("rope_freqs.weight", "f32", factors.shape, lambda: factors)


def _tower_items(sources: Sources, form: str) -> Iterator[Item]:
    last: list[LoadEntry] = []
    for ours, theirs, entry in _named(sources):
        name = names.tower_name(theirs)
        if name is not None and tower.is_used(theirs, sources.config.vision):
            # ggml's convolution takes a kernel of float16, whatever the rest is.
            yield _item(sources, ours, entry, name, "f16" if name == "v.patch_embd.weight" else form, last, None)


def _item(
    sources: Sources, ours: str, entry: LoadEntry, name: str, form: str, last: list[LoadEntry], heads: int | None
) -> Item:
    target, rows = keymap.theirs(ours, "llava"), sources.config.text.vocab_size
    assert target is not None  # noqa: S101 - _named has seen it
    shape = stored(ours, entry, target, "float32", rows, last).shape
    form = _form_of(shape, form)
    tensor = stored(ours, entry, target, "float16" if form == "f16" else "float32", rows, last)

    def values() -> np.ndarray:
        found = tensor.values()
        return found if heads is None else names.pairs_together(found, heads)

    return Item(name, form, tensor.shape, values)


def _form_of(shape: tuple[int, ...], form: str) -> str:
    if len(shape) < 2:
        return "f32"
    return "f16" if form == "q8_0" and shape[-1] % BLOCK else form
