# SPDX-License-Identifier: Apache-2.0
"""peft takes the same steps: losses, gradients and weights of LoRA, rsLoRA, LoRA+, DoRA and PiSSA on a tiny Llama."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.load import load_model
from paddlemix.ops.linear import lora_layers
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.trainer.lora_targets import add_adapters
from paddlemix.trainer.optimization import build_optimizer, build_schedule
from paddlemix.trainer.stages import plan_stage
from tests.checkpoint import checkpoint_kit
from tests.tiny import tiny_model
from tests.trainer.trainer_kit import settings

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300)]
WORKER = Path(__file__).with_name("methods_worker.py")
STEPS = 6
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "rslora": ({"rslora": True}, {"use_rslora": True}),
    "dora": ({"use_dora": True}, {"use_dora": True}),
    "pissa": ({"pissa": True, "pissa_iter": -1}, {"init_lora_weights": "pissa"}),
    "pissa and rslora": (
        {"pissa": True, "pissa_iter": -1, "rslora": True},
        {"init_lora_weights": "pissa", "use_rslora": True},
    ),
    "dora and pissa": (
        {"use_dora": True, "pissa": True, "pissa_iter": -1},
        {"use_dora": True, "init_lora_weights": "pissa"},
    ),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_kit.hub(tmp_path_factory.mktemp("hub"), tiny_model(2))["vicuna"]


def peft(base: Path, folder: Path, inputs: dict[str, np.ndarray], **told: Any) -> dict[str, np.ndarray]:
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    np.savez(folder / "inputs.npz", **inputs)
    command = [python, str(WORKER), str(base), str(folder / "inputs.npz"), str(folder / "result.npz"), json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "result.npz"))


def theirs(name: str) -> str:
    layer, _, part = name.rpartition(".lora_")
    weight = keymap.theirs(f"{layer}.weight", "llava").name.removesuffix(".weight")
    return f"{weight}.lora_{part}"


def steps_of_ours(model: Any, optimizer: Any, inputs: dict[str, np.ndarray]) -> tuple[list[float], dict[str, Any]]:
    rows = [
        PlanRow(list(map(int, ids)), [], labels) for ids, labels in zip(inputs["ids"], inputs["labels"], strict=True)
    ]
    plan = build_plan(rows, tokens_per_tile=1)
    arguments = [paddle.to_tensor(getattr(plan, name)) for name in ("token_ids", "source", "positions", "labels")]
    losses, gradients = [], {}
    model.train()
    for step in range(STEPS):
        loss = model(*arguments)
        losses.append(float(loss))
        loss.backward()
        if step == 0:
            trained = [(name, value) for name, value in model.named_parameters() if not value.stop_gradient]
            gradients = {theirs(name): value.grad.numpy() for name, value in trained}
        optimizer.step()
        optimizer.clear_grad()
    return losses, gradients


def signs(ours: dict[str, np.ndarray], found: dict[str, np.ndarray], name: str) -> np.ndarray:
    """1 or -1 for each direction of a pair: a singular vector may point either way."""
    layer = name.rpartition(".lora_")[0]
    return np.sign((ours[f"{layer}.lora_A"] * found[f"start:{layer}.lora_A"]).sum(0))


def aligned(ours: dict[str, np.ndarray], found: dict[str, np.ndarray], name: str, values: np.ndarray) -> np.ndarray:
    if name.endswith("lora_A"):
        return values * signs(ours, found, name)
    return values * signs(ours, found, name)[:, None] if name.endswith("lora_B") else values


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_peft_takes_the_same_steps(method: str, optimizer: str, llama: Path, tmp_path: Path) -> None:
    ours, peer = METHODS[method]
    take_steps(llama, tmp_path, ours, peer, optimizer, plus=None)


def test_peft_takes_the_same_steps_with_lora_plus(llama: Path, tmp_path: Path) -> None:
    take_steps(llama, tmp_path, {"lora_plus_scale": 16.0}, {}, "adamw", plus=16.0)


def take_steps(
    llama: Path, folder: Path, ours: dict[str, Any], peer: dict[str, Any], optimizer: str, plus: float | None
) -> None:
    rate = 0.05 if optimizer == "sgd" else 1e-3
    run = settings(
        folder, lora=True, lora_rank=4, lora_alpha=8, lora_dropout=0.0, learning_rate=rate, weight_decay=0.1,
        lora_target_modules=("q_proj", "down_proj"), max_grad_norm=0.0, lr_scheduler_type="constant", **ours,
    )  # fmt: skip
    model = load_model(llama).model
    add_adapters(model, run)
    plan = plan_stage(model, run)
    plan.apply(model)
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 400, (2, 12))
    inputs = {"ids": ids, "labels": np.where(np.arange(12) < 4, -100, ids)}
    start = {theirs(name): value.numpy() for name, value in model.named_parameters() if name in plan.rules}
    given = {} if ours.get("pissa") else {name: values for name, values in start.items() if "lora_A" in name}
    found = peft(
        llama, folder, {**inputs, **given}, method={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **peer},
        optimizer=optimizer, rate=rate, decay=0.1, steps=STEPS, plus=plus,
    )  # fmt: skip
    assert {name.removeprefix("start:") for name in found if name.startswith("start:")} == set(start)
    for name, values in start.items():
        np.testing.assert_allclose(aligned(start, found, name, values), found[f"start:{name}"], atol=2e-5, err_msg=name)
    made = (
        paddle.optimizer.SGD(rate, parameters=list(plan.trainable(model).values()))
        if optimizer == "sgd"
        else build_optimizer(model, plan, run.training, build_schedule(run.training, STEPS))
    )
    losses, gradients = steps_of_ours(model, made, inputs)
    assert losses[0] - losses[-1] > 1e-3, "the steps do something"
    np.testing.assert_allclose(losses, found["losses"], atol=2e-5)
    for name, values in gradients.items():
        expected = found[f"gradient:{name}"]
        close = 1e-4 * max(float(np.abs(expected).max()), 1e-2)
        np.testing.assert_allclose(aligned(start, found, name, values), expected, atol=close, err_msg=name)
    for name, layer in lora_layers(model):
        layer.merge()
        expected = found[f"weight:{theirs(name + '.lora_A').removesuffix('.lora_A')}"]
        np.testing.assert_allclose(layer.weight.numpy(), expected, atol=1e-4, err_msg=name)
