# SPDX-License-Identifier: Apache-2.0
"""How the weights of a run are saved and read back: a whole model, an adapter, or the projector alone."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PROJECTOR_FILES
from paddlemix.checkpoint.formats.base import to_float32
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from paddlemix.checkpoint.formats.source import TensorSource, open_file, open_folder
from paddlemix.checkpoint.lora.adapter import save_adapter
from paddlemix.checkpoint.save import ReadValues, dtype_name, plain_values, save_model
from paddlemix.checkpoint.save_files import write_json, write_side_files
from paddlemix.ops.parallel import whole_shape
from paddlemix.settings.model import LlavaConfig
from paddlemix.text.model_template import CHAT_TEMPLATE
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.trainer import divided
from paddlemix.trainer.stages import PROJECTOR_PART, StagePlan, part_of
from paddlemix.utils import files
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.logging import get_logger

if TYPE_CHECKING:
    from paddlemix.models.llava import LlavaForCausalLM

PROJECTOR_FILE = PROJECTOR_FILES[0]
_WEIGHTS = re.compile(r"(model(-\d+-of-\d+)?|lora_model_state)\.safetensors(\.index\.json)?")
"""Names of the weight files that a result may have."""
_PARTIAL = (ADAPTER_CONFIG, *PROJECTOR_FILES)
"""Files that would make an adapter or a projector of the folder if they stayed beside a new result."""


@dataclass(frozen=True)
class Surroundings:
    """What a complete folder holds besides weights."""

    config: LlavaConfig
    tokenizer: Tokenizer
    settings: dict[str, Any]
    base: Path
    vision_tower: Path | None
    chat_template: dict[str, Any] | None = None
    """Content of the chat_template.json that the rows were written with, if they were."""
    brought: frozenset[str] = frozenset()
    """Parameters that the adapter that goes on has trained whole: they are not the base's, frozen or not."""

    @property
    def extra(self) -> dict[str, Any]:
        """Further files by their names, as JSON."""
        return {} if self.chat_template is None else {CHAT_TEMPLATE: self.chat_template}


class ModelWeights:
    """The whole model, vision tower included."""

    def __init__(self, around: Surroundings, plan: StagePlan) -> None:
        self.around = around
        self.names = list(plan.rules)

    def save(self, folder: Path, model: "LlavaForCausalLM", read: ReadValues = plain_values) -> None:
        """A folder in our own form."""
        around = self.around
        save_model(
            folder,
            model,
            around.config,
            around.tokenizer,
            training_settings=around.settings,
            extra=around.extra,
            read=read,
        )

    def load(self, folder: Path, model: "LlavaForCausalLM") -> None:
        """The trained parameters, bit for bit; the frozen ones are in ``model`` already."""
        restore(open_folder(folder), model, self.names)


class AdapterWeights(ModelWeights):
    """The LoRA matrices and whatever else trains or is not in the base."""

    def save(self, folder: Path, model: "LlavaForCausalLM", read: ReadValues = plain_values) -> None:
        """An adapter folder that finds its base by itself."""
        around = self.around
        save_adapter(
            folder,
            model,
            around.config,
            around.tokenizer,
            base=around.base,
            vision_tower=around.vision_tower,
            training_settings=around.settings,
            extra=around.extra,
            keep=around.brought,
            read=read,
        )

    def load(self, folder: Path, model: "LlavaForCausalLM") -> None:
        """The trained parameters and all of the adapters, also what of them does not train, bit for bit."""
        more = [name for name, _ in model.named_parameters() if ".lora_" in name and name not in self.names]
        restore(open_file(folder / ADAPTER_WEIGHTS), model, [*self.names, *more])


class ProjectorWeights(ModelWeights):
    """The projector alone, under the original's names: what ``pretrain_mm_mlp_adapter`` reads.

    The first training stage changes 20 of 13,000 million parameters; a checkpoint of it need not copy the others.
    """

    def save(self, folder: Path, model: "LlavaForCausalLM", read: ReadValues = plain_values) -> None:
        """``mm_projector.safetensors`` and the small files of a model."""
        write_projector(folder, model, read)
        write_side_files(folder, self.around.config, self.around.tokenizer, None, self.around.settings)
        for name, data in self.around.extra.items():
            write_json(folder / name, data)

    def load(self, folder: Path, model: "LlavaForCausalLM") -> None:
        """The projector, bit for bit."""
        restore(open_file(folder / PROJECTOR_FILE), model, self.names, form="llava")


def weights_of(plan: StagePlan, around: Surroundings) -> ModelWeights:
    """The form in which the checkpoints of a stage are kept."""
    if plan.stage == "lora":
        return AdapterWeights(around, plan)
    only_projector = {part_of(name) for name in plan.rules} == {PROJECTOR_PART}
    return ProjectorWeights(around, plan) if only_projector else ModelWeights(around, plan)


@paddle.no_grad()
def restore(source: TensorSource, model: "LlavaForCausalLM", names: Iterable[str], form: str | None = None) -> None:
    """Put stored tensors into the parameters ``names``. CheckpointError when one is missing or of another shape."""
    parameters = dict(model.named_parameters())
    infos = source.infos()
    for name in names:
        target = keymap.theirs(name, form) if form else None
        theirs = target.name if target else name
        if theirs not in infos:
            raise CheckpointError(f'{source.where}: no tensor "{theirs}"; the checkpoint is of another run')
        values = source.read(theirs)
        values = values.T if target and target.transpose else values
        parameter = parameters[name]
        if values.shape != whole_shape(parameter):
            raise CheckpointError(
                f'{source.where}: "{theirs}" has shape {list(values.shape)}, the model needs '
                f"{list(whole_shape(parameter))}"
            )
        wide = np.ascontiguousarray(to_float32(values, infos[theirs].dtype))
        divided.put(parameter, paddle.to_tensor(wide).astype(parameter.dtype))


def write_projector(folder: Path, model: "LlavaForCausalLM", read: ReadValues = plain_values) -> None:
    """``mm_projector.safetensors`` with the names and the layout of LLaVA's ``mm_projector.bin``."""
    tensors = []
    for name, parameter in model.named_parameters():
        if part_of(name) != PROJECTOR_PART:
            continue
        target = keymap.theirs(name, "llava")
        values = to_float32(read(parameter), dtype_name(parameter))
        values = np.ascontiguousarray(values.T if target.transpose else values)
        tensors.append(Stored(target.name, "float32", values.shape, lambda values=values: values))
    write_safetensors(folder / PROJECTOR_FILE, tensors, {"format": "pt"})


def publish_result(
    output: Path, weights: ModelWeights, model: "LlavaForCausalLM", read: ReadValues = plain_values
) -> list[str]:
    """Write a complete folder and move its files into ``output``, beside the checkpoints; returns their names.

    The manifest goes first and comes back last: while it is missing, the files are not one result.
    """
    staging = output / f"{files.TEMPORARY_PREFIX}result-{os.getpid()}"
    with files.explained_when_full(output, staging):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        weights.save(staging, model, read)
        _move_references(staging, output)
        files.write_manifest(staging)
        names = sorted(item.name for item in staging.iterdir())
        _remove_former(output)
        for name in sorted(names, key=lambda name: name == files.MANIFEST):
            os.replace(staging / name, output / name)
    return names


def _remove_former(output: Path) -> None:
    """Remove an earlier result, whose files (shards, an adapter) the new one may not replace one by one."""
    manifest = output / files.MANIFEST
    # A kill between the manifest and the files leaves weights that nothing lists, beside which new ones would lie.
    former = {path.name for path in output.iterdir() if _WEIGHTS.fullmatch(path.name)}
    if manifest.is_file():
        try:
            former |= set(files.read_manifest(output))
        except CheckpointError as error:
            get_logger(__name__).warning(f"{error}; the files of the earlier result are found by their names")
            former |= set(_PARTIAL)
        manifest.unlink()
    for name in sorted(former):
        # A result has no folders; a checkpoint has, and what a damaged manifest says is no reason to empty one.
        if (output / name).parent == output and (output / name).is_file():
            (output / name).unlink()


def _move_references(staging: Path, output: Path) -> None:
    """An adapter names its base relative to its own folder: make that hold one level higher."""
    path = staging / ADAPTER_CONFIG
    if not path.is_file():
        return
    data = json.loads(path.read_text(encoding="utf-8"))
    for key in ("base_relative_path", "vision_tower_relative_path"):
        if data.get(key):
            data[key] = os.path.relpath(os.path.normpath(staging.absolute() / data[key]), output.absolute())
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
