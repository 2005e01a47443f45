# SPDX-License-Identifier: Apache-2.0
"""Golden family e: generated ids (greedy, rounds, several images, beams, left-padded batches, a custom ending id).

``generate.json`` maps ``<model>_<case>`` to prompts, ids and what the original's ``generate`` returned. Its output
begins with the bos id, which was not generated. Every multi-round case is run from the given prompts; one whose
history is clean is run once more as a ``ChatSession`` that is given the questions only.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint.load import load_model
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession
from paddlemix.imaging.load import load_image
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text import templates
from paddlemix.text.messages import Message
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import PaddleMixError
from tools.golden.case import Case, guarded, unused_text

FILE = Path("e_generate") / "generate.json"
MARGIN = 1e-3
"""Where the two best scores of the original are nearer than this, sums in another order may swap them."""


def run(folder: Path) -> Iterator[Case]:
    """Every entry of ``generate.json``; a model that is not there or does not load fails its cases."""
    path = folder / FILE
    if not path.is_file():
        return
    entries = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in entries.items():
        label = f"e_generate/{name}"
        yield from guarded(label, _entry, folder, name, label, entry)


def _entry(folder: Path, name: str, label: str, entry: dict[str, Any]) -> Iterator[Case]:
    return _Golden.of(folder, name.split("_")[0]).cases(label, entry)


class _Golden:
    """One model of the folder and the images that its cases use."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        loaded = load_model(find_model(folder, prefix), dtype="float32")
        loaded.model.eval()
        self.model, self.config = loaded.model, loaded.config
        self.tokenizer = load_tokenizer(loaded.tokenizer_folder)
        self.processor = ImageProcessor(self.config.image, self.config.vision)

    @classmethod
    @functools.lru_cache(maxsize=1)
    def of(cls, folder: Path, prefix: str) -> "_Golden":
        return cls(folder, prefix)

    def cases(self, label: str, entry: dict[str, Any]) -> Iterator[Case]:
        if "rounds" in entry:
            yield from self._given_prompts(label, entry)
            if "skip_special" in entry["history"]:
                yield from self._session(label, entry)
        elif "input_ids" in entry and isinstance(entry["input_ids"][0], list):
            yield self._batch(label, entry)
        else:
            yield self._one(label, entry)

    def _given_prompts(self, label: str, entry: dict[str, Any]) -> Iterator[Case]:
        for item in entry["rounds"]:
            name = f"{label}/round{item['round']}"
            ids = self.tokenizer.encode_with_images(item["prompt"])
            if ids != item["input_ids"]:
                yield differing(f"{name}/prompt", ids, item["input_ids"])
            made = self._generate([item["input_ids"]], [[entry["image"]]], _length(item["output_ids"]))
            yield compare(name, made[0], item["output_ids"], item.get("top1_top2_margin"))
            text = self.tokenizer.decode(made[0], skip_special=True).strip()
            same = text == item["decode_skip_strip"] or made[0] != item["output_ids"][1:]
            if not same:
                yield Case(f"{name}/text", 1.0, 0.0, "fail", f"{text!r} instead of {item['decode_skip_strip']!r}")

    def _session(self, label: str, entry: dict[str, Any]) -> Iterator[Case]:
        """The same conversation through ``ChatSession``: questions in, kept cache, prompts made by us."""
        decoding = Decoding(max_new_tokens=_length(entry["rounds"][0]["output_ids"]))
        template = templates.get(entry["template"])
        session = ChatSession(Predictor(self.model, self.tokenizer, self.processor, template), decoding=decoding)
        image = load_image(self.folder / "images" / f"{entry['image']}.png")
        for item, question in zip(entry["rounds"], questions(entry), strict=True):
            name = f"{label}/session/round{item['round']}"
            session.answer(question, [image] if item["round"] == 0 else [])
            if list(session.stats.prompt_ids) != item["input_ids"]:
                yield differing(f"{name}/prompt", list(session.stats.prompt_ids), item["input_ids"])
                return
            case = compare(name, list(session.stats.answer_ids), item["output_ids"], item.get("top1_top2_margin"))
            yield case
            if case.status != "ok":
                return

    def _one(self, label: str, entry: dict[str, Any]) -> Case:
        decoding = {key: entry[key] for key in ("num_beams",) if key in entry}
        images = entry.get("images", [])
        made = self._generate([entry["input_ids"]], [images], _length(entry["output_ids"]), **decoding)
        return compare(label, made[0], entry["output_ids"], entry.get("margin"))

    def _batch(self, label: str, entry: dict[str, Any]) -> Case:
        masks = entry["attention_mask"]
        rows = [
            [i for i, kept in zip(ids, mask, strict=True) if kept]
            for ids, mask in zip(entry["input_ids"], masks, strict=True)
        ]
        images = [[name] for name in entry["images"]]
        extra = {"pad_id": entry.get("pad_token_id", 0)}
        if "eos_token_id" in entry:
            extra["eos_ids"] = (entry["eos_token_id"],)
        made = self._generate(rows, images, max(_length(ids) for ids in entry["output_ids"]), **extra)
        margins = entry.get("margin")
        for index, (ours, expected) in enumerate(zip(made, entry["output_ids"], strict=True)):
            case = compare(label, ours, expected, [pair[index] for pair in margins] if margins else None)
            if case.status != "ok":
                return case
        return case

    def _generate(
        self, rows: Sequence[Sequence[int]], images: Sequence[Sequence[str]], length: int, **decoding: Any
    ) -> list[list[int]]:
        processed = [[self._processed(name) for name in names] for names in images]
        plan = build_plan(
            [PlanRow(ids, [item[1] for item in items]) for ids, items in zip(rows, processed, strict=True)],
            tokens_per_tile=self.config.vision.tokens_per_tile,
            padding_side="left",
        )
        tiles = [item[0] for items in processed for item in items]
        settings = Decoding(**{"max_new_tokens": length, "eos_ids": (self.config.text.eos_token_id,), **decoding})
        return generate_batch(self.model, plan, np.concatenate(tiles) if tiles else None, settings)

    @functools.lru_cache(maxsize=64)  # noqa: B019  (one model lives at a time)
    def _processed(self, name: str) -> tuple[np.ndarray, Any]:
        """Pixels that the original made of the image if the folder has them, else ours; and our layout."""
        processed = self.processor(load_image(self.folder / "images" / f"{name}.png"))
        path = self.folder / "a_preprocess" / f"process_images_{self.config.image.aspect}.npz"
        if path.is_file():
            with np.load(path) as data:
                if name in data.files:
                    return data[name].reshape(processed.pixels.shape), processed.layout
        return processed.pixels, processed.layout


def find_model(folder: Path, prefix: str) -> Path:
    """The checkpoint behind a case prefix: v15, v16v (anyres, Llama) or v16m (anyres, Mistral), told by config.json.

    Of several, a float32 one wins over its half-precision copies; PaddleMixError when there is none.
    """
    found = []
    for path in sorted((folder / "hub").glob("*/*/config.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        whole = any(path.parent.glob("*.index.json")) or any(path.parent.glob("model*.safetensors"))
        whole = whole or (path.parent / "pytorch_model.bin").is_file()
        if whole and not (path.parent / "adapter_config.json").is_file() and "mm_vision_tower" in data:
            found.append((_prefix_of(data), data.get("torch_dtype") != "float32", path.parent))
    matching = sorted(item[1:] for item in found if item[0] == prefix)
    if not matching:
        raise PaddleMixError(f"{folder / 'hub'}: no original checkpoint of the kind {prefix}")
    return matching[0][1]


def _prefix_of(config: dict[str, Any]) -> str:
    if config.get("image_aspect_ratio") != "anyres":
        return "v15"
    return "v16m" if "mistral" in config.get("model_type", "") else "v16v"


def questions(entry: dict[str, Any]) -> list[str]:
    """What was asked in each round: the last prompt without its beginning, the answers and the template's words.

    Round n's prompt is that of round n - 1, the answer, and the words around the new question; the words are learnt
    from the template by rendering two questions that stand for themselves.
    """
    template = templates.get(entry["template"])
    found: list[str] = []
    messages: list[Message] = []
    for item in entry["rounds"]:
        marker = unused_text(item["prompt"], *(message.text for message in messages))
        text = templates.prompt_text(template, [*messages, Message("user", marker)], answer_open=True)
        before, after = text.split(marker)
        question = item["prompt"].removeprefix(before).removesuffix(after)
        messages += [Message("user", question), Message("assistant", item["decode_skip_strip"])]
        found.append(question.removeprefix("<image>\n"))
    return found


def _length(output_ids: Sequence[int]) -> int:
    return len(output_ids) - 1


def compare(label: str, ours: Sequence[int], expected: Sequence[int], margins: Sequence[float] | None) -> Case:
    """Exact ids up to the first place where the original's two best scores were too near to call."""
    expected = list(expected)[1:]
    for place, (one, other) in enumerate(zip(ours, expected, strict=False)):
        if one == other:
            continue
        if margins and place < len(margins) and margins[place] < MARGIN:
            return Case(label, 0.0, 0.0, "ok", f"equal up to id {place}, where the margin is {margins[place]:.1e}")
        return differing(label, list(ours), expected)
    if len(ours) != len(expected):
        return differing(label, list(ours), expected)
    return Case(label, 0.0, 0.0, "ok")


def differing(label: str, ours: list[int], expected: list[int]) -> Case:
    """The failed case, with the first place that differs."""
    place = next((i for i, pair in enumerate(zip(ours, expected, strict=False)) if pair[0] != pair[1]), -1)
    if place < 0:
        return Case(label, 1.0, 0.0, "fail", f"{len(ours)} ids instead of {len(expected)}")
    wrong = sum(one != other for one, other in zip(ours, expected, strict=False))
    return Case(label, float(wrong), 0.0, "fail", f"id {place} is {ours[place]} instead of {expected[place]}")
