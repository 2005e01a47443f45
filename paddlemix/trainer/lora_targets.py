# SPDX-License-Identifier: Apache-2.0
"""Which layers the patterns of ``lora_target_modules`` mean: PaddleMIX's regular expressions and peft's spellings."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from paddlemix.checkpoint import keymap
from paddlemix.settings.decoders.table import decoders
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.registry import nearest

if TYPE_CHECKING:
    from paddle import nn

ALL_LINEAR = "all-linear"
"""Default of ``lora_target_modules``, by peft's word: every linear layer of the decoder, never lm_head, projector or
vision tower."""

_FORMS = ("paddlemix", "llava", "llava_hf", "llava_hf_new")
"""The ways of naming a layer that a pattern may be written for."""
_OTHER_PARTS = ("vision_tower", "mm_projector", "multi_modal_projector", "lm_head")
"""Layers outside of the decoder get an adapter when a pattern says one of these words, and only then."""


def find_targets(names: Sequence[str], patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    """The layers among ``names`` (linear layers of a model, by our names) that get an adapter, and notes to show.

    A pattern is a regular expression that fits a whole layer name, or plain text that ends one behind a dot, as in peft
    (``q_proj``), in our spelling, LLaVA's or llava-hf's; ``all-linear`` is the default. It means layers of the decoder;
    those of the vision tower, the projector and the head only when it names that part (``.*vision_tower.*q_proj``):
    peft's users write ``.*q_proj`` for the language model, and the tower would train without anybody having said so.

    ConfigError when a pattern is no regular expression or means no layer.
    """
    spellings = {name: list(_spellings(name)) for name in names}
    chosen: set[str] = set()
    notes = []
    for pattern in dict.fromkeys(patterns):
        rules = [_compiled(text) for text in (default_targets() if pattern == ALL_LINEAR else (pattern,))]
        fits = [name for name in names if any(_fits(rule, spellings[name]) for rule in rules)]
        meant = fits if _names_other_part(pattern) else [name for name in fits if _is_in_decoder(name)]
        if not meant:
            raise ConfigError(f'"lora_target_modules": {_no_layer(pattern, fits, names)}')
        if len(meant) < len(fits):
            notes.append(
                f'lora_target_modules "{pattern}" means {len(meant)} layers of the decoder; {len(fits) - len(meant)} '
                f"outside of it fit too ({_first_other(fits)}) and get no adapter unless the pattern says vision_tower"
            )
        chosen.update(meant)
    return [name for name in names if name in chosen], notes


def add_adapters(model: "nn.Layer", settings: TrainingSettings) -> list[str]:
    """Attach new adapters to ``model`` as the settings say; notes to show. ConfigError: see ``find_targets``."""
    from paddlemix.ops.linear import Linear, add_lora

    group, seed = settings.model, settings.training.seed
    linear = [name for name, layer in model.named_sublayers() if isinstance(layer, Linear)]
    names, notes = find_targets(linear, group.lora_target_modules or (ALL_LINEAR,))
    whole = [re.escape(name) for name in names]
    add_lora(model, whole, group.lora_rank, group.lora_alpha, group.lora_dropout, seed=seed, rslora=group.rslora)
    return notes


def default_targets() -> tuple[str, ...]:
    """Regular expressions of the layers that LoRA trains by default, as the decoders' descriptions name them."""
    rules = (rf"{re.escape(keymap.PREFIX_LLM + decoder.layers)}\d+\.{decoder.linears}" for decoder in decoders())
    return tuple(dict.fromkeys(rules))


def _is_in_decoder(name: str) -> bool:
    return name.startswith(tuple(f"{keymap.PREFIX_LLM}{decoder.layers}" for decoder in decoders()))


def _spellings(name: str) -> Iterator[str]:
    for form in _FORMS:
        target = keymap.theirs(f"{name}.weight", form)
        if target is not None:
            yield target.name.removesuffix(".weight")


def _compiled(pattern: str) -> re.Pattern[str]:
    # Only plain text may stand for the end of a name: behind any beginning, a "(?!.*vision)" would look past the tower.
    plain = re.fullmatch(r"[\w.]+", pattern)
    try:
        return re.compile(rf"(?:.*\.)?{re.escape(pattern)}|{pattern}" if plain else pattern)
    except re.error as error:
        raise ConfigError(f'"lora_target_modules": "{pattern}" is not a regular expression: {error}') from error


def _fits(rule: re.Pattern[str], spellings: Iterable[str]) -> bool:
    return any(rule.fullmatch(name) for name in spellings)


def _names_other_part(pattern: str) -> bool:
    plain = pattern.replace("\\", "")
    return any(part in plain for part in _OTHER_PARTS)


def _first_other(names: Iterable[str]) -> str:
    return next(name for name in names if not _is_in_decoder(name))


def _no_layer(pattern: str, fits: list[str], names: Sequence[str]) -> str:
    if fits:
        return (
            f'"{pattern}" fits no layer of the decoder, but {len(fits)} outside of it ({fits[0]}); '
            f'to give those an adapter name their part: "{_in_part(pattern, fits[0])}"'
        )
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in names if _is_in_decoder(name)))
    example = next((name for name in names if _is_in_decoder(name)), "none")
    hint = nearest(pattern, [*kinds, ALL_LINEAR])
    lists = "; write a list, one name an item" if "," in pattern else ""
    return (
        f'"{pattern}" fits no linear layer{hint}{lists} (a layer is called {example}; its last part alone means it '
        f"in every layer: {', '.join(kinds)})"
    )


def _in_part(pattern: str, name: str) -> str:
    part = next((word for word in _OTHER_PARTS if word in name), "vision_tower")
    return rf".*{part}.*{pattern.removeprefix('.*')}"
