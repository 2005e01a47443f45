# SPDX-License-Identifier: Apache-2.0
"""Which layers the patterns of ``lora_target_modules`` mean: PaddleMIX's regular expressions and peft's spellings."""

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

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

FORMS = ("paddlemix", "llava", "llava_hf", "llava_hf_new")
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


def lora_parameters(settings: TrainingSettings) -> tuple[str, ...]:
    """Names of the parameters that a new adapter's layer has besides those of a plain one."""
    start = ("lora_start_A", "lora_start_B") if settings.model.pissa else ()
    return ("lora_A", "lora_B", *start, *(("lora_magnitude_vector",) if settings.model.use_dora else ()))


def add_adapters(model: "nn.Layer", settings: TrainingSettings, *, begin: bool = True) -> list[str]:
    """Attach new adapters to ``model`` as the settings say; notes to show. ConfigError: see ``find_targets``.

    ``begin=False``: their values are about to be loaded from a checkpoint, so the model's weights are not looked at.
    """
    from paddlemix.ops.linear import Linear, add_lora

    group, seed = settings.model, settings.training.seed
    linear = [name for name, layer in model.named_sublayers() if isinstance(layer, Linear)]
    names, notes = find_targets(linear, group.lora_target_modules or (ALL_LINEAR,))
    whole = [re.escape(name) for name in names]
    method = {"rslora": group.rslora, "dora": group.use_dora, "pissa": group.pissa, "begin": begin}
    add_lora(model, whole, group.lora_rank, group.lora_alpha, group.lora_dropout, seed=seed, **method)
    if group.pissa and begin:
        _begin_with_principal_parts(model, group.pissa_iter, seed)
    if group.pissa and group.lora_dropout:
        notes.append(
            f"with pissa the adapters hold the principal part of the weights, which lora_dropout "
            f"({group.lora_dropout:g}) disturbs; the paper has lora_dropout 0"
        )
    return notes


def check_rank(layer: str, shape: Sequence[int], settings: TrainingSettings) -> None:
    """ConfigError when PiSSA needs more singular values than a layer's weight of ``shape`` (any order) has."""
    if settings.model.pissa and settings.model.lora_rank > min(shape):
        raise ConfigError(
            f'"lora_rank" is {settings.model.lora_rank}, but the weight of {layer} has {min(shape)} singular values, '
            f'of which pissa takes so many; write "lora_rank": {min(shape)} or less'
        )


def _begin_with_principal_parts(model: "nn.Layer", rounds: int, seed: int) -> None:
    """Let PiSSA's adapters begin as they should, with the first process's numbers in all processes."""
    import paddle

    from paddlemix.ops.linear import lora_layers
    from paddlemix.ops.parallel import whole
    from paddlemix.ops.pissa import principal

    several = paddle.distributed.is_initialized() and paddle.distributed.get_world_size() > 1
    for name, layer in lora_layers(model):
        weight = whole(layer.weight).astype("float32").numpy()
        try:
            pair = principal(weight, layer.r, rounds, seed=zlib.crc32(name.encode()) ^ seed)
        except np.linalg.LinAlgError as error:
            raise ConfigError(
                f'"pissa": the principal part of {name} cannot be found ({error}); is the model whole?'
            ) from error
        pair = [half / np.float32(math.sqrt(layer.scaling)) for half in pair]
        if several:  # another processor may turn the sign of a direction round
            halves = [paddle.to_tensor(half) for half in pair]
            for half in halves:
                paddle.distributed.broadcast(half, src=0)
            pair = [half.numpy() for half in halves]
        layer.begin_with(*pair)


def default_targets() -> tuple[str, ...]:
    """Regular expressions of the layers that LoRA trains by default, as the decoders' descriptions name them."""
    rules = (rf"{re.escape(keymap.PREFIX_LLM + decoder.layers)}\d+\.{decoder.linears}" for decoder in decoders())
    return tuple(dict.fromkeys(rules))


def _is_in_decoder(name: str) -> bool:
    return name.startswith(tuple(f"{keymap.PREFIX_LLM}{decoder.layers}" for decoder in decoders()))


def _spellings(name: str) -> Iterator[str]:
    for form in FORMS:
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
