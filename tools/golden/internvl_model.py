# SPDX-License-Identifier: Apache-2.0
"""Golden family i, part two: the InternVL-Chat model (rows, batches, logits, generation, training) and its texts."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.load import Loaded, load_model
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.sample import Sample
from paddlemix.imaging.load import load_image
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.run.training import TrainingGroup
from paddlemix.text import templates
from paddlemix.text.messages import Message
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer.optimization import build_schedule, warmup_steps
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import PaddleMixError
from tools.golden.case import Case, guarded, near
from tools.golden.common import (
    Batch,
    exact,
    forward_cases,
    generate_cases,
    make_batch,
    name_cases,
    prompt_cases,
    read_json,
    token_cases,
    train_cases,
)
from tools.golden.prompts import LOST, learnt_fault

FOLDER = "internvl"
PIXELS = 1e-5
ASPECTS = {"v1": "pad", "plain": "square"}
"""How the images of a template's rows were made (MANIFEST: stage 2 pads, stage 1 crops)."""


def run(folder: Path) -> Iterator[Case]:
    """The chat model of ``folder/internvl`` and everything that was computed with it."""
    root = folder / FOLDER
    if not root.is_dir():
        return
    if (root / "lr_schedule.json").is_file():
        yield from guarded("i/lr_schedule", _rates, root / "lr_schedule.json")
    if (root / "conversations.json").is_file():
        yield from guarded("i/conversations", _conversations, root / "conversations.json")
    chats = [path.parent for path in sorted(root.glob("*/config.json")) if read_json(path).get("mm_vision_tower")]
    for chat in chats:
        yield from guarded(f"i/{chat.name}", _model, folder, chat)


def _model(folder: Path, chat: Path) -> Iterator[Case]:
    return Golden(folder, chat).cases()


def _conversations(path: Path) -> Iterator[Case]:
    return prompt_cases("i/conversations", read_json(path))


class Golden:
    """A chat model and the rows that the original made with it."""

    def __init__(self, folder: Path, chat: Path) -> None:
        self.folder, self.root, self.chat = folder, folder / FOLDER, chat
        self.side = read_json(self.root / "loader.json")["image_processor"]["crop_size"]["height"]
        self.loaded = self.load()
        self.rows = {row["id"]: row for row in read_json(folder / "internvl_data.json")}
        self.dataset = read_json(self.root / "dataset.json")

    def load(self) -> Loaded:
        """The model with tiles of the side that the reference was made with."""
        return load_model(self.chat, overrides={"mm_image_size": self.side})

    def cases(self) -> Iterator[Case]:
        """Every comparison."""
        yield from guarded("i/loader", self._loader)
        yield from guarded("i/tokenize", self._tokens)
        yield from guarded("i/dataset", self._dataset)
        for path in sorted(self.root.glob("collated_*.npz")):
            yield from guarded(f"i/{path.stem}", self._collated, path)
        batches: dict[str, Batch] = {}
        for path in sorted(self.root.glob("forward_*.npz")):
            yield from guarded(f"i/{path.stem}", self._forward, path, batches)
        yield from guarded("i/generate", self._generate)
        yield from guarded("i/train", self._train, batches)

    def _forward(self, path: Path, batches: dict[str, Batch]) -> Iterator[Case]:
        name, expected = path.stem.removeprefix("forward_"), dict(np.load(path))
        batches[name] = self._batch(name, expected)
        return forward_cases(f"i/{path.stem}", self.loaded, batches[name], expected)

    def _loader(self) -> Iterator[Case]:
        facts, config = read_json(self.root / "loader.json"), self.loaded.config
        ours = [config.model_max_length, config.vision.tokens_per_tile, config.text.vocab_size]
        yield exact("i/loader", ours, [facts["context_len"], facts["actual_tokens_per_image"], facts["vocab"]])
        if facts["num_patches_property"] != config.vision.tokens_per_tile:
            reason = "the original's property counts the tower's own grid; ours the tokens that are made"
            difference = abs(facts["num_patches_property"] - config.vision.tokens_per_tile)
            yield Case("i/loader/num_patches", float(difference), 0.0, "deviates", reason)
        path = self.root / "state_dict_keys_full.json"
        if path.is_file():
            parameters = dict(self.loaded.model.named_parameters())
            yield from name_cases("i/state_dict_keys_full", read_json(path), "llava", parameters)

    def _tokens(self) -> Iterator[Case]:
        path = self.root / "tokenize.json"
        if not path.is_file():
            return
        for key, rows in read_json(path).items():
            if key.startswith("legacy_"):
                tokenizer = load_tokenizer(self.loaded.tokenizer_folder, legacy=key == "legacy_True")
                yield from token_cases(f"i/tokenize/{key}", rows, tokenizer)

    def encoder(self, template: str, legacy: bool = False, max_length: int = 1 << 20) -> SampleEncoder:
        """What makes samples of rows, with the template's kind of images."""
        config = self.loaded.config
        image = dataclasses.replace(config.image, aspect=ASPECTS[template])
        return SampleEncoder(
            load_tokenizer(self.loaded.tokenizer_folder, legacy=legacy),
            ImageProcessor(image, config.vision),
            templates.get(template, training=True),
            max_length=max_length,
            specials=True,
        )

    def sample(self, row: dict[str, Any]) -> Sample:
        """One row of internvl_data.json."""
        roles = {"human": "user", "gpt": "assistant"}
        messages = [Message(roles[item["from"]], item["value"]) for item in row["conversations"]]
        root = self.folder / "images"
        images = [str(root / row["image"])] if row.get("image") else []
        return Sample(
            messages=tuple(messages), images=tuple(images), id=row["id"], where=row["id"], image_root=str(root)
        )

    def _dataset(self) -> Iterator[Case]:
        for key, rows in self.dataset.items():
            template, _, legacy = key.partition("_legacy_")
            if not legacy:
                continue
            encoder = self.encoder(template, legacy == "True")
            for row in rows:
                label = f"i/dataset/{key}/{row['id']}"
                yield from guarded(label, self._row, label, encoder, row)
        if "modality_lengths" in self.dataset:
            yield from self._lengths()

    def _row(self, label: str, encoder: SampleEncoder, row: dict[str, Any]) -> Case:
        sample = self.sample(self.rows[row["id"]])
        ours = encoder.render(sample)
        if ours.ids == row["input_ids"] and set(row["labels"]) == {IGNORE_INDEX} != set(ours.labels):
            fault = learnt_fault(ours, encoder.tokenizer, sample.messages)
            return Case(label, 1.0, 0.0, "fail" if fault else "deviates", fault or LOST)
        return exact(label, [ours.ids, ours.labels], [row["input_ids"], row["labels"]])

    def _lengths(self) -> Iterator[Case]:
        encoder = self.encoder("v1")
        signs = [1 if row.get("image") else -1 for row in self.rows.values()]
        ours = [encoder.length(self.sample(row)) * sign for row, sign in zip(self.rows.values(), signs, strict=True)]
        same = [value > 0 for value in ours] == [value > 0 for value in self.dataset["modality_lengths"]]
        reason = "the original counts words (and 128 for any image); ours counts the positions of the merged row"
        yield Case("i/dataset/lengths", 0.0 if same else 1.0, 0.0, "deviates" if same else "fail", reason)

    def _ids_of(self, template: str, rows: np.ndarray) -> list[str] | None:
        """The samples whose ids (cut to the width) these rows hold."""
        found = []
        for ids in rows:
            fits = [
                row["id"]
                for row in self.dataset[f"{template}_legacy_False"]
                if list(ids) == (row["input_ids"] + [0] * len(ids))[: len(ids)]
            ]
            if not fits:
                return None
            found.append(fits[0])
        return found

    def _collated(self, path: Path) -> Iterator[Case]:
        template = path.stem.split("_")[1]
        data = dict(np.load(path))
        width = data["input_ids"].shape[1]
        names = self._ids_of(template, data["input_ids"])
        if names is None:
            yield Case(f"i/{path.stem}", 1.0, 0.0, "fail", "rows of no sample of dataset.json")
            return
        encoder = self.encoder(template)
        rendered = [encoder.render(self.sample(self.rows[name])) for name in names]
        for key, values, fill in (("input_ids", "ids", 0), ("labels", "labels", IGNORE_INDEX)):
            ours = [(getattr(row, values) + [fill] * width)[:width] for row in rendered]
            yield exact(f"i/{path.stem}/{key}", ours, data[key].tolist())
        mask = [[place < len(row.ids) for place in range(width)] for row in rendered]
        yield exact(f"i/{path.stem}/attention_mask", mask, data["attention_mask"].tolist())
        for number, (name, wanted) in enumerate(zip(names, data.get("images", []), strict=False)):
            if self.rows[name].get("image"):
                yield near(f"i/{path.stem}/images/{number}", self._pixels(name, template), wanted, PIXELS)

    def _pixels(self, name: str, template: str) -> np.ndarray:
        processor = self.encoder(template).processor
        return processor(load_image(self.folder / "images" / self.rows[name]["image"])).pixels[0]

    def _batch(self, name: str, expected: dict[str, np.ndarray]) -> Batch:
        """The collated batch of that name, or the one row of dataset.json whose labels come out."""
        path = self.root / f"collated_{name}.npz"
        if path.is_file():
            given = dict(np.load(path))
            return make_batch(self.loaded, given, [image[None] for image in given.pop("images")])
        template = name.split("_")[0]
        for row in self.dataset[f"{template}_legacy_False"]:
            given = {key: np.array(row[key])[None] for key in ("input_ids", "labels")}
            has_image = IMAGE_TOKEN_INDEX in row["input_ids"]
            images = [self._pixels(row["id"], template)[None]] if has_image else [np.zeros((1, 3, 1, 1), np.float32)]
            batch = make_batch(self.loaded, given, images)
            if np.array_equal(batch.plan.labels, expected["labels_mm"]):
                return batch
        raise PaddleMixError(f"{self.root}: no batch and no row fits forward_{name}.npz")

    def _generate(self) -> Iterator[Case]:
        path = self.root / "generate.npz"
        if not path.is_file():
            return
        data, facts = dict(np.load(path)), read_json(self.root / "generate.json")
        tokenizer = load_tokenizer(self.loaded.tokenizer_folder)
        for name in sorted({key.split("_")[0] for key in data if key.endswith("_sequences")}):
            part = {key.removeprefix(f"{name}_"): value for key, value in data.items() if key.startswith(f"{name}_")}
            prompt = facts["prompt" if name == "image" else f"{name}_prompt"]
            yield exact(
                f"i/generate/{name}/prompt", tokenizer.encode_with_images(prompt), part["input_ids"][0].tolist()
            )
            shown = IMAGE_TOKEN_INDEX in part["input_ids"]
            tiles = [data["image_pixel_values"] if shown else np.zeros((1, 3, 1, 1), np.float32)]
            yield from generate_cases(f"i/generate/{name}", self.loaded, part, tiles)
        text = tokenizer.decode(facts["image_new_ids"])
        yield exact("i/generate/image/text", text.strip(), facts["image_text"].strip())

    def _train(self, batches: dict[str, Batch]) -> Iterator[Case]:
        path = self.root / "train.json"
        if not path.is_file():
            return
        losses = {name: float(np.load(self.root / f"forward_{name}.npz")["loss"]) for name in batches}
        for name, facts in read_json(path).items():
            if not isinstance(facts, dict):
                continue
            first = facts["steps"][0]["loss"]
            batch = batches[min(losses, key=lambda key: abs(losses[key] - first))]
            file = self.root / f"train_{facts['stage']}_after{len(facts['steps'])}.npz"
            after = dict(np.load(file)) if file.is_file() else {}
            yield from train_cases(f"i/train/{name}", self.load(), batch, facts, after)
            silent = [key for key, norm in facts["grad_norms_step0"].items() if norm is None]
            if silent:
                yield self._trains(f"i/train/{name}/position_embedding", batch, silent)

    def _trains(self, label: str, batch: Batch, names: list[str]) -> Case:
        """What the original unfreezes without effect gets a gradient here."""
        model = self.load().model
        parameters = dict(model.named_parameters())
        chosen = {keymap.ours(name, "llava").name for name in names}
        for name, item in parameters.items():
            item.stop_gradient = name not in chosen
        model(**batch.arguments()).backward()
        grads = [parameters[name].grad for name in chosen]
        moved = all(grad is not None and float(grad.abs().max()) > 0 for grad in grads)
        reason = (
            "the original's tower runs without gradients, so tune_vit_pos_embedding changes nothing; here it trains"
        )
        return Case(label, 0.0 if moved else 1.0, 0.0, "deviates" if moved else "fail", reason)


def _rates(path: Path) -> Iterator[Case]:
    """The cosine schedule with warmup, step by step."""
    facts = read_json(path)
    for steps in sorted((key for key in facts if key.isdigit()), key=int):
        training = TrainingGroup(
            learning_rate=facts["base_lr"], warmup_ratio=facts["warmup_ratio"], lr_scheduler_type="cosine"
        )
        yield exact(f"i/lr_schedule/{steps}/warmup", warmup_steps(training, int(steps)), facts[steps]["warmup_steps"])
        schedule = build_schedule(training, int(steps))
        ours = []
        for _ in facts[steps]["lr"]:
            ours.append(schedule())
            schedule.step()
        yield near(f"i/lr_schedule/{steps}", np.array(ours), np.array(facts[steps]["lr"]), 1e-12)
