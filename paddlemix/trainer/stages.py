# SPDX-License-Identifier: Apache-2.0
"""What trains, at which rate, with or without decay: decided once, before the first step, for every parameter."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from paddlemix.settings.decoders.table import DECODERS
from paddlemix.settings.model import VisionConfig
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.settings.towers.base import Tower
from paddlemix.settings.towers.table import TOWERS
from paddlemix.trainer.saved_modules import find_saved
from paddlemix.utils import options
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.registry import nearest

if TYPE_CHECKING:
    from paddle import Tensor, nn
    from rich.table import Table

FULL, LORA, PROJECTOR, TOWER = "full", "lora", "projector", "vision tower"
PROJECTOR_PART = "projector"
TOWER_PART = "vision tower"

_TOWER_PREFIX = "llama.vision_tower."
_HEAD, _TABLE = "lm_head.weight", "llama.embed_tokens.weight"

# The first prefix that fits names the part. Order of the table at the start of a run.
_PARTS = (
    (TOWER_PART, (_TOWER_PREFIX,)),
    (PROJECTOR_PART, ("llama.mm_projector.",)),
    ("image newline", ("llama.image_newline",)),
    ("token embedding", ("llama.embed_tokens.",)),
    ("decoder layers", ("llama.layers.",)),
    ("final norm", ("llama.norm.",)),
    ("output head", ("lm_head.",)),
    ("other", ("",)),
)
ADAPTERS_PART = "LoRA adapters"
_ENCODER_PREFIX = f"{_TOWER_PREFIX}vision_tower."


@dataclass(frozen=True)
class Rule:
    """How one trainable parameter is updated."""

    learning_rate: float
    decay: bool


@dataclass(frozen=True)
class ModelPart:
    """One row of the table: counts are in numbers (scalars), ``learning_rate`` is None where nothing trains.

    ``rate_of_b``: of adapters whose B has a rate of its own (LoRA+).
    """

    name: str
    total: int
    trainable: int
    learning_rate: float | None
    rate_of_b: float | None = None


@dataclass(frozen=True)
class StagePlan:
    """The decision. ``rules`` holds the trainable parameters by their structured names, in the model's order.

    ``idle`` are those of a tower that trains which lie behind the layer whose features are taken. The original hands
    them to its optimizer too; they get no gradient and never change, and what sums gradients in buckets (sharding
    stage2) would wait for them for ever, so they stay frozen here.
    """

    stage: str
    rules: dict[str, Rule]
    parts: tuple[ModelPart, ...]
    idle: dict[str, Rule]

    def apply(self, model: "nn.Layer") -> None:
        """Let exactly the planned parameters collect gradients."""
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = name not in self.rules

    def trainable(self, model: "nn.Layer") -> dict[str, "Tensor"]:
        """The trainable parameters of ``model`` by name (any shape, dtype)."""
        return {name: parameter for name, parameter in model.named_parameters() if name in self.rules}

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """The table as text: part, parameters, trainable, learning rate; the last row is the sum."""
        for part in self.parts:
            rate = "frozen" if part.learning_rate is None else f"{part.learning_rate:g}"
            if part.rate_of_b is not None:
                rate += f", B {part.rate_of_b:g}"
            yield part.name, f"{part.total:,}", f"{part.trainable:,}", rate
        total = sum(part.total for part in self.parts)
        trainable = sum(part.trainable for part in self.parts)
        yield "all", f"{total:,}", f"{trainable:,}", f"{100 * trainable / max(total, 1):.2f} % trains"

    def table(self) -> "Table":
        """The rows as a rich table."""
        from rich.table import Table

        table = Table(title=f"What trains ({self.stage})", title_justify="left")
        for head, side in (("part", "left"), ("parameters", "right"), ("trainable", "right"), ("lr", "right")):
            table.add_column(head, justify=side)
        for row in self.rows():
            table.add_row(*row, style="dim" if row[-1] == "frozen" else None)
        return table


def stage_of(settings: TrainingSettings) -> str:
    """``full``, ``lora``, ``projector`` or ``vision tower``.

    Keys that contradict each other are refused by ``settings.run.rules.check_conflicts``.
    """
    model = settings.model
    if model.lora:
        return LORA
    if model.tune_vision_tower:
        return TOWER
    return PROJECTOR if model.tune_mm_mlp_adapter else FULL


def part_of(name: str) -> str:
    """Part of the model (row of the table) that a parameter belongs to."""
    if is_adapter(name):
        return ADAPTERS_PART
    return next(part for part, prefixes in _PARTS if name.startswith(prefixes))


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to the adapter of a LoRA layer; PiSSA's start is one that never trains."""
    return name.rpartition(".")[2].startswith("lora_")


def _is_start(name: str) -> bool:
    return name.rpartition(".")[2].startswith("lora_start_")


def trained(names: Sequence[str], settings: TrainingSettings, vision: VisionConfig | None) -> set[str]:
    """The parameters among ``names`` (all of a model's, with its adapters) that train; ``vision``: its tower.

    By default the stage ``full`` trains everything but the vision tower, ``lora`` the adapters and the projector,
    ``projector`` the projector, ``vision tower`` the tower (and the projector with ``tune_mm_mlp_adapter``). With
    ``tune_entire_model`` the tower trains beside all that; ``tune_vit_from_layer`` keeps what lies below a layer of the
    tower frozen, its embeddings and the norms outside of its layers too. The lists change that as in PaddleMIX: a
    parameter that ``freeze_include`` names and ``freeze_exclude`` does not is frozen, the reverse trains, both or
    neither leave it alone. The token table of a model without a head of its own (tied) answers to the head's name, too.
    Adapters always train, and the modules of ``modules_to_save`` beside them.
    ConfigError when a pattern matches nothing, nothing is left to train, no rate is above 0, or what was chosen of the
    tower changes no feature. Needs no paddle.
    """
    stage = stage_of(settings)
    modules = find_saved(names, settings.model.modules_to_save or ())
    adapted = {name.rpartition(".")[0] for name in names if is_adapter(name)}
    called = _called(names)
    include = _checked("freeze_include", settings.model.freeze_include or (), called)
    exclude = _checked("freeze_exclude", settings.model.freeze_exclude or (), called)
    tower = _tower_of(vision)
    trains = {}
    for name in names:
        # A layer of the projector that was given an adapter trains by that.
        under = name.rpartition(".")[0] in adapted and not is_adapter(name)
        default = name in modules or (not under and _trains_by_default(stage, name, settings, tower))
        listed, saved = _matches(called[name], include), _matches(called[name], exclude)
        trains[name] = default if is_adapter(name) or listed == saved else saved
    _check_modules(trains, modules, settings)
    _check_tower(trains, settings, tower)
    _check_projector(trains, settings)
    chosen = {name for name in names if trains[name]}
    if not chosen:
        raise ConfigError(
            f"nothing would train: the stage is {stage} and freeze_include {list(include)} with "
            f"freeze_exclude {list(exclude)} freezes every parameter"
        )
    if settings.training.do_train and not any(_rate(name, settings) for name in chosen):
        raise ConfigError(
            f'every learning rate of what trains ({stage}) is 0, so no weight would change; give "learning_rate", '
            '"mm_projector_lr" or "vision_tower_lr" a value above 0'
        )
    _check_effect(chosen, vision)
    return chosen


def plan_stage(model: "nn.Layer", settings: TrainingSettings) -> StagePlan:
    """Decide for every parameter of ``model`` (adapters already attached) whether and how it trains.

    See ``trained`` for which and for its errors, and ``StagePlan`` for ``idle``.
    """
    names = [name for name, _ in model.named_parameters()]
    vision = _vision_of(model)
    no_decay, found = _without_decay(model), trained(names, settings, vision)
    chosen = {name: Rule(_rate(name, settings), decay=name not in no_decay) for name in names if name in found}
    idle = {name: rule for name, rule in chosen.items() if not _has_effect(name, vision)}
    rules = {name: rule for name, rule in chosen.items() if name not in idle}
    return StagePlan(stage_of(settings), rules, tuple(_parts(model, rules)), idle)


def _vision_of(model: "nn.Layer") -> VisionConfig | None:
    config = getattr(model, "config", None)
    return None if config is None else config.vision


def _tower_of(vision: VisionConfig | None) -> Tower | None:
    """The description of a vision tower."""
    return None if vision is None else TOWERS.get(vision.model_type)


def _layer_of(name: str, tower: Tower | None) -> int | None:
    """Number of the layer of the vision tower that a parameter lies in."""
    return None if tower is None else tower.layer_of(name.removeprefix(_ENCODER_PREFIX))


def _check_effect(chosen: Iterable[str], vision: VisionConfig | None) -> None:
    """ConfigError when what was chosen of a tower gets no gradient."""
    tower = [name for name in chosen if name.startswith(_TOWER_PREFIX)]
    if tower and not any(_has_effect(name, vision) for name in tower):
        raise ConfigError(
            f"the features come from behind {vision.feature_layer} layers of the vision tower, and what was chosen "
            'of it lies behind them; lower "tune_vit_from_layer", or name other layers in freeze_exclude or '
            "lora_target_modules"
        )


def _has_effect(name: str, vision: VisionConfig | None) -> bool:
    """Whether a parameter changes the features: layers behind the chosen one, and what follows all, do not."""
    tower = _tower_of(vision)
    if tower is None or not name.startswith(_TOWER_PREFIX):
        return True
    layer = _layer_of(name, tower)
    if layer is None:
        return not tower.is_behind_layers(name.removeprefix(_ENCODER_PREFIX))
    return layer < vision.feature_layer


def _trains_by_default(stage: str, name: str, settings: TrainingSettings, tower: Tower | None) -> bool:
    part, model = part_of(name), settings.model
    if part == TOWER_PART:
        above = _from_layer(_layer_of(name, tower), model.tune_vit_from_layer)
        return (model.tune_entire_model or model.tune_vision_tower) and above
    if part == PROJECTOR_PART:
        return model.tune_mm_mlp_adapter if stage == TOWER else not model.freeze_mm_mlp_adapter
    return stage == FULL or (part == ADAPTERS_PART and not _is_start(name))


def _check_modules(trains: dict[str, bool], modules: Collection[str], settings: TrainingSettings) -> None:
    """ConfigError when another key freezes what ``modules_to_save`` names."""
    frozen = next((name for name in modules if not trains[name]), None)
    if frozen is not None:
        raise ConfigError(
            f'"modules_to_save" means {frozen}, which "freeze_include" freezes; take it out of one of them'
        )
    part = next((name for name in modules if part_of(name) == PROJECTOR_PART), None)
    if part is not None and settings.model.freeze_mm_mlp_adapter:
        raise ConfigError(f'"modules_to_save" means {part}, but "freeze_mm_mlp_adapter" is true: choose one')


def _check_tower(trains: dict[str, bool], settings: TrainingSettings, tower: Tower | None) -> None:
    """ConfigError when keys speak of a tower that trains, and no parameter of it does."""
    model, names = settings.model, [name for name in trains if part_of(name) == TOWER_PART]
    if any(trains[name] for name in names):
        return
    layers = {layer for layer in (_layer_of(name, tower) for name in names) if layer is not None}
    if model.tune_vit_from_layer is not None and model.tune_vit_from_layer > max(layers, default=-1):
        raise ConfigError(
            f'"tune_vit_from_layer" is {model.tune_vit_from_layer}, but the vision tower has {len(layers)} layers: '
            f"the highest that can begin is {max(layers, default=0)}"
        )
    if settings.training.vision_tower_lr is not None:
        raise ConfigError(
            f'"vision_tower_lr" is {settings.training.vision_tower_lr:g}, but no parameter of the vision tower trains; '
            'write "tune_entire_model": true, or name its parameters in freeze_exclude'
        )


def _check_projector(trains: dict[str, bool], settings: TrainingSettings) -> None:
    """ConfigError for a rate of a projector that does not train."""
    rate = settings.training.mm_projector_lr
    if rate is not None and not any(trains[name] for name in trains if part_of(name) == PROJECTOR_PART):
        raise ConfigError(
            f'"mm_projector_lr" is {rate:g}, but no parameter of the projector trains; take the key away, or let the '
            'projector train ("freeze_include", "tune_mm_mlp_adapter")'
        )


def _from_layer(layer: int | None, first: int | None) -> bool:
    """Whether ``layer`` of the tower is ``first`` or above; None and -1 take every parameter."""
    if first is None or first < 0:
        return True
    return layer is not None and layer >= first


def _called(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The names that each parameter answers to: the token table of a model without a head of its own is its head."""
    tied = _HEAD not in names
    return {name: (name, _HEAD) if tied and name == _TABLE else (name,) for name in names}


def _matches(called: Sequence[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in called)


def _checked(key: str, patterns: Sequence[str], called: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    for pattern in patterns:
        if not any(_matches(names, [pattern]) for names in called.values()):
            raise ConfigError(
                f'"{key}": the pattern "{pattern}" matches no parameter{_why_none(pattern, list(called))}'
            )
    return tuple(patterns)


def _why_none(pattern: str, names: Sequence[str]) -> str:
    """What a pattern without a match lacks: the part of the model that it names, or the right letters."""
    blind = not any(name.startswith(_TOWER_PREFIX) for name in names)
    if blind and any(word in pattern for word in ("vision_tower", "mm_projector", "image_newline")):
        way = options.current().vision_tower
        return f", because the model is a language model without a vision tower; name the tower with {way}"
    return nearest(pattern, names) or f" (a parameter is called, for example, {names[0]})"


def _rate(name: str, settings: TrainingSettings) -> float:
    training = settings.training
    own = {PROJECTOR_PART: training.mm_projector_lr, TOWER_PART: training.vision_tower_lr}.get(part_of(name))
    rate = training.learning_rate if own is None else own
    # LoRA+ (Hayou, Ghosh, Yu 2024): B starts at zero and learns faster than A.
    return rate * settings.model.lora_plus_scale if name.endswith(".lora_B") else rate


def _without_decay(model: "nn.Layer") -> set[str]:
    """Biases and norm weights. ``image_newline``, embeddings and the output head do decay, as in LLaVA's trainer."""
    skipped = {name for name, _ in model.named_parameters() if "bias" in name}
    config = getattr(model, "config", None)
    if config is not None and DECODERS.get(config.text.model_type).decays_norms:
        return skipped
    for prefix, layer in model.named_sublayers():
        if type(layer).__name__.endswith("Norm"):
            skipped.update(f"{prefix}.{name}" for name, _ in layer.named_parameters())
    return skipped


def _parts(model: "nn.Layer", rules: dict[str, Rule]) -> Iterator[ModelPart]:
    from paddlemix.ops.parallel import whole_shape  # imports paddle

    sizes = {name: math.prod(whole_shape(parameter)) for name, parameter in model.named_parameters()}
    yield from _counted(sizes, {name: rule.learning_rate for name, rule in rules.items()})


def counted_parts(
    sizes: dict[str, int], chosen: Collection[str], settings: TrainingSettings, vision: VisionConfig | None
) -> Iterator[ModelPart]:
    """The table of a model that is not there yet: ``sizes`` of its parameters by name, ``chosen`` of which train."""
    yield from _counted(sizes, {name: _rate(name, settings) for name in chosen if _has_effect(name, vision)})


def _counted(sizes: dict[str, int], rate_of: dict[str, float]) -> Iterator[ModelPart]:
    counts: dict[str, list[int]] = {}
    rates: dict[str, float] = {}
    rate_of_b = None
    for name, size in sizes.items():
        part = part_of(name)
        count = counts.setdefault(part, [0, 0])
        count[0] += size
        if name in rate_of:
            count[1] += size
            rates.setdefault(part, rate_of[name])  # of adapters, that of A
            if part == ADAPTERS_PART and name.endswith(".lora_B"):
                rate_of_b = rate_of[name]
    order = [part for part, _ in _PARTS] + [ADAPTERS_PART]
    for part in sorted(counts, key=order.index):
        own = rate_of_b if part == ADAPTERS_PART and rate_of_b != rates.get(part) else None
        yield ModelPart(part, counts[part][0], counts[part][1], rates.get(part), own)
