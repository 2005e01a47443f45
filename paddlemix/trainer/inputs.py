# SPDX-License-Identifier: Apache-2.0
"""What a run reads, found and looked at before paddle is imported and before anything is written."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from paddlemix.datasets.lazy import Check
from paddlemix.datasets.pictures import Progress
from paddlemix.datasets.reading import RowsRead, used_entries
from paddlemix.datasets.reading import read_rows as _read_rows
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer.conversation import check_conversation
from paddlemix.trainer.output import is_main
from paddlemix.utils import env
from paddlemix.utils.errors import DataError
from paddlemix.utils.logging import console
from paddlemix.utils.paths import begins_at


def with_adapter(settings: TrainingSettings) -> TrainingSettings:
    """The settings of a run whose ``model_name_or_path`` is a LoRA adapter: it goes on with it, on the adapter's base.

    ``lora`` has to be set: without it the adapter is folded into the model, which then trains as a whole. Other
    settings come back as they are.
    """
    from paddlemix.checkpoint.folders import find, is_adapter
    from paddlemix.checkpoint.lora.read import read_adapter

    model = settings.model
    folder = find(model.model_name_or_path or "", weights=True)
    if not model.lora or model.lora_path or folder is None or not is_adapter(folder):
        return settings
    adapter = read_adapter(folder)
    base = adapter.find_base(model.base)
    ranks = sorted({pair.r for pair in adapter.pairs.values()})
    note = (
        f"the adapter {folder} goes on, on its base {base}; its rank {', '.join(map(str, ranks))}, alpha, dropout and "
        "layers stay as they are"
    )
    changed = settings.with_changes(model_name_or_path=str(base), lora_path=str(folder), base=None)
    return dataclasses.replace(changed, notes=(*settings.notes, note))


def find_inputs(settings: TrainingSettings, *, first_stage: bool) -> None:
    """Raise for a model folder, a data file or a template that is not there."""
    from paddlemix.checkpoint.folders import resolve

    model = settings.model
    folder = resolve(model.model_name_or_path, "the model")
    if model.base is not None:
        resolve(model.base, "the base model")
    start = folder if model.lora_path is None else resolve(model.lora_path, "the adapter")
    check_conversation(settings, start, first_stage=first_stage)
    if model.vision_tower is not None:
        resolve(model.vision_tower, "the vision tower", near=folder)
    for part, entries in used_entries(settings).items():
        for entry in entries:
            missing = next((path for path in entry.data_files if not Path(path).exists()), None)
            if missing is not None:
                raise DataError(f"{missing}: no such data file (dataset, {part}){begins_at(missing)}")


def read_rows(settings: TrainingSettings, check: Check | None = None) -> RowsRead:
    """The rows of the run, asked by ``check`` whether they can be used; with a bar where there is a terminal."""
    with progress_bar(settings, "rows looked at") if is_main() else contextlib.nullcontext() as progress:
        return _read_rows(settings, check=check, rank=env.rank(), world=env.processes(), progress=progress)


@contextlib.contextmanager
def progress_bar(settings: TrainingSettings, what: str) -> Iterator[Progress | None]:
    """A bar with the time that is left, where there is a terminal or ``disable_tqdm`` is false; else None."""
    hidden = settings.training.disable_tqdm
    shown = console().is_terminal if hidden is None else not hidden
    if not shown:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(f"{what}  ETA"), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
