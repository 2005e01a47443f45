# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: complete or absent, found again after any kill, read without executing anything.

``checkpoint-N`` is a complete model (or adapter) folder that the chat opens, plus ``optimizer*.safetensors``,
``training_state.json``, ``trainer_state.json`` (the log) and ``manifest.json``. It gets its name in one rename after
everything is on the disk; older ones go only after that. Order is by step number, never by file time.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_origin

from paddlemix.checkpoint.folders import ADAPTER_CONFIG
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from paddlemix.checkpoint.formats.source import WEIGHT_FILES, open_file
from paddlemix.datasets.preprocess import Rows
from paddlemix.datasets.resumed import RowsBefore, rows_of
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer.asking import goes_on_predicting
from paddlemix.trainer.folder_lock import LOCK_FILE
from paddlemix.utils import files, foreign
from paddlemix.utils.errors import CheckpointError, ConfigError
from paddlemix.utils.logging import get_logger
from paddlemix.utils.shown import shown

if TYPE_CHECKING:
    from paddle import Tensor
    from paddle.distributed.fleet.meta_optimizers import HybridParallelOptimizer
    from paddle.optimizer import AdamW, Optimizer

    from paddlemix.trainer.library import TrainingArguments

    AnyOptimizer: TypeAlias = Optimizer | HybridParallelOptimizer

STATE_FILE = "training_state.json"
LOG_FILE = "trainer_state.json"
ROWS_FILE = "training_rows.safetensors"
_FORMAT = 1
_OF_ANY_RUN = frozenset((
    LOCK_FILE, LOG_FILE, "train.log", "runs", "training_settings.json", "train_results.json", "bad_samples.jsonl",
    "bad_samples_eval.jsonl", "train_log.jsonl", "loss.png", "eval_answers",
))  # fmt: skip
"""Files of every attempt, also of one that ended before its first checkpoint, or before its result was written."""
_NEEDED = (STATE_FILE, LOG_FILE)
"""Files that every checkpoint has, whatever it trains."""
_NAME = re.compile(r"checkpoint-(\d+)")
_RANK_LOG = re.compile(r"train\.rank\d+\.log")


@dataclass
class RunState:
    """What a run needs besides weights, optimizer moments and the log. Everything here is plain JSON.

    Batches, dropout and rates are functions of the seed and of ``global_step``, so no generator state is kept.
    ``data`` is a fingerprint of the training rows.
    ``frozen`` are a few values of what does not train (``frozen.frozen_sample``).
    ``grouped_for``: for how many processes the order of grouped rows was made; 0: for ``world_size``.
    ``packing``: the rule by which rows are packed (``packing.RULE``); 0: an older one.
    ``scaler`` is the state of the loss scale of fp16, ``skipped_updates`` how often it has skipped one.
    ``open_losses`` are the float32 sums of the losses since the last log line, one for each process: sums of their mean
    would be rounded otherwise. ``open_loss`` is that mean, ``logged_loss`` the sum up to the last line.
    ``measured`` are the sums of other measures since then (``preference.PreferenceTrainer``), for each process.
    """

    global_step: int
    schedule_step: int
    world_size: int
    data: str
    open_loss: float = 0.0
    open_losses: list[float] = field(default_factory=list)
    logged_loss: float = 0.0
    last_logged_step: int = 0
    tokens: int = 0
    grouped_for: int = 0
    packing: int = 0
    skipped_updates: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    frozen: dict[str, list[float]] = field(default_factory=dict)
    measured: list[list[list[float]]] = field(default_factory=list)

    def open_loss_of(self, args: "TrainingArguments") -> float:
        """The sum with which a process goes on; where others have saved, their mean."""
        own = self.open_losses if self.world_size == args.world_size else []
        return own[args.process_index] if own else self.open_loss


def checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint under ``output_dir``, the newest step last."""
    root = Path(output_dir)
    if not root.is_dir():
        return []
    named = [(_NAME.fullmatch(item.name), item) for item in root.iterdir() if item.is_dir()]
    return sorted((int(match.group(1)), item) for match, item in named if match)


def newest_valid(output_dir: str | Path) -> Path | None:
    """The newest checkpoint whose every file agrees with its manifest. A damaged one is passed over with a warning."""
    for _, folder in reversed(checkpoints(output_dir)):
        problems = files.verify_folder(folder, needed=_NEEDED)
        if not problems:
            return folder
        get_logger(__name__).warning(f"{folder} is damaged and is not used ({problems[0]}); looking for an older one")
    return None


def find_resume(settings: TrainingSettings) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start. Reads only; called before any heavy work.

    Same command, same folder: the newest valid checkpoint is taken. ConfigError when ``output_dir`` holds something
    else and may not be overwritten; CheckpointError when a named checkpoint is damaged.
    """
    training = settings.training
    named = training.resume_from_checkpoint
    if named and named.lower() not in ("true", "auto"):
        folder = Path(named).expanduser()
        problems = files.verify_folder(folder, needed=_NEEDED)
        if problems:
            raise CheckpointError(f'"resume_from_checkpoint": {problems[0]}; choose another checkpoint')
        return folder
    if training.overwrite_output_dir and not named:
        return None
    output = Path(training.output_dir).expanduser()
    found = newest_valid(output)
    if found is None and named:
        raise ConfigError(f'"resume_from_checkpoint" is "{named}", but {output} holds no valid checkpoint-N folder')
    if found is None and checkpoints(output):
        raise CheckpointError(
            f"{output}: every checkpoint there is damaged; remove them, or start anew with --overwrite_output_dir true"
        )
    if found is None and _holds_something(output) and not goes_on_predicting(settings, output):
        raise ConfigError(
            f'"output_dir": {output} {_what_it_holds(output)}; choose another folder, or start anew with '
            "--overwrite_output_dir true"
        )
    return found


def _what_it_holds(output: Path) -> str:
    if any((output / name).is_file() for name in (ADAPTER_CONFIG, *WEIGHT_FILES)):
        return (
            "holds the result of a finished run and no checkpoint; to train that result on give it as "
            '"model_name_or_path" (an adapter too) beside another "output_dir"'
        )
    return "is not empty and holds no checkpoint to go on from"


def _holds_something(output: Path) -> bool:
    return output.is_dir() and any(
        item.name not in _OF_ANY_RUN
        and not item.name.startswith(files.TEMPORARY_PREFIX)
        and _RANK_LOG.fullmatch(item.name) is None
        for item in output.iterdir()
    )


def clear_output(output_dir: str | Path) -> None:
    """Remove the checkpoints of an earlier run, so that a later resume cannot take up one of them."""
    for _, folder in checkpoints(output_dir):
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint. It loses its name first, so a kill in between leaves no half checkpoint behind."""
    aside = folder.with_name(f"{files.TEMPORARY_PREFIX}gone-{folder.name}-{os.getpid()}")
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def rotate(output_dir: str | Path, limit: int | None, keep: str | Path | None = None) -> list[Path]:
    """Remove the oldest checkpoints beyond ``limit``, never the newest and never ``keep`` (the best one)."""
    found = [folder for _, folder in checkpoints(output_dir)]
    if limit is None or len(found) <= limit:
        return []
    kept = Path(keep).resolve() if keep else None
    spared = [folder for folder in found[:-1] if folder.resolve() != kept]
    gone = spared[: len(found) - limit]
    for folder in gone:
        remove(folder)
    return gone


def write_state(folder: Path, state: RunState) -> None:
    """``training_state.json``. Floats are written so that they read back bit for bit."""
    text = json.dumps({"format": _FORMAT, **asdict(state)}, indent=1, sort_keys=True)
    (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def read_state(folder: Path) -> RunState:
    """Inverse of ``write_state``; CheckpointError names the file and what is wrong with it."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the folder is a model and not a checkpoint of a run")
    data = foreign.read_json(path, CheckpointError)
    if data.pop("format", None) != _FORMAT:
        raise CheckpointError(f"{path}: written by another version of paddlemix; train on with that version")
    with foreign.reading(f"{path}: its content is", CheckpointError, "take an older checkpoint"):
        state = RunState(**data)
        for item in fields(RunState):
            value, kind = getattr(state, item.name), get_origin(item.type) or item.type
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise TypeError(f'"{item.name}" is {shown(json.dumps(value))}')
        return state


def write_rows(folder: Path, dataset: Rows) -> None:
    """``training_rows.safetensors``: by what rows a continued run knows those of this one again."""
    rows = rows_of(dataset)
    if rows is not None:
        kept = {"digests": rows.digests, "lengths": rows.lengths, "sizes": rows.sizes}
        tensors = [
            Stored(name, "int64", values.shape, lambda values=values: values)
            for name, values in kept.items()
            if values is not None
        ]
        write_safetensors(folder / ROWS_FILE, tensors)


def read_rows(folder: Path, fingerprint: str) -> RowsBefore | None:
    """Inverse of ``write_rows``; None in a checkpoint of an earlier version. CheckpointError for a broken file."""
    path = folder / ROWS_FILE
    if not path.is_file():
        return None
    stored = open_file(path)
    tensors = {name: stored.read(name) for name in stored.infos()}
    digests, lengths = tensors.get("digests"), tensors.get("lengths")
    if digests is None or digests.ndim != 1 or (lengths is not None and lengths.shape != digests.shape):
        raise CheckpointError(f"{path}: its content is not what a run writes; take an older checkpoint")
    sizes = tensors.get("sizes")
    if sizes is not None and (sizes.ndim != 1 or (sizes < 0).any() or sizes.sum() != len(digests)):
        raise CheckpointError(f"{path}: its content is not what a run writes; take an older checkpoint")
    return RowsBefore(digests, lengths, fingerprint, sizes)


def plain_optimizer(optimizer: "AnyOptimizer") -> "AdamW":
    """The AdamW inside the wrappers of the distributed strategies."""
    while True:
        inner = getattr(optimizer, "_inner_opt", None) or getattr(optimizer, "_optim", None)
        if inner is None or inner is optimizer:  # stage3 hangs an optimizer at itself
            return optimizer
        optimizer = inner


def save_optimizer(path: Path, optimizer: "AnyOptimizer", parameters: dict[str, "Tensor"]) -> None:
    """Moments (and float32 master weights) by structured parameter names: ``moment1/llama.norm.weight``.

    Paddle keys them by ``linear_7.w_0_moment1_0``, which depends on what else the process has built before. Their
    shapes are those of the parameters; in a sharded state those of its parts.
    """
    held = _held(plain_optimizer(optimizer), parameters)
    # Not by the library of the format: on a full disk it raises an error of its own, without errno.
    write_safetensors(path, [_stored(name, tensor) for name, tensor in held.items()])


def _stored(name: str, tensor: "Tensor") -> Stored:
    return Stored(name, str(tensor.dtype).rpartition(".")[2], tuple(tensor.shape), tensor.numpy)


def _held(inner: "AdamW", parameters: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The state tensors that this process holds, by their names in the file."""
    from paddlemix.trainer import divided

    held = {}
    for name, parameter in parameters.items():
        key = divided.state_key(parameter)
        master = inner._master_weights.get(key)
        if master is not None:
            held[f"master/{name}"] = master
        for kind, table in inner._accumulators.items():
            # The moments of a half-precision parameter belong to its float32 weight, and have that one's name.
            found = table.get(key) if master is None else table.get(master.name, table.get(key))
            if found is not None:
                held[f"{kind}/{name}"] = found
    return held


def optimizer_files(folder: Path, own: str) -> list[Path]:
    """The files of the state that a process reads: ``own``, or all where another number of processes wrote them.

    CheckpointError: there is none.
    """
    found = [folder / own] if (folder / own).is_file() else sorted(folder.glob("optimizer*.safetensors"))
    if not found:
        raise CheckpointError(f"{folder / own}: missing; take an older checkpoint")
    return found


def load_optimizer(paths: list[Path], optimizer: "AnyOptimizer", parameters: dict[str, "Tensor"]) -> None:
    """Inverse of ``save_optimizer`` into a fresh optimizer. CheckpointError when a tensor is missing, left over or
    of another shape. Of several files a process takes the tensors that it needs; the rest is for other processes."""
    import paddle

    path = paths[0]
    inner = plain_optimizer(optimizer)
    stored = {name: file for file in map(open_file, paths) for name in file.infos()}
    names = set(stored)
    inner._create_accumulators(paddle.static.default_main_program().global_block(), _owned(optimizer, parameters))
    targets = _held(inner, parameters)
    if len(_owned(optimizer, parameters)) < len(parameters):
        names = {name for name in names if name in targets or name.partition("/")[2] not in parameters}
    wrong = sorted(names.symmetric_difference(targets))
    if wrong:
        side = "is not expected" if wrong[0] in names else "is missing"
        raise CheckpointError(f"{path}: {len(wrong)} tensors do not fit the run; {wrong[0]} {side}")
    for name, target in targets.items():
        array = stored[name].read(name)
        if list(array.shape) != list(target.shape):
            raise CheckpointError(f"{path}: {name} has shape {array.shape}, the run needs {tuple(target.shape)}")
        target.set_value(array)


def _owned(optimizer: "AnyOptimizer", parameters: dict[str, "Tensor"]) -> list["Tensor"]:
    """The parameters whose state lives in this process (all of them unless the state is sharded)."""
    from paddlemix.trainer import divided

    ranks = getattr(optimizer, "param2rank", None)  # stage2 keeps all parameters in its list and goes by this table
    if ranks is not None:
        mine = {name for name, rank in ranks.items() if rank == optimizer._rank}
    else:
        mine = {parameter.name for parameter in plain_optimizer(optimizer)._parameter_list}
    return [divided.state_form(parameter) for parameter in parameters.values() if parameter.name in mine]
