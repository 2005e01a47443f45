# SPDX-License-Identifier: Apache-2.0
"""Several adapters over one model: each answers as the chat with it does, and the model is in memory once."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from paddlemix.checkpoint.lora.adapter import save_adapter
from paddlemix.checkpoint.save import save_model
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession
from paddlemix.ops.linear import add_lora, lora_layers
from paddlemix.serve import model_worker
from paddlemix.text.tokenizer import load_tokenizer
from tests.serve.serve_kit import Running, chat, idle, image, running, words
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

QUESTION = "what is shown in this picture?"
KINDS = {
    "words": (["llama.layers.*(q_proj|v_proj|down_proj)"], {}),
    "dora": (["llama.layers.*o_proj"], {"dora": True}),
    "tower": ([".*vision_tower.*(q_proj|fc1)"], {}),
    "whole": (["llama.layers.*k_proj"], {}),
}
"""Adapters on words, with DoRA, on the tower, and one beside which a projector and the head were trained whole."""
HOW = {"device": "cpu", "lora": "keep"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, tokenizer = tmp_path_factory.mktemp("adapters"), load_tokenizer(tiny_tokenizer_folder())
    base = tiny_model(seed=2)
    save_model(root / "base", base, base.config, tokenizer)
    for number, (name, (targets, method)) in enumerate(KINDS.items()):
        model, rng = tiny_model(seed=2), np.random.default_rng(number)
        add_lora(model, targets, r=4, alpha=8, **method)
        for _, layer in lora_layers(model):
            layer.lora_B.set_value(rng.standard_normal(layer.lora_B.shape).astype(np.float32))
        if name == "whole":
            for part in (model.lm_head.weight, model.llama.mm_projector[0].weight):
                part.set_value(part + rng.standard_normal(part.shape).astype(np.float32))
        for key, parameter in model.named_parameters():
            parameter.stop_gradient = ".lora_" not in key
        keep = ("lm_head.weight",) if name == "whole" else ()
        save_adapter(root / name, model, model.config, tokenizer, base=root / "base", keep=keep)
    return root


def opened(folder: Path):
    return lambda base: Predictor.load(folder, **HOW, beside=base)


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Running]:
    adapters = {name: opened(place / name) for name in KINDS}
    with running(load=lambda: Predictor.load(place / "base", **HOW), adapters=adapters, slots=3) as found:
        yield found


IMAGES: list[list[int]] = [[], [0], [1, 2]]


def chats(folder: Path) -> list[str]:
    """The chat command's answers: there the adapter is folded into the weights."""
    predictor = Predictor.load(folder, device="cpu")
    sessions = [ChatSession(predictor, decoding=Decoding(max_new_tokens=12)) for _ in IMAGES]
    pictures = [[tiny_image(kind) for kind in kinds] for kinds in IMAGES]
    return [session.answer(QUESTION, shown) for session, shown in zip(sessions, pictures, strict=True)]


def test_each_adapter_answers_as_the_chat_with_it_also_when_all_are_asked_at_once(server: Running, place: Path) -> None:
    asked = [(name, kinds) for name in ("tiny", *KINDS) for kinds in IMAGES]
    expected = [answer for name in ("base", *KINDS) for answer in chats(place / name)]
    # Of words alone an adapter of the tower says what the model says; nothing else is alike.
    assert len(set(expected)) == len(expected) - 1

    def ask(case: tuple[str, list[int]]) -> str:
        name, kinds = case
        content = [*(image(kind) for kind in kinds), words(QUESTION)]
        status, answer, _ = server.ask({**chat(content, max_tokens=12), "model": name})
        assert (status, answer["model"]) == (200, name), answer
        return answer["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(len(asked)) as pool:
        for _ in range(2):  # the second time from what was kept of each
            assert list(pool.map(ask, asked)) == expected
    assert idle(server)


def test_what_an_adapter_does_not_change_is_in_memory_once(server: Running) -> None:
    base = dict(server.engine.predictors[""].model.named_parameters())
    for name in KINDS:
        own = dict(server.engine.predictors[name].model.named_parameters())
        separate = {key for key in own if key not in base or own[key].data_ptr() != base[key].data_ptr()}
        allowed = ("mm_projector", "lora_") + (("lm_head",) if name == "whole" else ())
        assert all(any(word in key for word in allowed) for key in separate), separate
        assert any("lora_A" in key for key in separate)


def test_adapters_are_listed_with_the_model_below_them(server: Running) -> None:
    cards = server.ask(None, "/v1/models")[1]["data"]
    assert [(card["id"], card.get("parent")) for card in cards] == [("tiny", None), *((name, "tiny") for name in KINDS)]
    assert server.ask({}, "/worker_get_status")[1]["model_names"] == ["tiny", *KINDS]
    status, answer, _ = server.ask({**chat("hello"), "model": "another"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_adapters_share_the_slots(server: Running) -> None:
    with ThreadPoolExecutor(10) as pool:
        names = ["words", "dora", "tower", "tiny", "whole"] * 2
        asked = [pool.submit(server.ask, {**chat("hello", max_tokens=40), "model": name}) for name in names]
        most = 0
        while not all(one.done() for one in asked):
            most = max(most, server.engine.call(
                lambda _: sum(lane.batch.taken for lane in server.engine._lanes.values())).result(10))  # fmt: skip
    assert [one.result()[0] for one in asked] == [200] * 10
    assert most == 3


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lora", "words"], "NAME=PATH"),
        (["--lora", "a={root}/words", "--lora", "a={root}/dora"], "the name a"),
        (["--lora", "base={root}/words"], "the name base"),
        (["--lora", "a={root}/base"], "no LoRA adapter"),
        (["--lora", "a={root}/nothing"], "nothing"),
        (["--lora", "a={root}/words", "--model-path", "{root}/dora"], "--model-path"),
        (["--lora", "a={root}/other"], "another base"),
    ],
)
def test_adapters_that_cannot_be_are_told(
    place: Path, flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (place / "other").exists():
        other, tokenizer = tiny_model(seed=3), load_tokenizer(tiny_tokenizer_folder())
        save_model(place / "other-base", other, other.config, tokenizer)
        add_lora(other, ["llama.layers.*q_proj"], r=2, alpha=4)
        save_adapter(place / "other", other, other.config, tokenizer, base=place / "other-base")
    words = [flag.format(root=place) for flag in flags]
    start = ["--model-path", str(place / "base"), "--port", "0", "--device", "cpu"]
    assert model_worker.main([*start, *words]) == 2
    assert told in capsys.readouterr().err


def test_an_adapter_of_peft_works_too(place: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(5)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {f"{name}.lora_A.weight": (2, 32), f"{name}.lora_B.weight": (32, 2)}
    save_file({key: rng.standard_normal(shape).astype(np.float32) for key, shape in halves.items()},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "x",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = Predictor.load(place / "base", **HOW)
    both = Predictor.load(tmp_path, base=str(place / "base"), **HOW, beside=base)
    merged = Predictor.load(tmp_path, base=str(place / "base"), device="cpu")
    prompt = base.prompt(base.question(QUESTION))
    assert np.allclose(both.scores([prompt]), merged.scores([prompt]), atol=1e-4)
    assert not np.allclose(both.scores([prompt]), base.scores([prompt]), atol=1e-2)
