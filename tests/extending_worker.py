# SPDX-License-Identifier: Apache-2.0
"""Runs in a copy of the library to which docs/extending.md has added its toys (``tests/test_extending.py``)."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import paddle
import pytest

import paddlemix
from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.load import load_model
from paddlemix.models.llava import build_empty, init_weights
from paddlemix.ops.dispatch import facts
from paddlemix.ops.npu import library
from paddlemix.ops.runtime import Runtime
from paddlemix.settings.published.config import load_config
from paddlemix.utils.errors import BackendError, CheckpointError, DataError
from tests.checkpoint import checkpoint_kit as kit
from tests.extending_kit import ROOT, recipes
from tests.tiny import tiny_config, tiny_tokenizer_folder, write_rows

TOY = "llama.vision_tower.vision_tower."
TOWER = {"model_type": "toy_vit", "num_hidden_layers": 3, "drop_path": 0.1}


def values(model):
    return {name: value.numpy() for name, value in model.named_parameters()}


def same(one, other):
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    assert [name for name in one if not np.array_equal(one[name], other[name])] == []


def made(folder):
    """The model that a config.json describes, with drawn weights."""
    model = build_empty(load_config(folder))
    init_weights(model, seed=1)
    return model


def logits(model):
    rng = np.random.default_rng(3)
    vision = model.config.vision
    places, side = vision.tokens_per_tile, vision.image_size
    ids = rng.integers(3, 400, (1, 6 + places))
    source = np.arange(6 + places)
    source[2 : 2 + places] = 6 + places + np.arange(places)
    pixels = rng.standard_normal((1, 3, side, side)).astype(np.float32)
    arrays = (ids, source[None], np.arange(6 + places)[None])
    with paddle.no_grad():
        return model(*map(paddle.to_tensor, arrays), pixels=paddle.to_tensor(pixels)).numpy()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def llava(place):
    """A LLaVA on the toy tower in the published layout, the tower in a folder of its own: folder, model, weights."""
    root = place / "hub"
    tower = kit.write_config(root / "someone" / "toy-vit-tiny", TOWER)
    text = tiny_config()
    config = kit.llava_config(type("Model", (), {"config": text}), "someone/toy-vit-tiny")
    folder = kit.write_config(root / "liuhaotian" / "toy", {**config, "mm_vision_select_layer": -2})
    model = made(folder)
    kit.write_weights(tower, "safetensors", kit.weights_in("toy_vit", model))
    whole = kit.weights_in("llava", model)
    kit.write_weights(folder, "bin", {name: item for name, item in whole.items() if "vision_tower" not in name})
    tiny_tokenizer_folder(folder)
    return folder, model, whole


def test_the_copy_is_what_runs():
    assert Path(paddlemix.__file__).is_relative_to(ROOT)
    assert not (ROOT / ".git").exists()


@pytest.mark.parametrize("recipe", recipes())
def test_the_code_on_the_page_runs(recipe):
    space = {}
    for script in recipes()[recipe].scripts:
        exec(compile(script, f"{recipe} in docs/extending.md", "exec"), space)  # the page's own code


def test_a_tower_is_read_built_loaded_and_gives_features(llava):
    folder, model, _ = llava
    config = load_config(folder)
    assert (config.vision.model_type, config.vision.tokens_per_tile) == ("toy_vit", 4)
    assert (config.image.mean, config.image.crop_size) == ((0.5, 0.5, 0.5), 28)
    loaded = load_model(folder)
    same(values(loaded.model), values(model))
    assert loaded.report.missing == {} == loaded.report.left_over
    features = model.encode_images(paddle.ones([2, 3, 28, 28]))
    assert features.shape == [2, 4, 32]
    assert np.isfinite(logits(model)).all()
    last = values(model)
    with paddle.no_grad():
        dict(model.named_parameters())[f"{TOY}layers.2.out.bias"].set_value(paddle.ones([32]))
        model.llama.vision_tower.vision_tower.final_norm.weight.set_value(paddle.zeros([32]))
    assert np.array_equal(model.encode_images(paddle.ones([2, 3, 28, 28])).numpy(), features.numpy())
    for name, value in model.named_parameters():
        value.set_value(paddle.to_tensor(last[name]))


def test_a_language_model_begins_with_the_tower_by_its_name(llava, place, monkeypatch):
    _, model, whole = llava
    base = kit.write_config(place / "hub" / "lmsys" / "tiny", {"model_type": "llama", **kit.llama_config(model)})
    parts = ("vision_tower", "mm_projector")
    kit.write_weights(base, "bin", {name: item for name, item in whole.items() if not any(p in name for p in parts)})
    tiny_tokenizer_folder(base)
    monkeypatch.chdir(place / "hub")
    loaded = load_model(base, vision_tower="someone/toy-vit-tiny", projector="init")
    assert (loaded.config.vision.model_type, loaded.config.image.mean) == ("toy_vit", (0.5, 0.5, 0.5))
    expected = {name: value for name, value in values(model).items() if "mm_projector" not in name}
    same({name: value for name, value in values(loaded.model).items() if "mm_projector" not in name}, expected)


def test_weights_of_a_tower_start_as_described(llava):
    found = values(llava[1])
    assert (found[f"{TOY}final_norm.weight"] == 1).all()
    assert (found[f"{TOY}layers.0.norm.bias"] == 0).all()
    assert abs(found[f"{TOY}layers.1.out.weight"].std() * (32 * 6) ** 0.5 - 1) < 0.15
    assert abs(found[f"{TOY}positions"].std() / 0.02 - 1) < 0.3


def test_a_tower_is_recognised_by_its_weights_alone(llava, place):
    folder, model, whole = llava
    config = kit.llava_config(type("Model", (), {"config": load_config(folder)}), "/mnt/elsewhere/tuned")
    other = kit.write_config(place / "inside", config)
    kit.write_weights(other, "safetensors", whole)
    tiny_tokenizer_folder(other)
    loaded = load_model(other)
    assert loaded.config.vision.model_type == "toy_vit"
    same(values(loaded.model), values(model))


def test_a_tower_is_converted_there_and_back(llava, place):
    folder, model, _ = llava
    own, original, nameless = (place / "hub" / "me" / to for to in ("own", "original", "nameless"))
    convert(folder, own, "own")
    convert(own, original, "original")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "vision_tower_name": None}))
    (own / "conversion.json").unlink()  # remembers the name
    convert(own, nameless, "original")
    for found in (own, original, nameless):
        same(values(load_model(found).model), values(model))
    tower = json.loads((nameless / "vision_tower" / "config.json").read_text())
    assert (tower["model_type"], tower["num_hidden_layers"]) == ("toy_vit", 3)
    stored = (
        json.loads((place / "original" / "vision_tower" / "config.json").read_text())
        if (place / "original" / "vision_tower").is_dir()
        else TOWER
    )
    assert stored["model_type"] == "toy_vit"
    with pytest.raises(CheckpointError, match='llava-hf has no form for a vision tower of the kind "toy_vit"'):
        convert(folder, place / "hf", "llava-hf")


def test_training_names_its_layers(llava, place):
    from paddlemix.settings.run.loader import load_settings
    from paddlemix.trainer.run import finetune
    from paddlemix.trainer.stages import plan_stage

    folder = llava[0]
    data = place / "data"
    data.mkdir()
    write_rows(data)
    keys = {
        "model_name_or_path": folder, "data_path": data / "train.json", "image_folder": data,
        "output_dir": place / "adapter", "do_train": "true", "device": "cpu", "max_steps": 2,
        "per_device_train_batch_size": 2, "save_strategy": "no", "learning_rate": 0.01, "warmup_ratio": 0,
        "lora": "true", "lora_rank": 2, "lora_target_modules": json.dumps([r".*vision_tower.*\.(query|up)", "q_proj"]),
    }  # fmt: skip
    parts = [part for name, value in keys.items() for part in (f"--{name}", str(value))]
    result = finetune(load_settings(parts))
    assert result.steps == 2
    trained = load_model(place / "adapter", lora="keep")
    halves = {name for name, _ in trained.model.named_parameters() if name.endswith("lora_B")}
    layers = {f"{TOY}layers.{n}.{name}.lora_B" for n in range(3) for name in ("query", "up")}
    assert {name for name in halves if "vision_tower" in name} == layers
    assert {name for name in halves if name not in layers} == {
        f"llama.layers.{n}.self_attn.q_proj.lora_B" for n in (0, 1)
    }
    moved = {name for name, value in values(trained.model).items() if name in halves and np.abs(value).max() > 0}
    assert {name for name in halves if f"{TOY}layers.2." not in name} == moved  # layer 2 lies behind the chosen one
    whole = load_settings(
        [*parts[: parts.index("--lora")], "--tune_entire_model", "true", "--tune_vit_from_layer", "1"]
    )
    plan = plan_stage(llava[1], whole)
    chosen = {name.removeprefix(TOY).rpartition(".")[0] for name in plan.rules if name.startswith(TOY)}
    assert {name.split(".")[1] for name in chosen} == {"1"}, chosen
    assert {name.removeprefix(TOY).split(".")[1] for name in plan.idle} == {"2"}
    plan = plan_stage(llava[1], load_settings([*parts[: parts.index("--lora")], "--tune_entire_model", "true"]))
    assert {name.removeprefix(TOY).split(".")[0] for name in plan.rules if name.startswith(TOY)} == {
        "layers", "patches", "positions",
    }  # fmt: skip
    assert {f"{TOY}final_norm.weight", f"{TOY}final_norm.bias"} < set(plan.idle)


@pytest.fixture(scope="module")
def toy_lm(llava, place):
    """A LLaVA on the toy decoder, with everything inside. Its folder and its model."""
    text = {key: value for key, value in kit.llama_config(llava[1]).items() if key not in ("rope_theta",)}
    config = kit.llava_config(llava[1], "someone/toy-vit-tiny")
    config |= {"model_type": "llava_toy", "architectures": ["LlavaToyForCausalLM"], **text, "max_window_layers": 2}
    folder = kit.write_config(place / "hub" / "toy" / "llava", config)
    model = made(folder)
    kit.write_weights(folder, "safetensors", kit.weights_in("llava", model))
    tiny_tokenizer_folder(folder)
    return folder, model


def test_a_decoder_is_read_built_and_loaded(toy_lm):
    folder, model = toy_lm
    text = load_config(folder).text
    assert (text.model_type, text.tie_word_embeddings, load_config(folder).template) == (
        "toy_lm",
        True,
        "chatml_direct",
    )
    names = values(model)
    assert "lm_head.weight" not in names
    biases = {name.split(".")[4] for name in names if "self_attn" in name and name.endswith("bias")}
    assert biases == {"q_proj", "k_proj", "v_proj"}
    loaded = load_model(folder)
    same(values(loaded.model), names)
    before = logits(model)
    bias = dict(loaded.model.named_parameters())["llama.layers.0.self_attn.v_proj.bias"]
    with paddle.no_grad():
        bias.set_value(paddle.ones(bias.shape))
    assert np.abs(logits(loaded.model) - before).max() > 1e-4


def test_a_key_that_a_decoder_cannot_obey_stops_it(toy_lm, place):
    folder, _ = toy_lm
    config = json.loads((folder / "config.json").read_text())
    other = kit.write_config(place / "window", {**config, "use_sliding_window": True})
    with pytest.raises(CheckpointError, match='"use_sliding_window" is true: attention over a window is not supported'):
        load_config(other)


def test_a_decoder_is_converted_and_a_target_of_lora(toy_lm, place):
    from paddlemix.trainer.lora_targets import ALL_LINEAR, find_targets

    folder, model = toy_lm
    for to in ("own", "original"):
        convert(folder, place / f"lm-{to}", to)
        same(values(load_model(place / f"lm-{to}").model), values(model))
    beside_clip = toy_on_clip(place)  # without the config.json of another layout to remember
    convert(beside_clip, place / "lm-clip", "original")
    written = json.loads((place / "lm-clip" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("llava_toy", ["LlavaToyForCausalLM"])
    convert(beside_clip, place / "lm-hf", "llava-hf")
    body = json.loads((place / "lm-hf" / "config.json").read_text())["text_config"]
    assert (body["model_type"], body["architectures"], body["tie_word_embeddings"]) == (
        "toy_lm",
        ["ToyForCausalLM"],
        True,
    )
    layers = [name.removesuffix(".weight") for name in values(model) if name.endswith(".weight")]
    found, _ = find_targets(layers, [ALL_LINEAR])
    assert len(found) == 2 * 7


def toy_on_clip(place):
    """The toy decoder beside CLIP, which llava-hf can hold."""
    config = tiny_config(projector_type="mlp2x_gelu")
    text = dataclasses.replace(config.text, model_type="toy_lm", tie_word_embeddings=True)
    model = build_empty(config.with_changes(text=text))
    init_weights(model, seed=2)
    folder = kit.write_config(place / "on-clip", {"model_type": "paddlemix_llava", **model.config.to_dict()})
    kit.write_weights(folder, "safetensors", {name: ("float32", value) for name, value in values(model).items()})
    return tiny_tokenizer_folder(folder)


def test_a_template_holds_the_law_of_prompts_and_samples():
    from paddlemix.text import templates
    from paddlemix.text.messages import Message
    from paddlemix.text.render import render
    from paddlemix.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_tokenizer_folder())
    rounds = [("<image>\nwhat is shown?", "a red square"), ("how many?", "two")]
    messages = [Message(role, text) for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)]
    template = templates.get("toy_chat")
    sample = render(template, messages, tokenizer, answer_open=False)
    for count in (1, 3):
        prompt = render(template, messages[:count], tokenizer, answer_open=True)
        assert sample.ids[: len(prompt.ids)] == prompt.ids
    learnt = tokenizer.decode([label for label in sample.labels if label >= 0])
    assert "red square" in learnt, learnt
    assert "shown" not in learnt, learnt


def test_a_backend_of_attention_can_be_forced(llava, monkeypatch):
    folder, model, _ = llava
    pixels = paddle.randn([2, 3, 28, 28])
    expected = model.encode_images(pixels).numpy()
    monkeypatch.setenv("PADDLEMIX_ATTENTION", "toy")
    forced = load_model(folder).model
    assert np.abs(forced.encode_images(pixels).numpy() - expected).max() < 1e-5
    reason = "PADDLEMIX_ATTENTION=toy: toy wants as many key heads as query heads, not 2 and 4"
    with pytest.raises(BackendError, match=reason):  # so it was the toy that served the tower
        logits(forced)


def test_a_fused_operator_serves_where_the_plug_in_has_it(monkeypatch):
    from paddlemix.doctor import operators
    from paddlemix.ops.toy import SCALED_ADD, scaled_add

    x, y, scale = paddle.randn([2, 5, 8]), paddle.randn([2, 5, 8]), paddle.randn([8])
    expected = scaled_add(x, y, scale)
    npu = Runtime("npu", {})
    assert np.array_equal(SCALED_ADD(npu, x, y, scale), expected)  # not registered: the plain one serves
    assert "toy_scaled_add" in [finding.name for finding in operators.forms()]
    monkeypatch.setenv("PADDLEMIX_NPU_FUSED_SCALED_ADD", "1")
    with pytest.raises(BackendError, match="PADDLEMIX_NPU_FUSED_SCALED_ADD=1: the tensors are on cpu, not on an npu"):
        SCALED_ADD(Runtime.current(), x, y, scale)
    calls = []
    monkeypatch.setattr(library, "why_not", lambda name: None)
    monkeypatch.setattr(library, "run", lambda name, *given: calls.append(name) or [given[0] + given[1] * given[2]])
    assert np.array_equal(SCALED_ADD(Runtime("npu", {}), x, y, scale), expected)
    assert calls == ["toy_scaled_add"]
    assert SCALED_ADD.choose(npu, facts(x, y, scale.astype("float16"))).name == "plain"  # two dtypes


def test_a_benchmark_scores_files_and_its_score_is_read_again(place):
    from paddlemix.eval.benchmarks import benchmark_named
    from paddlemix.eval.scoring import read_score, score_files, write_score

    folder = place / "benchmark"
    folder.mkdir()
    (folder / "counts.json").write_text(json.dumps([{"question_id": n, "count": n} for n in range(3)]))
    answers = folder / "answers.jsonl"
    texts = ["0", "1, or 2", "two"]
    answers.write_text("".join(json.dumps({"question_id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    for convention, right in (("first", 2 / 3), ("only", 1 / 3)):
        found = score_files(benchmark_named("toy-count"), [answers], folder, convention=convention, resamples=2)
        assert found.score.metrics == {"accuracy": pytest.approx(right)}
    write_score(folder / "score.json", found)
    assert read_score(folder / "score.json").score.metrics == {"accuracy": pytest.approx(1 / 3)}
    (folder / "counts.json").write_text('[{"question_id": 0, "count": "3"}]')
    with pytest.raises(DataError, match=r'counts.json: /0/count: expected a whole number, got "3"'):
        benchmark_named("toy-count").questions(folder)
