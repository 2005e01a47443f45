# SPDX-License-Identifier: Apache-2.0
"""Golden family d, step by step: losses, gradients and parameters of a few AdamW steps on one batch."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.load import load_model
from tools.golden.adapter import load_case
from tools.golden.case import Case, guarded, near, relative
from tools.golden.models import batch_of

LOSS = 2e-4
GRAD_NORM = 1e-3
PARAM_NORM = 1e-5
GRAD = 1e-3
"""Difference of a gradient's values, relative to the largest of them."""
RATE = 1e-3
"""The rate of the plain steps (MANIFEST, d_train)."""
BATCHES = ("mixed_right", "unpad_mixed")
"""The batch of a model is the first of these that the folder has."""


def run(folder: Path) -> Iterator[Case]:
    """Every ``<model>_<mode>_<optimizer>.json`` of d_train; the end-to-end runs are another family."""
    for file in sorted((folder / "d_train").glob("v*_*.json")):
        yield from guarded(f"d_train/{file.stem}", _file, folder, file)


def _file(folder: Path, file: Path) -> Iterator[Case]:
    facts = json.loads(file.read_text(encoding="utf-8"))
    prefix = file.stem.split("_")[0]
    batch = next((f"{prefix}_{name}" for name in BATCHES if _has(folder, f"{prefix}_{name}")), None)
    if batch is None:
        raise FileNotFoundError(f"{folder}: no batch {prefix}_{{{','.join(BATCHES)}}} in c_multimodal")
    loaded = load_model(folder / "hub" / facts["model"], dtype="float32")
    arguments = batch_of(load_case(folder, batch, loaded.config))
    return _steps(f"d_train/{file.stem}", loaded.model, arguments, facts, dict(np.load(file.with_suffix(".npz"))))


def _has(folder: Path, name: str) -> bool:
    return (folder / "c_multimodal" / f"{name}.npz").is_file()


def _steps(
    label: str, model: Any, batch: Mapping[str, Tensor], facts: dict[str, Any], arrays: dict[str, np.ndarray]
) -> Iterator[Case]:
    everything = dict(model.named_parameters())
    trained = {name: everything[_ours(name)] for name in facts["grad_norm_per_param"]}
    chosen = {id(parameter) for parameter in trained.values()}
    for parameter in everything.values():
        parameter.stop_gradient = id(parameter) not in chosen
    model.train()
    optimizer = _optimizer(trained, facts["param_groups"])
    last = len(facts["losses"]) - 1
    for step, wanted in enumerate(facts["losses"]):
        loss = model(**batch)
        yield relative(f"{label}/loss{step}", float(loss), wanted, LOSS)
        if step == last:
            break
        loss.backward()
        if step == 0:
            yield _gradient_norms(label, trained, facts["grad_norm_per_param"])
        if facts["clip"]:
            norm = _clip(trained, facts["clip"])
            yield relative(f"{label}/total_norm{step}", norm, facts["clip_total_norm"][step], GRAD_NORM)
        if step == 0:
            yield from _first_gradients(label, trained, facts, arrays)
        optimizer.step()
        optimizer.clear_grad()
    worst = max(
        (abs(_norm(trained[name]) - norm) / norm, _norm(trained[name]), norm)
        for name, norm in facts["param_norm_after"].items()
    )
    yield relative(f"{label}/param_norms", *worst[1:], PARAM_NORM)


def _optimizer(trained: dict[str, Tensor], groups: list[dict[str, Any]] | None) -> paddle.optimizer.Optimizer:
    groups = groups or [{"names": list(trained), "lr": RATE, "weight_decay": 0.0}]
    parameters = [
        {
            "params": [trained[name] for name in group["names"]],
            "learning_rate": group["lr"] / RATE,
            "weight_decay": group["weight_decay"],
        }
        for group in groups
        if group["names"]
    ]
    return paddle.optimizer.AdamW(RATE, parameters=parameters, beta1=0.9, beta2=0.999, epsilon=1e-8)


def _gradient_norms(label: str, trained: dict[str, Tensor], expected: dict[str, float]) -> Case:
    pairs = [(_norm(trained[name].grad), norm) for name, norm in expected.items()]
    worst = max(pairs, key=lambda pair: abs(pair[0] - pair[1]) / max(abs(pair[1]), 1e-12))
    return relative(f"{label}/grad_norms", *worst, GRAD_NORM)


def _first_gradients(
    label: str, trained: dict[str, Tensor], facts: dict[str, Any], arrays: dict[str, np.ndarray]
) -> Iterator[Case]:
    """The values were written after clipping, the norms before."""
    for key in sorted(key for key in arrays if key.startswith("grad/")):
        name = key.removeprefix("grad/")
        ours, theirs = trained[name].grad.numpy(), arrays[key]
        if keymap.ours(name, "llava").transpose:
            ours = ours.T
        yield near(f"{label}/{key}", ours, theirs, GRAD * float(np.abs(theirs).max()))
    padding = facts.get("padding_idx")
    if padding is not None and "model.embed_tokens.weight" in trained:
        row = trained["model.embed_tokens.weight"].grad.numpy()[padding]
        yield near(f"{label}/padding_row", np.linalg.norm(row), np.array(facts["embed_grad_row0_norm"]), 0.0)


def _clip(trained: dict[str, Tensor], limit: float) -> float:
    """Scale all gradients to a norm of at most ``limit`` together; the norm before."""
    total = float(np.sqrt(sum(_norm(item.grad) ** 2 for item in trained.values())))
    scale = min(1.0, limit / (total + 1e-6))
    for item in trained.values():
        item.grad.set_value(item.grad.detach() * scale)
    return total


def _norm(tensor: Tensor) -> float:
    return float(np.linalg.norm(tensor.numpy().astype(np.float64)))


def _ours(name: str) -> str:
    return keymap.ours(name, "llava").name
