# SPDX-License-Identifier: Apache-2.0
"""OneVision's shape (SigLIP, Qwen2, byte-level ids) is trained: LoRA on packed rows, the whole model, the tower too."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlemix.checkpoint.load import load_model
from paddlemix.generation.load import load_chat
from paddlemix.generation.sampling import Decoding
from tests.trainer.run_kit import go

FOLDER = Path(__file__).parents[1] / "data" / "onevision" / "onevision"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows with no, one and two pictures; an answer that writes a special token as text."""
    place = tmp_path_factory.mktemp("onevision")
    rng = np.random.default_rng(4)
    found = []
    for number in range(6):
        files = [f"{number}-{k}.png" for k in range(number % 3)]
        for file in files:
            size = (30 + 9 * number, 40, 3)
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(place / file)
        asked = "<image>\n" * len(files) + "What is it?"
        talk = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"Number {number} <|im_end|> red."}]
        found.append({"id": str(number), "image": files, "conversations": talk})
        if not files:
            del found[-1]["image"]
    (place / "train.json").write_text(json.dumps(found))
    return place


def test_an_adapter_is_trained_on_packed_rows_and_opens_in_the_chat(rows, tmp_path):
    result = go(rows, tmp_path / "out", model_name_or_path=FOLDER, max_steps=3, num_train_epochs=None, lora="true",
                lora_rank=4, mixtoken="true", max_length=256, strict_config="true", group_by_length="true")  # fmt: skip
    assert result.steps == 3
    files = [str(rows / name) for name in ("2-0.png", "2-1.png")]
    chat = load_chat(str(tmp_path / "out"), device="cpu", decoding=Decoding(max_new_tokens=4))
    plain = load_chat(FOLDER, device="cpu", decoding=Decoding(max_new_tokens=4))
    for asked in (files[:1], files, ()):
        chat.reset(), plain.reset()
        chat.answer("What is it?", asked), plain.answer("What is it?", asked)
        assert chat.stats.prompt_ids == plain.stats.prompt_ids
    trained, before = chat.predictor.model, plain.predictor.model
    name = "llama.mm_projector.0.weight"
    change = dict(trained.named_parameters())[name] - dict(before.named_parameters())[name]
    assert float(change.abs().max()) > 0


def test_the_whole_model_trains_with_its_tower(rows, tmp_path):
    go(rows, tmp_path / "out", model_name_or_path=FOLDER, max_steps=1, num_train_epochs=None, max_length=256,
       tune_entire_model="true", recompute="true")  # fmt: skip
    after = dict(load_model(tmp_path / "out").model.named_parameters())
    before = dict(load_model(FOLDER).model.named_parameters())
    still = [name for name, value in before.items() if bool(paddle.equal_all(value, after[name]))]
    # No feature depends on the norm behind the layers.
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in still} <= {"ln_post"}
