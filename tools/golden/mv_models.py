# SPDX-License-Identifier: Apache-2.0
"""Golden family j: MV-LLaVA's model: tower, batches with one view, four views or none, generation, training.

Its texts and what is made of its data files are family k.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.formats.source import WEIGHT_FILES, open_file
from paddlemix.checkpoint.load import Loaded, load_model
from paddlemix.settings.published.tower import pixels_for, read_tower
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import PaddleMixError
from tools.golden.case import Case, guarded, near
from tools.golden.common import (
    Batch,
    exact,
    forward_cases,
    generate_cases,
    make_batch,
    name_cases,
    read_json,
    tower_cases,
    train_cases,
)

FOLDER = "mv_llava"


def run(folder: Path) -> Iterator[Case]:
    """Every model-side case of ``folder/mv_llava``."""
    root = folder / FOLDER
    if not root.is_dir():
        return
    for path in sorted(root.glob("*/config.json")):
        if read_json(path).get("model_type") == "share4v" and _has_weights(path.parent):
            yield from guarded(f"j/{path.parent.name}", _model, folder, path.parent)
        elif "vision_config" in read_json(path):
            yield from guarded("j/image_processor", _clip, root, path.parent)


def _model(folder: Path, chat: Path) -> Iterator[Case]:
    return Golden(folder, chat).cases()


def _has_weights(folder: Path) -> bool:
    """A small copy of the data holds the tokenizer alone."""
    return any((folder / name).is_file() for name in WEIGHT_FILES)


def _clip(root: Path, folder: Path) -> Iterator[Case]:
    """The whole CLIP model that the training began with: its images."""
    path = root / "image_processor_config.json"
    if path.is_file():
        facts, vision = read_json(path), read_tower(folder)
        pixels = pixels_for(vision, [folder])
        ours = [pixels.crop_size, pixels.resize_size, list(pixels.mean), list(pixels.std), 3]
        size, crop = facts["size"]["shortest_edge"], facts["crop_size"]["height"]
        theirs = [crop, size, facts["image_mean"], facts["image_std"], facts["resample"]]
        yield exact("j/image_processor", ours, theirs)


class Golden:
    """The model, and the images of the batches whose files leave them out."""

    def __init__(self, folder: Path, chat: Path) -> None:
        self.folder, self.root, self.chat = folder, folder / FOLDER, chat
        self.loaded = self.load()
        self.files = {path.stem: dict(np.load(path)) for path in sorted(self.root.glob("*.npz"))}

    def load(self) -> Loaded:
        """The model as published."""
        return load_model(self.chat)

    def cases(self) -> Iterator[Case]:
        """Every comparison."""
        yield from guarded("j/loader", self._loader)
        yield from guarded("j/vision", self._tower)
        batches: dict[str, Batch] = {}
        for stem in [stem for stem in self.files if stem.startswith("forward_")]:
            yield from guarded(f"j/{stem}", self._forward, stem, batches)
        yield from guarded("j/generate", self._generate)
        yield from guarded("j/train", self._train, batches)

    def _forward(self, stem: str, batches: dict[str, Batch]) -> Iterator[Case]:
        expected = self.files[stem]
        batches[stem] = self._batch(stem, expected)
        return forward_cases(f"j/{stem}", self.loaded, batches[stem], self._comparable(expected))

    def _comparable(self, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        inputs = ("input_ids", "labels", "attention_mask", "images")
        return {key: value for key, value in expected.items() if key not in inputs}

    def _loader(self) -> Iterator[Case]:
        facts, config = read_json(self.root / "loader.json"), self.loaded.config
        ours = [config.model_max_length, config.vision.tokens_per_tile]
        yield exact("j/loader", ours, [facts["context_len"], facts["num_patches_property"]])
        parameters = dict(self.loaded.model.named_parameters())
        for name, form in (("main", "llava"), ("vision_saved", "clip")):
            path = self.root / f"state_dict_keys_{name}.json"
            if path.is_file():
                yield from name_cases(f"j/{path.stem}", read_json(path), form, parameters)
        path = self.root / "mm_projector.bin"
        if path.is_file():
            source = open_file(path)
            wrong = [name for name in source.infos() if not isinstance(keymap.ours(name, "llava"), keymap.Target)]
            yield exact("j/mm_projector", wrong, [])

    def _tower(self) -> Iterator[Case]:
        if "vision" not in self.files:
            return
        tower, expected = self.loaded.model.llama.vision_tower, self.files["vision"]
        with paddle.no_grad():
            yield from tower_cases("j/vision", tower.vision_tower, expected)
            ours = tower(paddle.to_tensor(expected["pixel_values"])).numpy()
        yield near("j/vision/selected", ours, expected["feature_patch"], 2e-5, 1e-4)

    def _batch(self, stem: str, expected: dict[str, np.ndarray]) -> Batch:
        places = (expected["input_ids"] == IMAGE_TOKEN_INDEX).sum(1)
        images = self._images(stem, expected)
        if places.max() > 1:
            return make_batch(self.loaded, expected, [tile[None] for tile in images.reshape(-1, *images.shape[-3:])])
        groups = images if images.ndim == 5 else images[None] if stem.startswith("forward_train") else images[:, None]
        return make_batch(self.loaded, expected, self._trimmed(expected, groups))

    def _images(self, stem: str, expected: dict[str, np.ndarray]) -> np.ndarray:
        """The file's own images, else those of the collated batch or of another batch with the same ids' shape."""
        if "images" in expected:
            return expected["images"]
        name = stem.removeprefix("forward_").removesuffix("_batch")
        if f"collated_{name}" in self.files:
            return self.files[f"collated_{name}"]["images"]
        others = [data for other, data in self.files.items() if other.startswith("forward_") and "images" in data]
        for key in ("input_ids", "inputs_embeds_shape"):
            for data in others:
                if np.array_equal(data[key], expected[key]):
                    return data["images"]
        raise PaddleMixError(f"{self.root}: no images for {stem}.npz")

    def _trimmed(self, expected: dict[str, np.ndarray], groups: Any) -> list[np.ndarray]:
        """As many tiles of each row as its merged length tells (a ragged batch holds fewer of some)."""
        if "attention_mask_mm" not in expected:
            return list(groups)
        per_tile, found = self.loaded.config.vision.tokens_per_tile, []
        for row, tiles in enumerate(groups):
            text = int(expected["attention_mask"][row].sum()) - 1
            count = (int(expected["attention_mask_mm"][row].sum()) - text) // per_tile
            seen = (expected["input_ids"][row] == IMAGE_TOKEN_INDEX).any()
            found.append(tiles[:count] if seen else tiles)
        return found

    def _generate(self) -> Iterator[Case]:
        data = self.files.get("generate", {})
        texts = read_json(self.root / "generate.json") if data else {}
        tokenizer = load_tokenizer(self.loaded.tokenizer_folder)
        views = self.files["forward_infer_4view"]["images"]
        for name in sorted({key.split("/")[0] for key in data}):
            part = {key.removeprefix(f"{name}/"): value for key, value in data.items() if key.startswith(f"{name}/")}
            places = int((part["input_ids"] == IMAGE_TOKEN_INDEX).sum())
            one = self.files["forward_infer_1view"]["images"] if places == 1 else views
            tiles = [tile[None] for tile in one[: max(places, 1)]]
            yield from generate_cases(f"j/generate/{name}", self.loaded, part, tiles)
            text = tokenizer.decode(texts[name]["new_ids"])
            yield exact(f"j/generate/{name}/text", text.strip(), texts[name]["text"].strip())

    def _train(self, batches: dict[str, Batch]) -> Iterator[Case]:
        path = self.root / "train.json"
        if not path.is_file():
            return
        losses = {stem: float(self.files[stem]["loss"]) for stem in batches if "loss" in self.files[stem]}
        for name, facts in read_json(path).items():
            if not isinstance(facts, dict):
                continue
            first = facts["steps"][0]["loss"]
            batch = batches[min(losses, key=lambda key: abs(losses[key] - first))]
            after = self.files.get(f"train_{name.split('_')[0]}_after{len(facts['steps'])}", {})
            yield from train_cases(f"j/train/{name}", self.load(), batch, facts, after)
            yield self._above(f"j/train/{name}/layers_above", batch, facts)

    def _above(self, label: str, batch: Batch, facts: dict[str, Any]) -> Case:
        """What the original unfreezes above the chosen layer gets no gradient here either."""
        model = self.load().model
        silent = {keymap.ours(name, "llava").name for name, norm in facts["grad_norms_step0"].items() if norm is None}
        for name, item in model.named_parameters():
            item.stop_gradient = not (name in silent or name.startswith("llama.mm_projector"))
        model(**batch.arguments()).backward()
        found = [name for name, item in model.named_parameters() if name in silent and item.grad is not None]
        moved = [name for name in found if float(dict(model.named_parameters())[name].grad.abs().max()) > 0]
        return exact(label, moved, [])
