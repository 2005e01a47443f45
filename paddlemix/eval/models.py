# SPDX-License-Identifier: Apache-2.0
"""The model that is asked: where it is, how it is opened, and what of it a run depends on."""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paddlemix.checkpoint.sources import Sources, find_sources, template_folder, tokenizer_folder
from paddlemix.eval.items import Item
from paddlemix.text.messages import placed_messages, question
from paddlemix.text.render import render
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils import device
from paddlemix.utils.constants import IMAGE_TOKEN

if TYPE_CHECKING:
    from paddlemix.eval.asking import Asker

FOLDERS = ("base", "vision_tower", "projector")
WRITTEN = (".safetensors", ".bin", ".pdparams", ".json")
"""Endings of files that a model is made of."""


def model_id(path: str) -> str:
    """A model's name in answer files, as LLaVA makes it: the last part of its path, of a checkpoint the last two."""
    parts = path.rstrip("/").split("/")
    return f"{parts[-2]}_{parts[-1]}" if parts[-1].startswith("checkpoint-") and len(parts) > 1 else parts[-1]


@dataclass(frozen=True)
class Model:
    """A path or a published name, and the keywords of ``Predictor.load``."""

    path: str
    opening: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name in answer files."""
        return model_id(self.path)

    def sources(self) -> Sources:
        """Everything that the model is made of; no weight is read. CheckpointError when it is not whole."""
        return find_sources(self.path, **{name: self.opening.get(name) for name in FOLDERS})

    def settings(self) -> dict[str, Any]:
        """What of the model answers depend on: its name, its files by size and time, and how it is opened."""
        parts = self.sources().parts
        files = hashlib.sha256()
        for folder in dict.fromkeys((parts.folder, parts.base)):
            for file in sorted(folder.iterdir()):
                if file.suffix in WRITTEN and file.is_file():
                    stat = file.stat()
                    files.update(f"{file.name} {stat.st_size} {int(stat.st_mtime)}\n".encode())
        kind = (self.opening.get("device") or "").split(":")[0]
        return {
            "model_path": self.path,
            "model_files": files.hexdigest()[:16],
            "conv_mode": self.opening.get("conv_mode"),
            "device": kind,
            "dtype": self.opening.get("dtype"),
            "bits": self.opening.get("bits"),
            **{name: self.opening.get(name) for name in FOLDERS},
        }

    def open(self, max_new_tokens: int) -> "Asker":
        """Load the weights. Paddle is imported here."""
        device.before_asking(self.opening.get("device"))
        from paddlemix.eval.asking import Asker
        from paddlemix.generation.load import load_predictor

        return Asker(load_predictor(self.path, **self.opening), max_new_tokens)

    def first_prompt(self, item: Item) -> str:
        """The prompt of an item's first turn as the model gets it, without loading weights; images stay marks."""
        from paddlemix.generation.folder import template_for

        sources = self.sources()
        config = sources.config
        template = template_for(template_folder(sources.parts), config, self.opening.get("conv_mode"))
        tokenizer = load_tokenizer(tokenizer_folder(sources.parts))
        places = item.views.count(len(item.images)) if item.views else len(item.images)
        tags = config.use_im_start_end
        if item.before is not None:
            messages = placed_messages(item.before.messages, layout=template, images=places, use_im_start_end=tags)
        else:
            text = f"{IMAGE_TOKEN * places}\n{item.turns[0].text}" if item.views else item.turns[0].text
            messages = question(text, places, mmtag=template.mmtag, use_im_start_end=tags)
        return render(template, messages, tokenizer, answer_open=True).text
