# SPDX-License-Identifier: Apache-2.0
"""Golden family d, end to end: the pretraining, fine-tuning and LoRA runs of the original, through our own trainer."""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.checkpoint import keymap
from paddlemix.settings.run.loader import load_settings
from paddlemix.settings.run.training import TrainingSettings
from tools.golden.case import Case, guarded

ROUNDED_LOSS = 1e-3
"""Relative; the original logged losses with four digits behind the point."""
LOSS = 2e-4
"""Relative; the mean loss of a run was written in full."""
RATE = 1e-9
"""Relative; both compute the rate in double precision."""
MOVED = 1e-3
"""Difference of a final tensor, relative to how far the largest of its values has moved in the run.

Adam divides by the root of the second moment, so a gradient that is nearly zero gives a step of full size whose sign
rounding decides. Whole tensors agree far better than single values can."""

_OURS_ALREADY = {"--lazy_preprocess", "--use_cpu", "--report_to", "--output_dir"}
_PATHS = {"--data_path": "", "--image_folder": "", "--model_name_or_path": "hub", "--vision_tower": "hub",
          "--pretrain_mm_mlp_adapter": "hub"}  # fmt: skip


def run(folder: Path) -> Iterator[Case]:
    """Every ``e2e_*.json`` of d_train: losses, learning rates, mean loss and final tensors."""
    for file in sorted((folder / "d_train").glob("e2e_*.json")):
        with tempfile.TemporaryDirectory() as output:
            yield from guarded(f"d_train/{file.stem}", _compare, folder, file, Path(output))


def _compare(folder: Path, file: Path, output: Path) -> Iterator[Case]:
    facts = json.loads(file.read_text(encoding="utf-8"))
    name = f"d_train/{file.stem}"
    arrays = dict(np.load(file.with_suffix(".npz")))
    settings = settings_of(folder, facts["args"], output)
    if facts["stage"] == "pretrain" and settings.model.pretrain_mm_mlp_adapter is None:
        # The original's run began with this projector too, through a file of its own (MANIFEST, d_train).
        settings = settings.with_changes(pretrain_mm_mlp_adapter=str(_projector(folder)))
    history, start, final, last_rate = train(settings, facts["sample_order"], arrays)
    steps = [entry for entry in facts["log_history"] if "loss" in entry]
    ours = [entry for entry in history if "loss" in entry]
    if len(steps) != len(ours):
        yield Case(f"{name}/steps", abs(len(steps) - len(ours)), 0, "fail", f"{len(ours)} steps, not {len(steps)}")
        return
    # The original logs the rate that the next step will use, we log the one that the step has used.
    rates = [*(entry["learning_rate"] for entry in ours[1:]), last_rate]
    for entry, own, rate in zip(steps, ours, rates, strict=True):
        yield _case(f"{name}/step{entry['step']}/loss", own["loss"], entry["loss"], ROUNDED_LOSS)
        yield _case(f"{name}/step{entry['step']}/learning_rate", rate, entry["learning_rate"], RATE)
    mean = next(entry["train_loss"] for entry in facts["log_history"] if "train_loss" in entry)
    yield _case(f"{name}/train_loss", history[-1]["train_loss"], mean, LOSS)
    for key in sorted(arrays):
        if not key.startswith("init/"):
            yield _tensor(f"{name}/{key}", key, arrays[key], start, final)


def settings_of(folder: Path, args: list[str], output: Path) -> TrainingSettings:
    """Our settings for the arguments of the original's train.py."""
    argv = ["--do_train", "true", "--device", "cpu", "--output_dir", str(output / "out")]
    for key, value in zip(args[::2], args[1::2], strict=True):
        if key in _OURS_ALREADY:
            continue
        if key in _PATHS:
            value = str(folder / _PATHS[key] / value)
        argv += [key, value.lower() if value in ("True", "False") else value]
    return load_settings(argv)


def train(
    settings: TrainingSettings, sample_order: list[int], arrays: dict[str, np.ndarray]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """A run with the given rows and adapter start: log, first and last value of every parameter, the rate after it."""
    from paddlemix.trainer.run import TrainingRun, library_output

    output = Path(settings.training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()), library_output(output):
        own = TrainingRun(settings, output, None)
        own.set_up()
        rows = len(own.trainer.train_dataset)
        own.trainer.batches.order = lambda epoch: sample_order[epoch * rows : (epoch + 1) * rows]
        _start_adapters(own.model, arrays)
        start = _values(own.model)
        own.carry_out()
    return own.trainer.state.log_history, start, _values(own.model), float(own.trainer.optimizer.get_lr())


@paddle.no_grad()
def _start_adapters(model: Any, arrays: dict[str, np.ndarray]) -> None:
    parameters = dict(model.named_parameters())
    for key, values in arrays.items():
        if key.startswith("init/") and ".lora_A." in key:
            layer = key.removeprefix("init/base_model.model.").split(".lora_A.")[0]
            ours = keymap.ours(f"{layer}.weight", "llava").name.removesuffix(".weight")
            parameters[f"{ours}.lora_A"].set_value(np.ascontiguousarray(values.T))


def _values(model: Any) -> dict[str, np.ndarray]:
    return {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}


def _projector(folder: Path) -> Path:
    for file in sorted((folder / "d_train").glob("e2e_*.json")):
        args = json.loads(file.read_text(encoding="utf-8"))["args"]
        if "--pretrain_mm_mlp_adapter" in args:
            return folder / "hub" / args[args.index("--pretrain_mm_mlp_adapter") + 1]
    return next((folder / "hub").glob("*/*/mm_projector.bin"))


def _case(name: str, own: float, expected: float, tolerance: float) -> Case:
    difference = abs(own - expected) / abs(expected) if expected else abs(own)
    return Case(name, difference, tolerance, "ok" if difference <= tolerance else "fail")


def _tensor(
    name: str, key: str, expected: np.ndarray, start: dict[str, np.ndarray], final: dict[str, np.ndarray]
) -> Case:
    plain = key.rpartition("/")[2].removeprefix("base_model.model.")
    target = keymap.ours(plain, "llava")
    if not isinstance(target, keymap.Target):
        return Case(name, float("inf"), 0, "fail", f"{plain} is no parameter of ours")
    values, before = final[target.name], start[target.name]
    expected = expected.T if target.transpose else expected
    moved = float(np.abs(expected - before).max())
    difference = float(np.abs(values - expected).max())
    if moved == 0:
        return Case(name, difference, 0, "ok" if difference == 0 else "fail", "frozen")
    return Case(name, difference / moved, MOVED, "ok" if difference <= MOVED * moved else "fail")
