# SPDX-License-Identifier: Apache-2.0
"""Golden families f and g: LoRA adapters merged and unmerged, their training, projector-only and new token rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.load import Loaded, load_model
from paddlemix.checkpoint.vocab import grow_vocabulary
from paddlemix.imaging.layout import layout_for
from paddlemix.splice.plan import build_plan
from tools.golden.adapter import plan_rows
from tools.golden.case import Case, guarded, near, relative

LOGITS = 1e-4
LOSS = 1e-5
WEIGHTS = 1e-6
TRAIN_LOSS = 2e-4
GRAD_NORM = 1e-3


def run(folder: Path) -> Iterator[Case]:
    """Every npz of f_lora and g_projector, with the folders that f_lora/INFO.json names for them."""
    path = folder / "f_lora" / "INFO.json"
    if not path.is_file():
        return
    info = json.loads(path.read_text(encoding="utf-8"))
    for file in sorted((folder / "f_lora").glob("*.npz")):
        yield from guarded(f"f_lora/{file.stem}", _adapter, folder, file, info)
    for file in sorted((folder / "g_projector").glob("*.npz")):
        make = _projector if "dir" in info.get(f"g_projector/{file.name}", {}) else _new_rows
        yield from guarded(f"g_projector/{file.stem}", make, folder, file, info)
    train = folder / "f_lora" / "lora_train.json"
    if train.is_file():
        yield from guarded("f_lora/lora_train", _training, folder, folder / "f_lora" / "lora.npz", info, train)


def _adapter(folder: Path, file: Path, info: dict[str, Any]) -> Iterator[Case]:
    data, facts = np.load(file), info[f"f_lora/{file.name}"]
    hub = folder / "hub"
    name = f"f_lora/{file.stem}"
    merged = load_model(hub / facts["dir"], base=hub / facts["base"])
    values = _values(merged)
    for key in sorted(key for key in data.files if key.startswith("merged/")):
        yield near(f"{name}/{key}", _theirs(values, key.removeprefix("merged/")), data[key], WEIGHTS)
    yield from _outputs(f"{name}/merged", merged, data, "merged")
    kept = load_model(hub / facts["dir"], base=hub / facts["base"], lora="keep")
    yield from _outputs(f"{name}/unmerged", kept, data, "unmerged")


def _projector(folder: Path, file: Path, info: dict[str, Any]) -> Iterator[Case]:
    data, facts = np.load(file), info[f"g_projector/{file.name}"]
    name = f"g_projector/{file.stem}"
    loaded = load_model(folder / "hub" / facts["dir"], base=folder / "hub" / facts["base"])
    values = _values(loaded)
    for key in sorted(key for key in data.files if key.startswith("w/")):
        ours = _theirs(values, f"model.mm_projector.{key.removeprefix('w/')}")
        yield near(f"{name}/{key}", ours, data[key], 0.0)
    yield from _outputs(name, loaded, data, "")


def _new_rows(folder: Path, file: Path, info: dict[str, Any]) -> Iterator[Case]:
    data = np.load(file)
    base = next(facts["base"] for facts in info.values() if isinstance(facts, dict) and "base" in facts)
    model = load_model(folder / "hub" / base).model
    grow_vocabulary(model, int(data["vocab"]))
    tail = len(data["embed_tail"])
    name = f"g_projector/{file.stem}"
    yield near(f"{name}/embed", model.llama.embed_tokens.weight.numpy()[-tail:], data["embed_tail"], WEIGHTS)
    yield near(f"{name}/lm_head", model.lm_head.weight.numpy().T[-tail:], data["lm_head_tail"], WEIGHTS)


def _batch(loaded: Loaded, data: Any) -> dict[str, Any]:
    """Arguments of ``forward`` for the collated batch of a file; a text-only row still takes one of its images."""
    given = {key[3:]: data[key] for key in data.files if key.startswith("in_") and key != "in_images"}
    images, config = data["in_images"], loaded.config
    layout = layout_for((1, 1), None, config.image, config.vision)
    rows, used = plan_rows(given, [layout] * len(images))
    plan = build_plan(rows, tokens_per_tile=config.vision.tokens_per_tile)
    arrays = {
        "token_ids": plan.token_ids,
        "source": plan.source,
        "positions": plan.positions,
        "labels": plan.labels,
        "pixels": images[used],
    }
    return {key: paddle.to_tensor(value) for key, value in arrays.items()} | {"plan": plan}


def _outputs(name: str, loaded: Loaded, data: Any, kind: str) -> Iterator[Case]:
    batch = _batch(loaded, data)
    plan, labels = batch.pop("plan"), batch.pop("labels")
    with paddle.no_grad():
        logits = loaded.model(**batch).numpy()
        loss = float(loaded.model(**batch, labels=labels))
    valid = np.arange(logits.shape[1])[None] < plan.lengths[:, None]
    key = f"logits_{kind}_sub16" if kind else "logits_sub16"
    yield near(f"{name}/logits", logits[..., ::16][valid], data[key][valid], LOGITS)
    key = f"logits_{kind}_argmax" if kind else "logits_argmax"
    if key in data.files:
        # A swap counts unless both scores are nearer than the logits may differ.
        theirs = np.take_along_axis(logits, data[key][..., None], -1)[..., 0]
        wrong = float((logits.max(-1) - theirs > 2 * LOGITS)[valid].sum())
        yield Case(f"{name}/argmax", wrong, 0.0, "ok" if wrong == 0 else "fail")
    expected = float(data[f"loss_{kind}" if kind else "loss"])
    yield relative(f"{name}/loss", loss, expected, LOSS)


def _training(folder: Path, file: Path, info: dict[str, Any], path: Path) -> Iterator[Case]:
    """AdamW steps on adapter and projector from the saved state (rate 1e-3, no decay, as the file's desc says)."""
    expected, facts = json.loads(path.read_text(encoding="utf-8")), info["f_lora/lora.npz"]
    hub = folder / "hub"
    loaded = load_model(hub / facts["dir"], base=hub / facts["base"], lora="keep")
    batch = _batch(loaded, np.load(file))
    batch.pop("plan")
    ours = {_our_name(name): name for name in expected["trainable"]}
    parameters = dict(loaded.model.named_parameters())
    for name, parameter in parameters.items():
        parameter.stop_gradient = name not in ours
    optimizer = paddle.optimizer.AdamW(
        1e-3, parameters=[parameters[name] for name in ours], weight_decay=0.0, beta1=0.9, beta2=0.999, epsilon=1e-8
    )
    last = len(expected["losses"]) - 1
    for step, wanted in enumerate(expected["losses"]):
        loss = loaded.model(**batch)
        yield relative(f"f_lora/lora_train/loss{step}", float(loss), wanted, TRAIN_LOSS)
        if step == last:
            return
        loss.backward()
        if step == 0:
            norms = expected["grad_norm_per_param"]
            pairs = [(float(np.linalg.norm(parameters[name].grad.numpy())), norms[ours[name]]) for name in ours]
            worst = max(pairs, key=lambda pair: abs(pair[0] - pair[1]) / max(abs(pair[1]), 1e-12))
            yield relative("f_lora/lora_train/grad_norms", *worst, GRAD_NORM)
        optimizer.step()
        optimizer.clear_grad()


def _our_name(theirs: str) -> str:
    if ".lora_" not in theirs:
        return keymap.ours(theirs, "peft").name
    layer, _, half = theirs.partition(".lora_")
    return keymap.ours(f"{layer}.weight", "peft").name.removesuffix("weight") + f"lora_{half[0]}"


def _values(loaded: Loaded) -> dict[str, np.ndarray]:
    return {name: parameter.numpy() for name, parameter in loaded.model.named_parameters()}


def _theirs(values: dict[str, np.ndarray], name: str) -> np.ndarray:
    target = keymap.ours(name, "llava")
    return values[target.name].T if target.transpose else values[target.name]
