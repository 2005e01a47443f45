# SPDX-License-Identifier: Apache-2.0
"""What a run reads before paddle is imported and before a weight is: model folder, tokenizer, template, rows.

What a person can have got wrong is found here, within seconds.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlemix.checkpoint.keymap import NEWLINE
from paddlemix.checkpoint.sources import INIT, Sources, find_sources, require_floats, template_folder, tokenizer_folder
from paddlemix.datasets.build import Datasets, build_datasets, make_encoder
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.run import without_effect
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text.messages import ChatFormat
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.text.vocabulary import fit_rows
from paddlemix.trainer import conversation
from paddlemix.trainer.adapter_keys import require_same_method
from paddlemix.trainer.arguments import place_in_run, readers_together
from paddlemix.trainer.asking import Asks, asks_of
from paddlemix.trainer.checkpointing import read_rows as rows_before
from paddlemix.trainer.checkpointing import read_state
from paddlemix.trainer.inputs import read_rows
from paddlemix.trainer.lora_targets import ALL_LINEAR, check_rank, find_targets, lora_parameters
from paddlemix.trainer.resuming import require_same_run
from paddlemix.trainer.stages import trained
from paddlemix.utils import env
from paddlemix.utils.constants import IMAGE_END_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN

_NEW_LAYERS = tuple(f"llama.mm_projector.{number}" for number in range(8))
"""Linear layers that a projector may have of which there is no file yet."""


@dataclass
class Prepared:
    """The parts of a run that need no paddle."""

    config: LlavaConfig
    """That of the model, the run's overrides and the template of its rows applied."""
    tokenizer: Tokenizer
    rows: int
    """Rows that the token tables of the result have: the model may have to grow."""
    data: Datasets
    chat_template: dict[str, Any] | None
    """Content of the chat_template.json that the rows were written with, if they were."""
    notes: list[str] = field(default_factory=list)
    asks: Asks | None = None
    """What the model is asked at each evaluation, and at the end."""


def model_arguments(settings: TrainingSettings) -> tuple[str, dict[str, Any]]:
    """The folder that a run begins with, and how ``find_sources`` and ``load_model`` are asked for it."""
    model = settings.model
    return model.lora_path or model.model_name_or_path, {
        "base": model.model_name_or_path if model.lora_path else model.base,
        "vision_tower": model.vision_tower,
        "projector": model.pretrain_mm_mlp_adapter or (INIT if model.vision_tower else None),
        "overrides": _overrides(settings),
    }


@dataclass(frozen=True)
class Opened:
    """The model that a run begins with, as far as rows need it: no weight is read."""

    config: LlavaConfig
    tokenizer: Tokenizer
    token_rows: int
    """Rows that the token tables need."""
    template_folder: Path
    sources: Sources

    def parameters(self, settings: TrainingSettings) -> list[str]:
        """Names of the parameters that the model will have, adapters among them."""
        return _parameters(self.sources, settings)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that files fill, as our layout has them, by our names."""
        entries = self.sources.plan.entries.items()
        stored = {name: (entry.source.infos()[entry.name].shape, entry.transpose) for name, entry in entries}
        return {name: tuple(reversed(shape)) if turned else tuple(shape) for name, (shape, turned) in stored.items()}

    def trained(self, settings: TrainingSettings) -> set[str]:
        """Names of what trains, new adapters among them. ConfigError: ``stages.trained``."""
        return trained(_parameters(self.sources, settings), settings, self.config.vision)

    def template(self, settings: TrainingSettings) -> ChatFormat:
        """What rows without a template of their own are written with. ConfigError: ``training_template``."""
        return conversation.training_template(settings, self.template_folder, self.config.template)


def open_start(settings: TrainingSettings) -> Opened:
    """Find the model and load its tokenizer; what shall train is checked by name. CheckpointError, ConfigError."""
    name, folders = model_arguments(settings)
    sources = find_sources(name, **folders)
    require_floats(sources)
    tokenizer = load_tokenizer(settings.model.text_model_name_or_path or tokenizer_folder(sources.parts))
    rows = _add_marks(tokenizer, sources.config)
    fit_rows(tokenizer, rows)
    opened = Opened(sources.config, tokenizer, rows, template_folder(sources.parts), sources)
    opened.trained(settings)
    return opened


def prepare(settings: TrainingSettings, resume: Path | None = None, opened: Opened | None = None) -> Prepared:
    """Find the model, load its tokenizer, read and check the rows, and whether the run may go on from ``resume``.

    CheckpointError, ConfigError, DataError.
    """
    opened = opened or open_start(settings)
    config, tokenizer, rows = opened.config, opened.tokenizer, opened.token_rows
    told = (settings, opened.template_folder, config.template)
    rank, world = place_in_run(settings)
    state = read_state(resume) if resume is not None and settings.training.do_train else None
    template = opened.template(settings)
    encoder = make_encoder(settings, config, tokenizer, template)
    data = build_datasets(
        settings,
        config,
        tokenizer,
        rows=read_rows(settings, encoder.check),
        before=state and rows_before(resume, state.data),
        template=template,
        rank=rank,
        world=world,
        grouped_for=0 if state is None else state.grouped_for or state.world_size // readers_together(settings),
    )
    layouts = data.train.layouts if data.train is not None else []
    template, chat_template = conversation.asked_with(layouts, *told)
    notes = [*without_effect.notes_with(config, settings), *data.notes, *conversation.notes(layouts, *told)]
    if state is not None:
        notes += require_same_run(state, settings, env.processes(), data.train, resume)
    config = config.with_changes(template=template)
    return Prepared(config, tokenizer, rows, data, chat_template, notes, asks_of(settings))


def _add_marks(tokenizer: Tokenizer, config: LlavaConfig) -> int:
    """Give the tokenizer the image marks that the configuration asks for; rows that the token tables then need."""
    marks = [IMAGE_PATCH_TOKEN] * config.use_im_patch_token
    marks += [IMAGE_START_TOKEN, IMAGE_END_TOKEN] * config.use_im_start_end
    new = tokenizer.add_special(marks) if marks else 0
    return max(config.text.vocab_size, tokenizer.vocab_size if new else 0)


def _parameters(sources: Sources, settings: TrainingSettings) -> list[str]:
    """Names of the parameters that the run's model will have, new adapters among them; ConfigError: ``find_targets``.

    Names that a new projector may have stand in for those of one that is drawn anew.
    """
    model, entries = settings.model, sources.plan.entries
    names = dict.fromkeys(entries)
    if sources.parts.init:
        new = ("llama.mm_projector", *_NEW_LAYERS)
        names |= dict.fromkeys(f"{layer}.{kind}" for layer in new for kind in ("weight", "bias"))
    if sources.parts.new_newline or sources.config.has_image_newline:
        names[NEWLINE] = None
    adapter = sources.parts.adapter
    if adapter is not None:
        require_same_method(adapter, settings, _matrices(sources))
        pairs = adapter.pairs.items()
        return [
            *names,
            *(f"{weight.removesuffix('.weight')}.{part}" for weight, pair in pairs for part in pair.parameters()),
        ]
    if not model.lora:
        return list(names)
    layers, _ = find_targets([*_matrices(sources), *_NEW_LAYERS], model.lora_target_modules or (ALL_LINEAR,))
    for layer in layers:
        entry = entries.get(f"{layer}.weight")
        if entry is not None:
            check_rank(layer, entry.source.infos()[entry.name].shape, settings)
    return [*names, *(f"{layer}.{part}" for layer in layers for part in lora_parameters(settings))]


def _matrices(sources: Sources) -> list[str]:
    """Layers whose weights are matrices."""
    return [
        name.removesuffix(".weight")
        for name, entry in sources.plan.entries.items()
        if name.endswith(".weight") and len(entry.source.infos()[entry.name].shape) == 2
    ]


def _overrides(settings: TrainingSettings) -> dict[str, Any]:
    model, data = settings.model, settings.data
    names = ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature", "mm_patch_merge_type",
             "mm_dense_connector_type", "mm_image_size", "mm_use_im_start_end", "mm_use_im_patch_token")  # fmt: skip
    found = {name: getattr(model, name) for name in names}
    found.update(image_aspect_ratio=data.image_aspect_ratio, image_grid_pinpoints=data.image_grid_pinpoints)
    return {name: value for name, value in found.items() if value is not None}
