# SPDX-License-Identifier: Apache-2.0
"""Which parameters ``modules_to_save`` means: peft's way to let whole modules train beside the adapters."""

from collections.abc import Iterable, Iterator, Sequence

from paddlemix.checkpoint import keymap
from paddlemix.trainer.lora_targets import FORMS
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.registry import nearest

_TOWER = "vision_tower"
_LEAVES = ("weight", "bias")


def find_saved(names: Sequence[str], modules: Iterable[str]) -> set[str]:
    """The parameters among ``names`` (ours, those of adapters left out) that lie in one of ``modules``.

    A module is named by its name or the end of it, in our spelling, LLaVA's or llava-hf's; what lies in the vision
    tower is meant only by a name that says vision_tower. ConfigError when one means nothing, with what there is, or
    when it lies over a layer that has an adapter.
    """
    paths = {name: [_path(spelling) for spelling in _spellings(name)] for name in names if ".lora_" not in name}
    adapted = {name.rpartition(".lora_")[0] for name in names if ".lora_" in name}
    found: set[str] = set()
    for module in modules:
        meant = [
            name
            for name, spelled in paths.items()
            if (not name.startswith(f"llama.{_TOWER}.") or _TOWER in module)
            and any(f".{module}." in path for path in spelled)
        ]
        if not meant:
            raise ConfigError(f'"modules_to_save": "{module}" is no module of the model{_known(module, paths)}')
        both = next((name for name in meant if name.rpartition(".")[0] in adapted), None)
        if both is not None:
            raise ConfigError(
                f'"modules_to_save": "{module}" lies over {both.rpartition(".")[0]}, which has an adapter: let a layer '
                "train whole or by an adapter, and name it in modules_to_save or in lora_target_modules only"
            )
        found.update(meant)
    return found


def _spellings(name: str) -> Iterator[str]:
    yield name
    for form in FORMS:
        target = keymap.theirs(name, form)
        if target is not None:
            yield target.name


def _path(name: str) -> str:
    """``.llama.norm.`` of ``llama.norm.weight``; a parameter that lies in no layer of its own counts as one."""
    module, _, leaf = name.rpartition(".")
    return f".{module if leaf in _LEAVES else name}."


def _known(module: str, names: Iterable[str]) -> str:
    outside = dict.fromkeys(
        name.removeprefix("llama.").split(".")[0]
        for name in names
        if not name.startswith(("llama.layers.", f"llama.{_TOWER}."))
    )
    if module == "lm_head" and module not in outside:
        return ', whose output head is its token table; write "embed_tokens"'
    hint = nearest(module, list(outside))
    return f"{hint} (outside of the layers there are {', '.join(outside)}; a layer is called layers.0.mlp.down_proj)"
