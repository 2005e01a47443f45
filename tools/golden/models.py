# SPDX-License-Identifier: Apache-2.0
"""Golden family c: hidden states and features of the towers, projectors, merged batches, logits and losses."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from paddlemix.checkpoint.load import Loaded, load_model
from paddlemix.models.llava import LlavaForCausalLM, allocate
from paddlemix.models.projector import build_projector
from paddlemix.ops.attention.contract import Mask
from tools.golden.adapter import Adapted, case_names, load_case
from tools.golden.case import Case, guarded, near, relative
from tools.golden.generation import find_model

FEATURES = 2e-5
LOGITS = 1e-4
LOSS = 1e-5


def run(folder: Path) -> Iterator[Case]:
    """Every file of c_features and c_multimodal; a model that is not there fails its cases."""
    for file in sorted((folder / "c_features").glob("*.npz")):
        label = f"c_features/{file.stem}"
        make = _projectors if file.stem == "projectors" else _tower
        yield from guarded(label, make, folder, label, file)
    for name in case_names(folder):
        yield from guarded(f"c_multimodal/{name}", _multimodal, folder, f"c_multimodal/{name}", name)


@functools.lru_cache(maxsize=1)
def model_of(folder: Path, prefix: str) -> Loaded:
    """The checkpoint behind a case prefix (v15, v16v, v16m), in evaluation mode."""
    loaded = load_model(find_model(folder, prefix), dtype="float32")
    loaded.model.eval()
    return loaded


@paddle.no_grad()
def _tower(folder: Path, label: str, file: Path) -> list[Case]:
    expected, model = dict(np.load(file)), model_of(folder, file.stem.split("_")[0]).model
    return list(_states(label, model, expected))


def _states(label: str, model: LlavaForCausalLM, expected: dict[str, np.ndarray]) -> Iterator[Case]:
    pixels = paddle.to_tensor(expected["pixel_values"])
    encoder, depth = model.llama.vision_tower.vision_tower, model.config.vision.num_hidden_layers
    for key in sorted(set(expected) - {"pixel_values"}):
        if key.startswith("hidden_state_"):
            ours = encoder.hidden_state(pixels, int(key.rpartition("_")[2]))
        elif key == "last_hidden_state":
            ours = encoder.hidden_state(pixels, depth)
        elif key == "pooler_output":
            ours = encoder.pooled(pixels)
        elif key.startswith("features_layer"):
            layer, _, rows = key.removeprefix("features_layer").partition("_")
            ours = encoder.hidden_state(pixels, int(layer) if int(layer) >= 0 else depth + 1 + int(layer))
            ours = ours[:, 1:] if rows == "patch" else ours
        elif key.startswith("list_input_"):
            index = int(key.rpartition("_")[2])
            ours = model.llama.vision_tower(pixels[index : index + 1])
        elif key == "features":
            ours = model.llama.vision_tower(pixels)
        elif key in ("encode_images", "projected"):
            ours = model.encode_images(pixels)
        else:
            yield Case(f"{label}/{key}", 0.0, FEATURES, "skipped", "an array that this tool does not know")
            continue
        yield near(f"{label}/{key}", ours.numpy(), expected[key], FEATURES)


def _projectors(folder: Path, label: str, file: Path) -> Iterator[Case]:
    arrays = dict(np.load(file))
    x = paddle.to_tensor(arrays["x"])
    for kind in sorted({key.split("/")[0] for key in arrays} - {"x"}):
        wanted = arrays[f"{kind}/y"]
        layer = build_projector(kind, arrays["x"].shape[-1], wanted.shape[-1])
        weights = {key.split("/w/")[1]: value for key, value in arrays.items() if key.startswith(f"{kind}/w/")}
        if set(weights) != {name for name, _ in layer.named_parameters()}:
            yield Case(f"{label}/{kind}", 0.0, FEATURES, "fail", f"parameter names differ: {sorted(weights)}")
            continue
        _fill(layer, weights)
        with paddle.no_grad():
            yield near(f"{label}/{kind}", layer(x).numpy(), wanted, FEATURES)


def _fill(layer: nn.Layer, weights: dict[str, np.ndarray]) -> None:
    for name, parameter in layer.named_parameters():
        value = weights[name].T if weights[name].ndim == 2 else weights[name]
        allocate(parameter, paddle.to_tensor(np.ascontiguousarray(value)))


def batch_of(case: Adapted) -> dict[str, paddle.Tensor]:
    """Arguments of ``LlavaForCausalLM.forward`` for a case, labels included."""
    plan = case.plan()
    arrays = {"token_ids": plan.token_ids, "source": plan.source, "positions": plan.positions, "labels": plan.labels}
    if case.pixels is not None:
        arrays["pixels"] = case.pixels
    if plan.starts.any():
        arrays["starts"] = plan.starts
    return {key: paddle.to_tensor(value) for key, value in arrays.items()}


@paddle.no_grad()
def _multimodal(folder: Path, label: str, name: str) -> list[Case]:
    loaded = model_of(folder, name.split("_")[0])
    return list(_merged(label, loaded.model, load_case(folder, name, loaded.config)))


def _merged(label: str, model: LlavaForCausalLM, case: Adapted) -> Iterator[Case]:
    plan, batch, expected = case.plan(), batch_of(case), case.expected
    places = {"out_labels": plan.labels, "out_attention_mask": plan.mask, "out_position_ids": plan.positions}
    for key in sorted(set(places) & set(expected)):
        wrong = float((places[key] != expected[key]).sum()) if places[key].shape == expected[key].shape else np.inf
        yield Case(f"{label}/{key}", wrong, 0.0, "ok" if wrong == 0 else "fail")
    features = model.encode_images(batch["pixels"]) if "pixels" in batch else None
    embeds = model.embed(batch["token_ids"], batch["source"], features)
    if "out_inputs_embeds" in expected:
        yield near(f"{label}/embeds", embeds.numpy(), expected["out_inputs_embeds"], FEATURES)
    mask = Mask(causal=True, key_starts=batch.get("starts"))
    logits = model.logits(model.decode(embeds, batch["positions"], mask)).numpy()
    yield from _logits(label, logits, plan.mask, expected)
    if "loss" in expected:
        yield _loss(label, float(model(**batch)), float(expected["loss"]), bool((plan.labels[:, 1:] >= 0).any()))


def _logits(label: str, ours: np.ndarray, valid: np.ndarray, expected: dict[str, np.ndarray]) -> Iterator[Case]:
    if "logits" in expected:
        yield near(f"{label}/logits", ours[valid], expected["logits"][valid], LOGITS)
    if "logits_sub16" in expected:
        yield near(f"{label}/logits_sub16", ours[..., ::16][valid], expected["logits_sub16"][valid], LOGITS)
    if "logits_lse" in expected:
        high = ours.max(-1, keepdims=True).astype(np.float64)
        lse = high[..., 0] + np.log(np.exp(ours - high).sum(-1))
        yield near(f"{label}/logits_lse", lse[valid], expected["logits_lse"][valid], LOGITS)
    if "logits_argmax" in expected:
        # Another winner counts unless both scores are nearer than the logits may differ.
        theirs = np.take_along_axis(ours, expected["logits_argmax"][..., None], -1)[..., 0]
        wrong = float((ours.max(-1) - theirs > 2 * LOGITS)[valid].sum())
        yield Case(f"{label}/logits_argmax", wrong, 0.0, "ok" if wrong == 0 else "fail")


def _loss(label: str, ours: float, theirs: float, has_labels: bool) -> Case:
    if np.isnan(theirs):
        good = ours == 0.0 and not has_labels
        reason = "no label is left in the batch: the original's loss is NaN, ours is 0 with zero gradients"
        return Case(f"{label}/loss", 0.0, LOSS, "deviates" if good else "fail", reason)
    return relative(f"{label}/loss", ours, theirs, LOSS)
