# SPDX-License-Identifier: Apache-2.0
"""A tiny model that is asked, and the demo's shapes in the format of every benchmark."""

from pathlib import Path
from typing import Any

from paddlemix.demo.benchmarks import write_benchmarks
from paddlemix.eval.items import Item, Said
from paddlemix.eval.models import Model
from tests.tiny import tiny_model, tiny_tokenizer_folder


def write_model(folder: Path, seed: int = 3) -> Path:
    """A tiny model folder with a context of 512 positions."""
    from paddlemix.checkpoint.save import save_model
    from paddlemix.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_tokenizer_folder(folder / "tokenizer"))
    model = tiny_model(seed=seed)
    save_model(folder / "model", model, model.config, tokenizer)
    return folder / "model"


def write_shapes(folder: Path, pictures: int = 6, names: tuple[str, ...] | None = None) -> dict[str, list[str]]:
    return write_benchmarks(folder, 0, pictures, names)


class EchoAsker:
    """Stands for a model: an answer is the order of its batch and what was asked, so that batches can be told apart."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.batches: list[list[str]] = []
        self.stop_after = stop_after

    def length(self, item: Item) -> int:
        return len(item.turns[0].text) * 7 % 31

    def ask(self, items: list[Item]) -> list[list[Said]]:
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            raise StopError
        self.batches.append([str(item.turns[0].key) for item in items])
        together = "+".join(self.batches[-1])
        return [[Said(f"{turn.key} of {together}") for turn in item.turns] for item in items]


class StopError(Exception):
    """Stands for a kill."""


def cpu(path: Path, **opening: Any) -> Model:
    return Model(str(path), {"device": "cpu", **opening})
