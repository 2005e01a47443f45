# SPDX-License-Identifier: Apache-2.0
"""Files of every kind that anybody may have written: read, or refused with an error of ours. Never anything else."""

import copy
import functools
import json
import random
import struct
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st

from paddlemix.annotate import batch
from paddlemix.annotate.objects import ObjectImages, read_objects
from paddlemix.annotate.scripts import SCRIPTS
from paddlemix.checkpoint.formats.source import open_file, open_folder
from paddlemix.checkpoint.lora.read import read_adapter
from paddlemix.checkpoint.sources import find_sources
from paddlemix.settings.published.config import load_config
from paddlemix.settings.run.loader import load_settings
from paddlemix.text import chat_template, spm
from paddlemix.text.messages import Message
from paddlemix.text.model_template import own_template, template_for
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer import checkpointing, resuming
from paddlemix.utils import files
from paddlemix.utils.errors import DataError
from tests.checkpoint import checkpoint_kit as kit
from tests.fuzz.fuzz_kit import damaged, drawn, edit, edited, fuzz, put
from tests.text import text_tools
from tests.tiny import tiny_config, tokenizer_model

SIX = np.arange(6, dtype=np.float32).tobytes()


# ---- settings ---------------------------------------------------------------------------------------------------

SETTINGS = {
    "model_name_or_path": "m",
    "output_dir": "out",
    "dataset": [{"data": "a.json", "images": "b", "weight": 1, "chat_template": "c.json"}],
    "lora": True,
    "lora_rank": 8,
    "learning_rate": 2e-4,
    "bf16": True,
    "max_steps": 10,
    "lora_target_modules": ["q_proj"],
    "image_aspect_ratio": "pad",
    "sharding": "stage1",
}


@fuzz(edited([SETTINGS], ["model_max_length", "freeze_llm", "evaluation_strategy", "resume_from_checkpoint"]))
def test_settings(folder: Path, data: bytes) -> None:
    """A settings file of any form is accepted or told."""
    put(folder / "run.json", data)
    load_settings([str(folder / "run.json")])


# ---- configurations of models -----------------------------------------------------------------------------------


@functools.cache
def _model() -> Any:
    class Model:
        config = tiny_config()

    return Model


def _configs() -> dict[str, dict[str, Any]]:
    model = _model()
    anyres = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[28, 56], [56, 28]]}
    ranged = {"image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": "(1x1),...,(6x6)"}
    original = kit.llava_config(model, "openai/tower")
    own = {"model_type": "paddlemix_llava", **model.config.to_dict()}
    processor = {"crop_size": 28, "size": {"shortest_edge": 28}, "image_mean": [0.5, 0.5, 0.5], "do_resize": True}
    return {
        "original": original,
        "anyres": original | anyres | {"mm_patch_merge_type": "spatial_unpad"},
        "ranged": original
        | ranged
        | {"mm_projector_type": "linear", "rope_scaling": {"type": "linear", "factor": 2.0}},
        "hf": kit.hf_config(model),
        "next": kit.hf_config(model) | {"model_type": "llava_next", "image_grid_pinpoints": [[28, 56]]},
        "llama": {"model_type": "llama", **kit.llama_config(model), "rope_parameters": {"rope_type": "default"}},
        "own": own,
        "tower": kit.clip_config(model),
        "processor": processor,
    }


CONFIGS = _configs()
_MODELS = ["original", "anyres", "ranged", "hf", "next", "llama", "own"]


def _folder(root: Path, config: bytes, tower: bytes, processor: bytes) -> Path:
    (root / "openai" / "tower").mkdir(parents=True, exist_ok=True)
    put(root / "config.json", config)
    put(root / "openai" / "tower" / "config.json", tower)
    put(root / "openai" / "tower" / "preprocessor_config.json", processor)
    put(root / "preprocessor_config.json", processor)
    return root


def _json(name: str) -> bytes:
    return json.dumps(CONFIGS[name]).encode()


@fuzz(
    edited(
        [CONFIGS[name] for name in _MODELS], ["rope_scaling", "auto_map", "quantization_config", "mm_resampler_type"]
    )
)
def test_configurations(folder: Path, data: bytes) -> None:
    """A config.json of any form is accepted or told."""
    _folder(folder, data, _json("tower"), _json("processor"))
    load_config(folder)


@fuzz(
    st.tuples(edited([CONFIGS["tower"]], ["vision_config", "hidden_act"]), edited([CONFIGS["processor"]], ["resample"]))
)
def test_towers(folder: Path, data: tuple[bytes, bytes]) -> None:
    """Files of a vision tower of any form are accepted or told."""
    _folder(folder, _json("anyres"), *data)
    load_config(folder)


@fuzz(edited([CONFIGS["original"], CONFIGS["hf"]], ["_name_or_path", "vision_tower", "mm_vision_tower"]))
def test_folders_whose_weights_are_looked_for(folder: Path, data: bytes) -> None:
    """Which folders a configuration leads to is told, whatever stands for their names."""
    _folder(folder, data, _json("tower"), _json("processor"))
    if not (folder / "model.safetensors").is_file():
        kit.write_header(folder / "model.safetensors", {"model.norm.weight": kit.entry("F32", [6], 0, 24)}, SIX)
    find_sources(folder)
    own_template(folder)


# ---- weights ----------------------------------------------------------------------------------------------------

HEADER = {
    "__metadata__": {"format": "pt"},
    "model.norm.weight": kit.entry("F32", [2, 3], 0, 24),
    "lm_head.weight": kit.entry("BF16", [3, 2], 24, 36),
    "empty": kit.entry("I64", [0, 4], 36, 36),
}


@fuzz(st.tuples(edited([HEADER], ["dtype"]), st.integers(-3, 3)))
def test_safetensors(folder: Path, data: tuple[bytes, int]) -> None:
    """A safetensors header of any form is accepted or told, and what is accepted can be read."""
    header, wrong = data
    put(folder / "a.safetensors", struct.pack("<Q", max(0, len(header) + wrong * (wrong > 1))) + header + bytes(36))
    source = open_file(folder / "a.safetensors")
    for name in source.infos():
        source.read(name)


INDEX = {
    "metadata": {"total_size": 24},
    "weight_map": {"w": "a.safetensors", "v": "a.safetensors", "u": "b.safetensors"},
}


@fuzz(edited([INDEX], ["w", "x"]))
def test_indexes(folder: Path, data: bytes) -> None:
    """An index of any form is accepted or told."""
    if not (folder / "a.safetensors").is_file():
        for shard, names in (("a", "wv"), ("b", "u")):
            header = {name: kit.entry("F32", [6], 24 * at, 24 * at + 24) for at, name in enumerate(names)}
            kit.write_header(folder / f"{shard}.safetensors", header, SIX * len(names))
    put(folder / "model.safetensors.index.json", data)
    open_folder(folder)


PEFT = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "use_rslora": False,
    "base_model_name_or_path": "x", "modules_to_save": None, "init_lora_weights": True, "rank_pattern": {},
    "target_modules": ["q_proj"],
}  # fmt: skip
OURS = {
    "r": 2, "lora_alpha": 8, "lora_dropout": 0.05, "rslora": False, "base_model_name_or_path": "x",
    "base_relative_path": "../x", "base_fingerprint": {"a": [1.0, 2.0]}, "vision_tower": None, "trainable_bias": None,
}  # fmt: skip


@fuzz(st.tuples(st.booleans(), edited([PEFT, OURS], ["use_dora", "alpha_pattern", "pissa", "r", "lora_alpha"])))
def test_adapters(folder: Path, data: tuple[bool, bytes]) -> None:
    """The configuration of an adapter of any form is accepted or told."""
    ours, config = data
    place = folder / ("ours" if ours else "peft")
    if not place.is_dir():
        place.mkdir()
        layer = "model.layers.0.self_attn.q_proj"
        name = f"llama.{layer.removeprefix('model.')}." if ours else f"base_model.model.{layer}."
        ends = ("lora_A", "lora_B") if ours else ("lora_A.weight", "lora_B.weight")
        entries = {
            f"{name}{end}": kit.entry("F32", [2, 3][:: 1 - 2 * at], 24 * at, 24 * at + 24)
            for at, end in enumerate(ends)
        }
        kit.write_header(
            place / ("lora_model_state.safetensors" if ours else "adapter_model.safetensors"), entries, SIX * 2
        )
    put(place / ("lora_config.json" if ours else "adapter_config.json"), config)
    read_adapter(place)


# ---- tokenizers -------------------------------------------------------------------------------------------------

FAST = text_tools.fast_json(text_tools.model_bytes())
TOKENIZER = {
    "tokenizer_config.json": {
        "bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None, "legacy": False,
        "add_bos_token": True, "model_max_length": 2048, "padding_side": "left", "tokenizer_kind": "slow",
        "added_tokens_decoder": {"0": {"content": "<unk>"}, "420": {"content": "<x>", "special": True, "rstrip": True}},
    },
    "special_tokens_map.json": {"bos_token": "<s>", "unk_token": {"content": "<unk>"}, "pad_token": "<pad>"},
    "added_tokens.json": {"<y>": 421, "<z>": 422},
    "config.json": {"model_type": "llava", "text_config": {"model_type": "mistral"}},
}  # fmt: skip


def _one_of_tokenizer(rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(list(TOKENIZER))
    return name, edit(rng, [TOKENIZER[name]], ["unk_token"])


@fuzz(drawn(_one_of_tokenizer))
def test_tokenizer_settings(folder: Path, data: tuple[str, bytes]) -> None:
    """The JSON files beside a tokenizer.model, of any form, are accepted or told; what is accepted encodes."""
    if not (folder / "tokenizer.model").is_file():
        put(folder / "tokenizer.model", tokenizer_model())
    for name, value in TOKENIZER.items():
        put(folder / name, json.dumps(value).encode())
    put(folder / data[0], data[1])
    tokenizer = load_tokenizer(folder)
    tokenizer.encode("a <x> b")
    tokenizer.decode([1, 5, 6, 7], skip_special=True)
    str((tokenizer.pad_id, tokenizer.padding_side, tokenizer.model_max_length, tokenizer.vocab_size))


@fuzz(edited([FAST], ["truncation", "unk_token"]))
def test_tokenizer_json(folder: Path, data: bytes) -> None:
    """A tokenizer.json of any form is accepted or told."""
    put(folder / "tokenizer.json", data)
    load_tokenizer(folder)


PIECES = b"".join(
    b"\x0a" + bytes([len(body)]) + body
    for body in (
        b"\x0a\x05<unk>\x18\x02", b"\x0a\x03<s>\x18\x03", b"\x0a\x06<0x0A>\x18\x06", b"\x0a\x01a\x15\0\0\x80\xbf"
    )
) + b"\x12\x04\x18\x02\x28\x01\x1a\x02\x18\x01"  # fmt: skip
"""A model of four pieces with its trainer's and its normalizer's settings."""


@fuzz(damaged(PIECES))
def test_tokenizer_model(folder: Path, data: bytes) -> None:
    """A tokenizer.model of any form is accepted or told before native code sees it."""
    try:
        spm.read_model(data)
        spm.read_settings(data)
    except ValueError as error:  # the tokenizer names the file to it
        raise DataError(str(error) or "no reason") from error


TEMPLATE = {
    "system": "A chat. {{ system }}",
    "conversation": [
        "\nHuman: {{user}}{% if is_first %}!{% elif index > 2 %}?{% endif %}",
        "\nAssistant: {{ bot | trim }}</s>",
    ],
    "query": "\nHuman: {{query}}\nAssistant:",
}


@fuzz(edited([TEMPLATE], ["chat_template", "conversation"]))
def test_chat_templates(folder: Path, data: bytes) -> None:
    """A chat_template.json of any form is accepted or told; what is accepted writes a conversation."""
    put(folder / "chat_template.json", data)
    put(folder / "config.json", b"{}")
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    for template in (chat_template.load(folder / "chat_template.json"), template_for(folder, "chat_template.json")):
        if hasattr(template, "segments"):
            template.segments(turns, answer_open=True)


# ---- checkpoints of a run ---------------------------------------------------------------------------------------

FACTS = {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
MANIFEST = {"files": {"a": FACTS, "training_state.json": FACTS, "trainer_state.json": FACTS}}
STATE = {
    "format": 1, "global_step": 7, "schedule_step": 7, "world_size": 1, "data": "abc", "open_loss": 0.5,
    "logged_loss": 1.5, "last_logged_step": 5, "tokens": 99, "scaler": {}, "settings": {"lora": True},
    "frozen": {"a": [0.5]},
}  # fmt: skip


@fuzz(edited([MANIFEST], ["../a", "/a", "sub/a"]))
def test_manifests(folder: Path, data: bytes) -> None:
    """A manifest of any form is a checkpoint that is whole, or one that is passed over."""
    place = folder / "checkpoint-1"
    if not place.is_dir():
        place.mkdir()
        for name in MANIFEST["files"]:
            put(place / name, b"abc")
    put(place / files.MANIFEST, data)
    if checkpointing.newest_valid(folder) is not None:
        listed = json.loads(data.decode("utf-8-sig"))["files"]
        assert {"training_state.json", "trainer_state.json"} <= set(listed)
    files.read_manifest(place)


@fuzz(edited([STATE], ["epoch"]))
def test_states(folder: Path, data: bytes) -> None:
    """A training_state.json of any form is accepted or told; what is accepted can be compared with a run."""
    put(folder / checkpointing.STATE_FILE, data)
    state = checkpointing.read_state(folder)
    resuming.require_same_run(state, load_settings(["--model_name_or_path", "m"]), 1, range(12), folder)


# ---- batch tools ------------------------------------------------------------------------------------------------

RECORDS = [{"image_pth": f"{number}.png", "n": number} for number in range(5)]
ANSWERS = [{"caption": "x", "score": 5}, {"caption": "y", "score": None, "unknown": {"score": "odd"}}]
LINES = [
    {"settings": {"seed": 0, "batch_size": 2, "objects": 5}},
    {"batch": 0, "records": [RECORDS[0] | ANSWERS[0], RECORDS[1] | ANSWERS[1]]},
    {"batch": 1, "records": [RECORDS[2] | {"error": "no image"}, RECORDS[3] | ANSWERS[0]]},
]


def _journal(rng: random.Random) -> bytes:
    lines = [json.dumps(line).encode() for line in LINES]
    at = rng.randrange(3)
    lines[at] = edit(rng, [LINES[at]], ["batch", "settings"]).replace(b"\n", b" ")
    return b"\n".join(lines) + rng.choice((b"\n", b"", b"\n\0\0"))


@fuzz(drawn(_journal))
def test_journals(folder: Path, data: bytes) -> None:
    """A journal of any form leads to the records of all objects, in their order, or is no journal of this run."""
    job = batch.Job(
        SCRIPTS["syn"], ObjectImages(folder, sheet=2), RECORDS, folder / "out.json", {"seed": 0}, 2, whole=True
    )
    put(job.journal, data)
    with mock.patch("os.fsync"):  # a hundred thousand waits for the disk
        found = batch.run(job, lambda script, objects, numbers: [["a", "good"] for _ in numbers], lambda _: None)
    assert [{key: record[key] for key in ("image_pth", "n")} for record in found] == RECORDS


@fuzz(st.tuples(st.sampled_from(("o.json", "o.jsonl")), edited([copy.deepcopy(RECORDS), RECORDS[0]], ["image_path"])))
def test_objects(folder: Path, data: tuple[str, bytes]) -> None:
    """A list of objects of any form is accepted or told."""
    put(folder / data[0], data[1])
    read_objects(folder / data[0], "image_pth")
