# SPDX-License-Identifier: Apache-2.0
"""The demo on a real language model: its wiring with a tiny random one; the whole run is slow and downloads 93 MB."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from paddlemix.checkpoint.save import save_model
from paddlemix.demo import real_data, real_run
from paddlemix.demo.model import write_start
from paddlemix.demo.real import main
from paddlemix.demo.real_run import PROMISED, QUICK, Demo
from paddlemix.demo.shapes import draw_scenes
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.commands import COMMANDS
from paddlemix.utils.errors import TrainingError
from tests.tiny import tiny_config, tiny_model

ROOT = Path(__file__).resolve().parents[2]
BYTE_BPE = ROOT / "tests" / "data" / "byte_bpe" / "qwen2"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A folder with a random language model of SmolLM2's kind: byte-level ids, tied, its template."""
    folder = tmp_path_factory.mktemp("language") / "model"
    tokenizer = load_tokenizer(BYTE_BPE)
    config = tiny_config(max_position_embeddings=1024)
    text = dataclasses.replace(config.text, vocab_size=tokenizer.vocab_size, tie_word_embeddings=True)
    config = config.with_changes(text=text, vision=None, image=None, template="smollm2", model_max_length=1024)
    save_model(folder, tiny_model(config=config), config, tokenizer)
    return folder


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing") / "model"
    write_start(folder, ["a red star"], 0)
    return folder


@pytest.fixture(scope="module")
def ran(language_model, seeing, tmp_path_factory):
    """A quick run whose commands are called in this process; the commands with their arguments."""
    called = []

    def here(verb, *parts):
        called.append((verb, *map(str, parts)))
        if importlib.import_module(COMMANDS[verb].module).main([str(part) for part in parts]):
            raise TrainingError(verb)

    out = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_run, "run", here)
        patch.setattr(real_run, "KEPT", 4)
        results = Demo(out, language_model, seeing, 0, QUICK).go(chat=False)
    return out, results, called


def test_a_quick_run_goes_through_every_part(ran):
    out, results, called = ran
    assert [verb for verb, *_ in called] == ["convert", "pretrain", "sft"]
    assert results["questions"] == QUICK.test_pictures
    assert json.loads((out / "results.json").read_text())["text_after"].keys() == real_data.FACTS.keys()
    for name in ("answers.png", "loss.png"):
        with Image.open(out / name) as image:
            image.load()


def test_the_second_stage_begins_with_the_projector_of_the_first(ran):
    from safetensors.numpy import load_file

    out, _, called = ran
    projector = out / "pretrain" / "mm_projector.safetensors"
    assert ("--pretrain_mm_mlp_adapter", str(projector)) in zip(called[-1], called[-1][1:], strict=False)
    settings = json.loads((out / "lora" / "training_settings.json").read_text())
    assert settings["lora"]
    assert settings["template"] == "smollm2"
    assert any("mm_projector" in name for name in load_file(projector))


def test_the_base_is_left_as_it_was_and_the_adapter_answers(ran, language_model):
    from paddlemix.checkpoint.folders import kind_of

    out, _, _ = ran
    assert kind_of(out / "lora") != kind_of(language_model)
    assert {path.name for path in (out / "small" / "vision_tower").iterdir()} >= {
        "config.json",
        "preprocessor_config.json",
    }


def test_every_answer_is_a_sentence_that_the_image_decides():
    (scene,) = (scene for scene, _ in zip(draw_scenes(0, "test", unseen=True), range(1), strict=False))
    shape = scene.shapes[0]
    for kind in real_data.TALK:
        for question in kind(scene):
            assert question.answer[0].isupper()
            assert question.answer.endswith(".")
            assert any(word in question.answer for word in (shape.kind, shape.colour, shape.place))


def test_no_question_without_an_image_is_both_told_and_tested():
    told, asked = (
        {question.lower().strip(" ?!.") for question in group} for group in (real_data.TOLD, real_data.FACTS)
    )
    assert 80 <= len(told) == len(real_data.TOLD)
    assert not told & asked


def test_answers_as_before_are_told_from_others(language_model, tmp_path):
    demo = Demo(tmp_path, language_model, None, 0, QUICK)
    before = {question: (f"It is {number}.", number != 3) for number, question in enumerate(real_data.FACTS)}
    after = before | {list(before)[1]: ("It is it is it is", False), list(before)[2]: ("It is.", True)}
    demo._compare(before, after)
    assert (demo.results["text_same"], demo.results["text_endless"]) == (len(before) - 2, 1)
    assert demo.results["text_rouge_l"] < 1


def test_without_the_language_model_it_says_how_to_get_it(tmp_path, capsys):
    assert main(["--language-model", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    assert 'make it with "python tools/fetch_smollm2.py' in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_full_run_keeps_its_promise_with_every_seed(tmp_path, seed):
    from tools import fetch_smollm2

    assert fetch_smollm2.main([str(tmp_path / "smollm2")]) == 0
    command = [sys.executable, "-m", "paddlemix.demo.real", "--seed", str(seed), "--out", str(tmp_path / "out"),
               "--language-model", str(tmp_path / "smollm2"), "--no-chat"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["accuracy"] >= PROMISED
    assert results["blind"] < 0.5
    assert results["facts_after"] >= results["facts_before"] - 2
    assert results["text_same"] >= 2
    assert results["text_endless"] == 0
