# SPDX-License-Identifier: Apache-2.0
"""A model folder out of which graphs are made: each part is a folder that is complete, published in one rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import paddle

from paddlemix.checkpoint.folders import GENERATION, generation_file
from paddlemix.checkpoint.load import Loaded, load_model
from paddlemix.checkpoint.save_files import config_data, write_json, write_side_files
from paddlemix.export.graphs import Saved, save_text, save_vision
from paddlemix.export.manifest import FACTS, STEMS, Facts, Part
from paddlemix.export.onnx_tower import require_packages, write_tower
from paddlemix.generation.folder import template_for
from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.model_template import CHAT_TEMPLATE, file_of
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.text.vocabulary import fit_rows
from paddlemix.utils import device as devices
from paddlemix.utils import options
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.files import publish_folder

SAMPLED = 256
"""Values of each parameter that go into the fingerprint: two trainings of one model differ in nearly all of them."""


@dataclass(frozen=True)
class Exported:
    """A part that was written: its folder, the bytes of its weights, device and dtype."""

    part: Part
    folder: Path
    nbytes: int
    device: str
    dtype: str
    onnx_difference: float | None = None
    """Of the tower as ONNX, where that was written: in onnxruntime, relative to the largest value."""


def export_model(
    path: str | Path,
    save_path: str | Path,
    parts: Sequence[Part] = ("encode_image", "encode_text"),
    *,
    device: str | None = None,
    dtype: str | None = None,
    base: str | None = None,
    vision_tower: str | None = None,
    projector: str | None = None,
    onnx: bool = False,
) -> list[Exported]:
    """Write ``save_path/encode_image`` and ``save_path/encode_text``; a part that is there already is replaced.

    ``path`` and what follows ``dtype``: as ``checkpoint.load.load_model`` takes them. ``onnx``: the image part as ONNX,
    too. ConfigError for the image part of a model that has no vision tower, and where anything else is in the way.
    """
    if onnx:
        require_packages()
    save_path = Path(save_path)
    for part in parts:
        _require_own(save_path / part)
    chosen = devices.choose(device, dtype)
    paddle.set_device(chosen.name)
    loaded = load_model(path, dtype=chosen.dtype, base=base, vision_tower=vision_tower, projector=projector)
    if loaded.model.bits in (8, 4):
        raise ConfigError(
            f"{loaded.base}: its weights have {loaded.model.bits} bits, and graphs hold whole ones; "
            "export the model that it was made of"
        )
    if loaded.config.vision is None:
        if onnx or list(parts) == ["encode_image"]:
            raise ConfigError(f"{path}: this model has no vision tower; export it with --encode_text alone")
        parts = ("encode_text",)
    tokenizer = load_tokenizer(loaded.tokenizer_folder)
    fit_rows(tokenizer, loaded.config.text.vocab_size)
    template_for(loaded.template_folder, loaded.config)  # an error here, and not in the chat with the graphs
    mark = fingerprint(loaded.model)
    done = []
    for part in sorted(parts):  # the image part first: the other one uses the model up
        difference = None
        with publish_folder(save_path / part, replace=True) as staging:
            save = save_vision if part == "encode_image" else save_text
            saved = save(loaded.model, staging / STEMS[part])
            if part == "encode_image":
                write_side_files(staging, loaded.config, None)
                difference = write_tower(staging / STEMS[part], loaded.model) if onnx else None
            else:
                _write_text_files(staging, loaded)
            facts = _facts(part, mark, chosen.kind, loaded.model.dtype, saved)
            (staging / FACTS).write_text(facts.as_json(), encoding="utf-8")
        nbytes = (save_path / part / f"{STEMS[part]}.pdiparams").stat().st_size
        done.append(Exported(part, save_path / part, nbytes, chosen.name, loaded.model.dtype, difference))
    return done


def _facts(part: Part, mark: str, device: str, dtype: str, saved: Saved) -> Facts:
    return Facts(part, mark, paddle.__version__, device, dtype, saved.inputs, saved.outputs)


def _write_text_files(staging: Path, loaded: Loaded) -> None:
    """Tokenizer, configuration, ending ids and template: all that a question needs besides the graph."""
    write_side_files(staging, loaded.config, load_tokenizer(loaded.tokenizer_folder))
    found = generation_file(loaded.folder, loaded.base)
    if found is not None:
        shutil.copyfile(found, staging / GENERATION)
    template = file_of(loaded.template_folder)
    if template is not None:
        ChatTemplate(template, str(loaded.template_folder / CHAT_TEMPLATE))
        write_json(staging / CHAT_TEMPLATE, template)


def _require_own(folder: Path) -> None:
    """ConfigError when ``folder`` holds what no export wrote (replacing it would delete it), or cannot be made."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "no permission to write there" if existing.is_dir() else "is a file"
        raise ConfigError(f"{existing}: {reason}; choose {options.current().target}")
    if (folder / FACTS).is_file() or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise ConfigError(
        f"{folder}: is there, and no export ({FACTS} is missing); choose {options.current().target} or remove it"
    )


def fingerprint(model: LlavaForCausalLM) -> str:
    """SHA-256 of the configuration and of the first values of every parameter: which model a graph is of."""
    digest = hashlib.sha256(json.dumps(config_data(model.config), sort_keys=True).encode())
    for name, parameter in sorted(model.named_parameters()):
        row = (parameter[0] if parameter.ndim > 1 else parameter).astype("float32").numpy()
        digest.update(name.encode() + row.reshape(-1)[:SAMPLED].tobytes())
    return digest.hexdigest()
