# SPDX-License-Identifier: Apache-2.0
"""Converted folders in HF transformers: they load without a missing or foreign key and give our greedy ids."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.load import load_model
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.folder import processor_for
from paddlemix.generation.sampling import Decoding
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text.tokenizer import load_tokenizer
from tests.tiny import tiny_image

pytestmark = [pytest.mark.reference, pytest.mark.golden, pytest.mark.timeout(300)]
WORKER = Path(__file__).with_name("hf_worker.py")
NEW = 12


def ours(folder: Path, inputs: Path) -> list[int]:
    """Greedy ids for an image, and the inputs written for the worker."""
    loaded = load_model(folder)
    config, tokenizer = loaded.config, load_tokenizer(loaded.tokenizer_folder)
    done = processor_for(config)(tiny_image(3, (90, 60)))
    ids = tokenizer.encode_with_images("USER: <image>\nWhat is shown? ASSISTANT:")
    plan = build_plan([PlanRow(ids, [done.layout])], tokens_per_tile=config.vision.tokens_per_tile)
    spread = [
        -1 if number < 0 else number for number in ids for _ in range(len(done.layout.order) if number < 0 else 1)
    ]
    np.savez(inputs, ids=np.array(spread), pixels=done.pixels, size=np.array(done.size))
    decoding = Decoding(max_new_tokens=NEW, eos_ids=())
    return generate_batch(loaded.model, plan, done.pixels, decoding)[0]


def theirs(folder: Path, form: str, inputs: Path) -> list[int]:
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    command = [python, str(WORKER), str(folder), form, str(inputs), str(NEW)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["ids"]


def folders(golden: Path) -> list[Path]:
    names = [path.parent for path in sorted(golden.glob("hub/*/*/config.json"))]
    return [path for path in names if path.parent.name in ("liuhaotian", "llava-hf") and any(path.glob("*model*0*"))]


@pytest.mark.parametrize("form", ["llava-hf", "original"])
def test_converted_folders_give_the_same_greedy_ids_in_transformers(form, golden_llava, tmp_path):
    (tmp_path / "hub").mkdir()
    for name in ("openai", "lmsys"):
        if (golden_llava / "hub" / name).is_dir():
            (tmp_path / "hub" / name).symlink_to(golden_llava / "hub" / name)
    found = folders(golden_llava)
    assert found
    for source in found:
        target = convert(source, tmp_path / "hub" / form / source.name, form).folder
        expected = ours(source, tmp_path / "inputs.npz")
        assert ours(target, tmp_path / "again.npz") == expected, source.name
        assert theirs(target, form, tmp_path / "again.npz") == expected, source.name
