# SPDX-License-Identifier: Apache-2.0
"""An adapter that goes on keeps its rank, its method and its layers: keys that say something else are refused."""

from collections.abc import Iterator, Sequence

from paddlemix.checkpoint.lora.read import Adapter
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer.lora_targets import find_targets
from paddlemix.utils.commands import shown
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.shown import as_json


def require_same_method(adapter: Adapter, settings: TrainingSettings, linears: Sequence[str]) -> None:
    """ConfigError when a key that was written asks for another adapter than ``adapter``, which the run goes on with.

    ``linears``: the linear layers of the model, by our names.
    """
    if not (settings.model.lora and settings.training.do_train):
        return
    found = [*_differences(adapter, settings), *_other_layers(adapter, settings, linears)]
    if found:
        raise ConfigError(
            f"{adapter.folder}: the adapter goes on as it was made, but {'; '.join(found)}. Leave such a key out or "
            f"write what the adapter has; for an adapter of another kind merge this one first "
            f"({shown('merge', '--lora_path', adapter.folder)}) and train on the result"
        )


def _differences(adapter: Adapter, settings: TrainingSettings) -> Iterator[str]:
    ranks = sorted({pair.r for pair in adapter.pairs.values()})
    has: dict[str, JsonValue] = {
        "lora_rank": ranks[0] if len(ranks) == 1 else ranks,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "pissa": adapter.pissa,
    }
    for key, own in has.items():
        value = getattr(settings.model, key)
        if key in settings.given and value != own:
            yield f'"{key}" is {as_json(value)} and the adapter has {as_json(own)}'


def _other_layers(adapter: Adapter, settings: TrainingSettings, linears: Sequence[str]) -> Iterator[str]:
    patterns = settings.model.lora_target_modules
    if patterns is None or "lora_target_modules" not in settings.given:
        return
    own = {weight.removesuffix(".weight") for weight in adapter.pairs}
    wanted = set(find_targets(linears, patterns)[0])
    if wanted != own:
        example = sorted(wanted ^ own)[0]
        which = "the adapter has none" if example in wanted else "only the adapter has one"
        yield (
            f'"lora_target_modules" means {len(wanted)} layers and the adapter has {len(own)} (for {example} {which})'
        )
