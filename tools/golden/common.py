# SPDX-License-Identifier: Apache-2.0
"""What families i and j share: batches in InternVL's and ShareGPT4V's calling convention, and their comparison.

Both are forks of LLaVA 1.0/1.1. One image place takes one entry of ``images``, which may be several tiles (a list or a
5-D array); a row without a place takes an entry too, which is then never used.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.formats.source import open_folder
from paddlemix.checkpoint.load import Loaded
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.layout import Layout
from paddlemix.models.llava import allocate
from paddlemix.models.vision.build import encoder_class
from paddlemix.ops.attention.contract import Mask
from paddlemix.settings.model import VisionConfig
from paddlemix.settings.published.tower import read_tower
from paddlemix.splice.plan import Plan, build_plan
from paddlemix.text import templates
from paddlemix.text.messages import Message
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.utils.errors import PaddleMixError
from tools.golden.adapter import plan_rows
from tools.golden.case import Case, guarded, near, relative
from tools.golden.generation import compare

FEATURES, RELATIVE = 2e-5, 1e-4
"""Absolute tolerance of features and embeddings, and what is added to it per unit of the value (MANIFEST)."""
LOGITS = 2e-4
LOSS = 2e-5
TRAIN_LOSS = 1e-4
GRADIENT = 1e-3
AFTER = 2e-5
NOISE = 1e-6
"""Gradients below this part of the total norm are rounding (the bias of k moves no score)."""


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def exact(case: str, ours: Any, theirs: Any) -> Case:
    """Ok when equal."""
    if ours == theirs:
        return Case(case, 0.0, 0.0, "ok")
    return Case(case, 1.0, 0.0, "fail", f"ours {ours!r:.150}, reference {theirs!r:.150}")


def load_encoder(folder: Path) -> tuple[VisionConfig, nn.Layer]:
    """A vision tower's transformer alone, from a folder of its own."""
    config = read_tower(folder)
    encoder = encoder_class(config.model_type)(config)
    source = open_folder(folder)
    form = keymap.detect(source.infos())
    parameters = dict(encoder.named_parameters())
    for name in source.infos():
        target = keymap.ours(name, form)
        if isinstance(target, keymap.Target):
            value = source.read(name).T if target.transpose else source.read(name)
            place = parameters.pop(target.name.removeprefix(keymap.PREFIX_TOWER))
            allocate(place, paddle.to_tensor(np.ascontiguousarray(value)))
    if parameters:
        raise PaddleMixError(f"{folder}: nothing for {sorted(parameters)}")
    encoder.eval()
    return config, encoder


def tower_cases(label: str, encoder: nn.Layer, expected: Mapping[str, np.ndarray]) -> Iterator[Case]:
    """Every array of a vision npz."""
    pixels, states = paddle.to_tensor(expected["pixel_values"]), expected.get("hidden_states")
    depth = encoder.layers
    ours = [encoder.hidden_state(pixels, layer).numpy() for layer in range(depth + 1)]
    found: dict[str, Any] = {"embeddings": ours[0], "last_hidden_state": ours[-1], "hidden_states": np.stack(ours)}
    found["pooler_output"] = encoder.pooled(pixels).numpy()
    if "interp_pos_embed" in expected:
        patch = encoder.embeddings.patch_embedding.weight.shape[-1]
        grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
        found["interp_pos_embed"] = encoder.embeddings.positions(grid).numpy()
    for key in sorted(set(expected) - {"pixel_values"}):
        if key.startswith("feature_patch_"):
            found[key] = ours[depth + 1 + int(key.rpartition("_")[2])][:, 1:]
        elif key == "feature_patch":  # of the layer that the family uses: the one whose state it repeats
            layer = next(i for i, state in enumerate(states) if np.array_equal(state[:, 1:], expected[key]))
            found[key] = ours[layer][:, 1:]
        if key in found:
            yield near(f"{label}/{key}", found[key], expected[key], FEATURES, RELATIVE)
        else:
            yield Case(f"{label}/{key}", 0.0, FEATURES, "skipped", "an array that this tool does not know")


@dataclass(frozen=True, eq=False)
class Batch:
    """A merged batch: its plan, and the tiles that it uses in plan order."""

    plan: Plan
    pixels: np.ndarray | None

    def arguments(self, labels: bool = True) -> dict[str, paddle.Tensor]:
        """Arguments of ``LlavaForCausalLM.forward``."""
        plan = self.plan
        arrays = {"token_ids": plan.token_ids, "source": plan.source, "positions": plan.positions}
        if labels:
            arrays["labels"] = plan.labels
        if self.pixels is not None:
            arrays["pixels"] = self.pixels
        return {key: paddle.to_tensor(value) for key, value in arrays.items()}


def make_batch(loaded: Loaded, given: Mapping[str, np.ndarray], images: Sequence[np.ndarray]) -> Batch:
    """``given``: input_ids, labels, attention_mask; ``images``: tiles [k, 3, S, S] for one image place each."""
    per_tile = loaded.config.vision.tokens_per_tile
    layouts = [Layout(len(tiles), np.arange(len(tiles) * per_tile, dtype=np.int64)) for tiles in images]
    rows, used = plan_rows(given, layouts)
    plan = build_plan(rows, tokens_per_tile=per_tile)
    return Batch(plan, np.concatenate([images[index] for index in used]) if used else None)


@paddle.no_grad()
def forward_cases(label: str, loaded: Loaded, batch: Batch, expected: Mapping[str, np.ndarray]) -> Iterator[Case]:
    """Labels, mask, features, embeddings, hidden states, logits and loss of a merged batch."""
    model, plan = loaded.model, batch.plan
    given = batch.arguments()
    features = None
    if batch.pixels is not None:
        seen = model.llama.vision_tower(given["pixels"])
        features = model.llama.mm_projector(seen)
        for key, ours in (("vision_features", seen), ("projected", features)):
            if key in expected and len(expected[key]) == len(ours):
                yield near(f"{label}/{key}", ours.numpy(), expected[key], FEATURES, RELATIVE)
    embeds = model.embed(given["token_ids"], given["source"], features)
    hidden = model.decode(embeds, given["positions"], Mask(causal=True))
    yield from _places(label, plan, expected)
    if "inputs_embeds" in expected:  # on padding the original has the embedding of id 0, which nobody reads
        theirs = expected["inputs_embeds"][plan.mask]
        yield near(f"{label}/inputs_embeds", embeds.numpy()[plan.mask], theirs, FEATURES, RELATIVE)
    rows, columns = (expected[key] for key in ("logits_rows", "logits_cols"))
    known = plan.mask[rows, columns]
    places = (rows[known], columns[known])
    chosen = {
        "inputs_embeds_sel": (embeds, FEATURES, RELATIVE),
        "last_hidden_sel": (hidden, LOGITS, 0.0),
        "logits": (model.logits(hidden), LOGITS, 0.0),
    }
    for key in [key for key in chosen if key in expected]:
        ours, tolerance, more = chosen[key]
        yield near(f"{label}/{key}", ours.numpy()[places], expected[key][known], tolerance, more)
    if "loss" in expected:
        yield relative(f"{label}/loss", float(model(**given)), float(expected["loss"]), LOSS)


def _places(label: str, plan: Plan, expected: Mapping[str, np.ndarray]) -> Iterator[Case]:
    for key, ours in (("labels_mm", plan.labels), ("attention_mask_mm", plan.mask)):
        if key in expected:
            yield exact(f"{label}/{key}", ours.tolist(), expected[key].tolist())
    if "inputs_embeds_shape" in expected:
        yield exact(f"{label}/shape", list(plan.source.shape), expected["inputs_embeds_shape"].tolist()[:2])


def generate_cases(label: str, loaded: Loaded, data: Mapping[str, np.ndarray], tiles: Any) -> Iterator[Case]:
    """Greedy ids, and the scores of every step along the reference's own path.

    ``data``: input_ids [1, T], sequences, scores [n, V], margin [n]; ``tiles`` one [k, 3, S, S] an image place.
    """
    ids, sequence = data["input_ids"], data["sequences"]
    new = sequence[ids.shape[1] :]
    batch = make_batch(loaded, {"input_ids": ids}, tiles)
    settings = Decoding(max_new_tokens=len(new), eos_ids=(loaded.config.text.eos_token_id,))
    made = generate_batch(loaded.model, batch.plan, batch.pixels, settings)[0]
    expected = [int(ids[0, -1]), *new.tolist()]
    yield compare(f"{label}/ids", made, expected, data["margin"].tolist())
    whole = make_batch(loaded, {"input_ids": np.concatenate([ids[0], new[:-1]])[None]}, tiles)
    with paddle.no_grad():
        logits = loaded.model(**whole.arguments(labels=False)).numpy()[0]
    yield near(f"{label}/scores", logits[-len(new) :], data["scores"], LOGITS)


def train_cases(
    label: str, loaded: Loaded, batch: Batch, facts: Mapping[str, Any], after: Mapping[str, np.ndarray]
) -> Iterator[Case]:
    """Losses, gradient norms and weights of AdamW steps with the gradients clipped to a norm of 1 together."""
    norms = facts["grad_norms_step0"]
    parameters = dict(loaded.model.named_parameters())
    trained = {name: parameters[keymap.ours(name, "llava").name] for name in norms}
    chosen = {id(item) for name, item in trained.items() if norms[name] is not None}
    for item in parameters.values():
        item.stop_gradient = id(item) not in chosen
    kept = {name: item for name, item in trained.items() if norms[name] is not None}
    optimizer = paddle.optimizer.AdamW(facts["lr"], parameters=list(kept.values()), weight_decay=0.0)
    loaded.model.train()
    given = batch.arguments()
    for number, step in enumerate(facts["steps"]):
        loss = loaded.model(**given)
        yield relative(f"{label}/loss{number}", float(loss), step["loss"], TRAIN_LOSS)
        loss.backward()
        total = _clip(kept)
        yield relative(f"{label}/total_norm{number}", total, step["grad_norm_total"], GRADIENT)
        if number == 0:
            yield _norms(f"{label}/grad_norms", kept, norms, total)
        optimizer.step()
        optimizer.clear_grad()
    with paddle.no_grad():
        yield relative(f"{label}/loss_after", float(loaded.model(**given)), facts["loss_after"], TRAIN_LOSS)
    for name in sorted(after):
        target = keymap.ours(name, "llava")
        ours = parameters[target.name].numpy()
        yield near(f"{label}/after/{name}", ours.T if target.transpose else ours, after[name], AFTER)


def _clip(trained: Mapping[str, paddle.Tensor]) -> float:
    """The norm of all gradients; afterwards it is at most 1. Their norms before are kept as ``clipped_from``."""
    total = float(np.sqrt(sum(norm_of(item.grad) ** 2 for item in trained.values())))
    scale = min(1.0, 1.0 / (total + 1e-6))
    for item in trained.values():
        item.grad.set_value(item.grad.detach() * scale)
    return total


def _norms(label: str, trained: Mapping[str, paddle.Tensor], expected: Mapping[str, float], total: float) -> Case:
    scale = min(1.0, 1.0 / (total + 1e-6))
    worst = (0.0, "")
    for name, item in trained.items():
        ours, theirs = norm_of(item.grad) / scale, expected[name]
        if max(ours, theirs) > NOISE * total:
            worst = max(worst, (abs(ours - theirs) / theirs, name))
    return Case(
        label, worst[0], GRADIENT, "ok" if worst[0] <= GRADIENT else "fail", f"{len(trained)}, worst {worst[1]}"
    )


def norm_of(tensor: paddle.Tensor) -> float:
    """Euclidean norm in double precision."""
    return float(np.linalg.norm(tensor.numpy().astype(np.float64)))


def name_cases(label: str, names: Mapping[str, list[int]], form: str, parameters: Mapping[str, Any]) -> Iterator[Case]:
    """Every stored name is a parameter of ours of that shape, or known and not needed."""
    wrong = []
    for name, shape in names.items():
        target = keymap.ours(name, form)
        if isinstance(target, keymap.Ignored):
            continue
        if target is None or target.name not in parameters:
            wrong.append(name)
            continue
        ours = list(parameters[target.name].shape)
        if (ours[::-1] if target.transpose else ours) != shape:
            wrong.append(f"{name} {shape}, ours {ours}")
    yield Case(label, float(len(wrong)), 0.0, "fail" if wrong else "ok", wrong[0] if wrong else f"{len(names)} names")


def prompt_cases(label: str, data: Mapping[str, Any]) -> Iterator[Case]:
    """Templates: system text and the prompts of one and two turns."""
    turns = [Message("user", "<image>\nWhat is it?"), Message("assistant", "A cat."), Message("user", "Which colour?")]
    for name, facts in data.items():
        yield from guarded(f"{label}/{name}", _prompts, f"{label}/{name}", name, facts, turns)


def _prompts(label: str, name: str, facts: Mapping[str, Any], turns: list[Message]) -> Case:
    if "error" in facts:
        known = name in templates.TEMPLATES
        reason = f"the original fails: {facts['error']}"
        return Case(label, 0.0, 0.0, "deviates" if known else "fail", reason)
    template = templates.get(name)
    system = facts["system"].removeprefix("<|im_start|>system\n")
    ours = [templates.prompt_text(template, turns[:count], answer_open=True) for count in (1, 3)]
    return exact(label, [template.system, *ours], [system, facts["prompt_turn1"], facts["prompt_turn2"]])


def token_cases(label: str, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Iterator[Case]:
    """Ids with and without image places, and the text of ids."""
    for number, row in enumerate(rows):
        yield from guarded(f"{label}/{number}", _tokens, f"{label}/{number}", row, tokenizer)


def _tokens(label: str, row: Mapping[str, Any], tokenizer: Tokenizer) -> Case:
    ours = [tokenizer.encode(row["text"]), tokenizer.encode_with_images(row["text"])]
    theirs = [row["ids"], row["image_ids"]]
    if "decoded" in row:
        ours.append(tokenizer.decode(row["ids"]))
        theirs.append(row["decoded"])
    return exact(label, ours, theirs)
