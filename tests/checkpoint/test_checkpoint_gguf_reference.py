# SPDX-License-Identifier: Apache-2.0
"""GGUF files in a prebuilt llama.cpp: the same greedy ids and the same ids of texts as ours.

``PADDLEMIX_LLAMA_CPP`` names the folder where ``npm install node-llama-cpp`` was run.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from paddlemix.checkpoint.gguf.write import convert_to_gguf
from paddlemix.checkpoint.load import load_model
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text.tokenizer import load_tokenizer
from tests.checkpoint.gguf_kit import KINDS, MISSING, made

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300), pytest.mark.skipif(MISSING, reason="no package gguf")]
WORKER = Path(__file__).with_name("llama_cpp_worker.mjs")
TEXTS = ["the cat on a mat", "a red  mat\n\n and the 123 cats", "What's it? \u4e2d\u6587 na\u00efve \U0001f468"]
NEW = 24


def in_llama_cpp(file: Path, inputs: dict, place: Path) -> dict:
    folder = os.environ.get("PADDLEMIX_LLAMA_CPP")
    if not folder:
        pytest.skip("PADDLEMIX_LLAMA_CPP names no folder with node-llama-cpp")
    (place / "inputs.json").write_text(json.dumps(inputs))
    command = ["node", str(WORKER), folder, str(file), str(place / "inputs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def greedy(folder: Path, prompts: list[list[int]], new: int) -> list[list[int]]:
    loaded = load_model(folder)
    decoding = Decoding(max_new_tokens=new, eos_ids=())
    plans = [build_plan([PlanRow(ids, [])], tokens_per_tile=loaded.config.tokens_per_tile) for ids in prompts]
    return [generate_batch(loaded.model, plan, None, decoding)[0] for plan in plans]


def require_same(ours: list[int], theirs: list[int], ends: set[int]) -> None:
    """Equal ids; llama.cpp stops at the end of a text, and may leave out the id that says so."""
    assert theirs == ours[: len(theirs)]
    assert len(theirs) == len(ours) or ends & {*theirs[-1:], ours[len(theirs)]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_model_gives_our_greedy_ids_in_llama_cpp(kind, tmp_path):
    folder = made(kind)
    convert_to_gguf(folder, tmp_path / "gguf", 32)
    tokenizer = load_tokenizer(folder)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    inputs = {"prompts": prompts, "texts": TEXTS, "new": NEW}
    found = in_llama_cpp(tmp_path / "gguf" / "model-f32.gguf", inputs, tmp_path)
    expected = greedy(folder, prompts, NEW)
    for ours, theirs in zip(expected, found["answers"], strict=True):
        require_same(ours, theirs, {tokenizer.eos_id, found["told"]["eot"]})
    assert found["ids"] == [tokenizer.encode(text, bos=False) for text in TEXTS]
    assert found["told"]["eos"] == tokenizer.eos_id
