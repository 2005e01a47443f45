# SPDX-License-Identifier: Apache-2.0
"""What was trained is what is asked: both stages of every family, and every form that a result can take."""

import json
import re
from pathlib import Path

import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.merge import merge_adapter
from paddlemix.checkpoint.save import save_model
from paddlemix.datasets.multiview import _is_folder
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.settings.run.loader import load_settings
from paddlemix.text.messages import first_turn_with_images
from paddlemix.text.model_template import template_for
from paddlemix.text.render import render
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer.run import finetune, pretrain
from paddlemix.utils.errors import CheckpointError, ConfigError
from tests.checkpoint.checkpoint_kit import clip_config, llama_config, weights_in, write_config, write_weights
from tests.tiny import tiny_image, tiny_intern_config, tiny_model, tiny_tokenizer_folder

RECIPES = Path(__file__).resolve().parents[2] / "paddlemix" / "config"
ON_A_CPU = {
    "device": "cpu",
    "bf16": "false",
    "fp16_opt_level": "O1",
    "amp_master_grad": "false",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "1",
    "max_steps": "1",
    "save_strategy": "no",
    "warmup_ratio": "0",
    "disable_tqdm": "true",
}
QUESTION, ANSWER = "what is shown?", "red square"
FAMILIES = {
    "llava_v1_5": ("llava/pretrain", "llava/v1_5/sft_argument", {}),
    "llava_v1_5_lora": ("llava/pretrain", "llava/v1_5/lora_sft_argument", {}),
    "llava_v1_6": ("llava/pretrain", "llava/v1_6/sft_argument", {"image_grid_pinpoints": "[[28, 56], [56, 56]]"}),
    "internvl_chat": ("internvl_chat/pretrain_224to336_vicuna7b", "internvl_chat/sft_224to336_vicuna7b", {}),
    "mv_llava": ("mv_llava/pretrain", "mv_llava/sft", {}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Everything that the first stages begin with, tiny and under its published name, and the recipes' data files."""
    _is_folder.cache_clear()
    root = tmp_path_factory.mktemp("stages")
    model, intern = tiny_model(max_position_embeddings=2048), tiny_model(config=tiny_intern_config())
    for name in ("clip-vit-large-patch14-336", "clip-vit-large-patch14"):
        write_weights(write_config(root / "openai" / name, clip_config(model)), "bin", weights_in("clip", model))
    keys = ["hidden_size", "intermediate_size", "num_attention_heads", "patch_size"]
    tower = {"model_type": "intern_vit_6b", "image_size": 28, "num_hidden_layers": 4, "qk_normalization": True}
    tower |= {key: getattr(intern.config.vision, key) for key in keys}
    write_weights(
        write_config(root / "OpenGVLab" / "InternViT-6B-224px", tower), "bin", weights_in("intern_vit", intern)
    )
    words = {k: v for k, v in weights_in("llava", model).items() if "vision_tower" not in k and "mm_projector" not in k}
    for name in ("vicuna-7b-v1.5", "vicuna-13b-v1.5"):
        folder = write_config(root / "lmsys" / name, {"model_type": "llama", **llama_config(model)})
        write_weights(folder, "bin", words)
        tiny_tokenizer_folder(folder)
    projector = root / "liuhaotian" / "llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"
    projector.mkdir(parents=True)
    own = {name: value for name, value in weights_in("llava", model).items() if "mm_projector" in name}
    write_weights(projector, "bin", own)
    (projector / "pytorch_model.bin").rename(projector / "mm_projector.bin")
    _write_data(root)
    return root


def _write_data(root):
    (root / "images").mkdir()
    for folder in (root, root / "images"):
        tiny_image().save(folder / "0.png")
    talk = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": ANSWER}]
    rows = json.dumps([{"id": str(index), "image": "0.png", "conversations": talk} for index in range(2)])
    names = "blip_laion_cc_sbu_558k llava_v1_5_mix665k train"
    multiview = "share4v_pretrain_multi_1246k demo_obj_pretrain share4v_finetune_mix_700k demo_obj_instruct"
    for name in (*names.split(), *(f"data/{name}" for name in multiview.split())):
        (root / f"{name}.json").parent.mkdir(exist_ok=True)
        (root / f"{name}.json").write_text(rows)


@pytest.fixture
def trained(monkeypatch):
    """The samples that were rendered since the test began."""
    found = []
    real = SampleEncoder.render

    def recorded(self, sample):
        found.append(real(self, sample))
        return found[-1]

    monkeypatch.setattr(SampleEncoder, "render", recorded)
    return found


def flags(**keys):
    return [part for name, value in keys.items() if value is not None for part in (f"--{name}", str(value))]


def asked(folder):
    """Ids and text of the prompt that the model in ``folder`` gets for the question of the rows."""
    loaded = load_model(folder)
    template = template_for(loaded.template_folder, loaded.config.template)
    messages = first_turn_with_images(QUESTION, 1, mmtag=template.mmtag)
    prompt = render(template, messages, load_tokenizer(loaded.tokenizer_folder), answer_open=True)
    return prompt.ids, prompt.text


def assert_asked_as_trained(folder, sample):
    ids, text = asked(folder)
    assert sample.ids[: len(ids)] == ids
    assert sample.text.startswith(text)
    assert sample.text[len(text) :].strip().startswith(ANSWER)


def assert_the_chat_asks_so(folder, sample):
    from paddlemix.generation.load import load_chat
    from paddlemix.generation.sampling import Decoding

    session = load_chat(str(folder), device="cpu", decoding=Decoding(max_new_tokens=1))
    session.answer(QUESTION, [tiny_image()])
    ids = list(session.stats.prompt_ids)
    assert sample.ids[: len(ids)] == ids
    assert sample.text.startswith(session.stats.prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_stage_learns_answers_to_questions_and_is_asked_so(home, tmp_path, monkeypatch, trained, family):
    first, second, more = FAMILIES[family]
    monkeypatch.chdir(home)
    keys = {**ON_A_CPU, "output_dir": tmp_path / "one", **({"tune_vit_from_layer": 0} if family == "mv_llava" else {})}
    one = pretrain(load_settings([str(RECIPES / f"{first}.json"), *flags(**keys)]))
    assert {QUESTION in sample.text for sample in trained} == {False}
    trained.clear()
    keys = {**ON_A_CPU, "model_name_or_path": one.folder, "output_dir": tmp_path / "two", "image_folder": home, **more}
    two = finetune(load_settings([str(RECIPES / f"{second}.json"), *flags(**keys)]))
    assert json.loads((two.folder / "config.json").read_text())["template"] == "v1"
    if family != "mv_llava":  # there the rows say four views
        assert_asked_as_trained(two.folder, trained[-1])
    assert trained[-1].text.count(f"USER: <image>\n{QUESTION} ASSISTANT: {ANSWER}</s>") == 1


def test_the_page_of_the_two_stages_has_both_commands_of_every_family(tmp_path, monkeypatch):
    root = RECIPES.parents[1]
    page = (root / "docs" / "two-stages.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = {}
    for verb, recipe, more in re.findall(r"^paddlemix (pretrain|sft) (\S+\.json)(.*)$", page, re.MULTILINE):
        found.setdefault(verb, []).append((recipe, load_settings([str(root / recipe), *more.split()])))
    wanted = {f"paddlemix/config/{name}.json" for pair in FAMILIES.values() for name in pair[:2]}
    published = [run for run in found["sft"] if Path(run[0]).parent.name in ("next", "interleave", "onevision")]
    found["sft"] = [run for run in found["sft"] if run not in published]
    assert wanted == {recipe for runs in found.values() for recipe, _ in runs}
    assert len(published) == 3
    assert all(run.model.model_name_or_path.startswith(("lmms-lab/", "llava-hf/")) for _, run in published)
    left = {run.training.output_dir.removeprefix("./") for _, run in found["pretrain"]}
    begun = {run.model.model_name_or_path.removeprefix("./") for _, run in found["sft"]}
    assert begun == left | {"lmsys/vicuna-7b-v1.5"}
    assert {run.model.template for _, run in found["pretrain"]} == {"plain"}
    assert {run.model.template for _, run in found["sft"]} == {"v1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of the first stage's template, rows, and a chat_template.json."""
    root = tmp_path_factory.mktemp("model")
    made = tiny_model(template="plain", vision_tower_name="acme/tower")
    write_weights(write_config(root / "acme" / "tower", clip_config(made)), "bin", weights_in("clip", made))
    save_model(root / "start", made, made.config, load_tokenizer(tiny_tokenizer_folder()))
    _write_data(root)
    # What every fine-tuning recipe of PaddleMIX gives: texts around the turns that no named template has.
    data = {"system": "Be brief.", "conversation": ["\nQ: {{user}}", "\nA: {{bot}}</s>"], "query": "\nQ: {{query}}\nA:"}
    (root / "chat_template.json").write_text(json.dumps(data))
    return root


def settings(model, output, **keys):
    return load_settings(
        flags(
            **{
                "model_name_or_path": model / "start",
                "data_path": model / "train.json",
                "image_folder": model / "images",
                "output_dir": output,
                "do_train": "true",
                **ON_A_CPU,
                **keys,
            }
        )
    )


NAMED = {"template": "llava_llama_2"}


@pytest.fixture
def in_its_folder(model, monkeypatch):
    monkeypatch.chdir(model)  # LLaVA's layout names the tower, and does not hold it


def ways(model):
    return {"file": {"chat_template": model / "chat_template.json"}, "name": NAMED}


@pytest.mark.parametrize("way", ["file", "name"])
@pytest.mark.usefixtures("in_its_folder")
def test_a_full_result_in_every_layout_is_asked_as_it_was_trained(model, tmp_path, trained, way):
    keys = {**ways(model)[way], "save_strategy": "steps", "save_steps": 1}
    full = finetune(settings(model, tmp_path / "full", **keys)).folder
    sample = trained[-1]
    said = json.loads((full / "config.json").read_text())["template"]
    assert said == ("chat_template.json" if way == "file" else "llava_llama_2")
    for folder in (full, full / "checkpoint-1"):
        assert_asked_as_trained(folder, sample)
    assert_the_chat_asks_so(full, sample)
    for to in ("original", "llava-hf", "paddlemix", "own"):
        convert(full, tmp_path / to, to)
        assert_asked_as_trained(tmp_path / to, sample)
        convert(tmp_path / to, tmp_path / f"{to}-back", "own")
        assert_asked_as_trained(tmp_path / f"{to}-back", sample)
    assert list(json.loads((tmp_path / "llava-hf" / "chat_template.json").read_text())) == ["chat_template"]


@pytest.mark.parametrize("way", ["file", "name"])
@pytest.mark.usefixtures("in_its_folder")
def test_an_adapter_in_every_layout_is_asked_as_it_was_trained(model, tmp_path, trained, way):
    keys = {**ways(model)[way], "lora": "true", "lora_rank": 2, "save_strategy": "steps", "save_steps": 1}
    adapter = finetune(settings(model, tmp_path / "lora", **keys)).folder
    sample = trained[-1]
    merged = merge_adapter(adapter, tmp_path / "merged").folder
    for folder in (adapter, adapter / "checkpoint-1", merged):
        assert_asked_as_trained(folder, sample)
    assert_the_chat_asks_so(adapter, sample)
    for to in ("original", "llava-hf", "paddlemix", "own"):
        convert(adapter, tmp_path / to, to)
        assert_asked_as_trained(tmp_path / to, sample)
    assert not (tmp_path / "llava-hf" / "chat_template.json").exists()


def test_a_run_goes_on_with_the_chat_template_that_its_model_was_trained_with(model, tmp_path, trained):
    first = finetune(settings(model, tmp_path / "a", chat_template=model / "chat_template.json")).folder
    text = trained[-1].text
    second = finetune(settings(model, tmp_path / "b", model_name_or_path=first)).folder
    assert trained[-1].text == text
    assert_asked_as_trained(second, trained[-1])
    third = finetune(settings(model, tmp_path / "c", model_name_or_path=first, template="v1")).folder
    assert trained[-1].text != text
    assert_asked_as_trained(third, trained[-1])


def test_a_projector_checkpoint_carries_the_chat_template(model, tmp_path):
    keys = dict(tune_mm_mlp_adapter="true", save_strategy="steps", save_steps=1)
    run = settings(model, tmp_path / "a", chat_template=model / "chat_template.json", **keys)
    folder = finetune(run).folder / "checkpoint-1"
    assert json.loads((folder / "chat_template.json").read_text())["system"] == "Be brief."
    assert json.loads((folder / "config.json").read_text())["template"] == "chat_template.json"


def test_rows_of_several_templates_are_told_and_the_result_is_asked_as_most_of_them(model, tmp_path, capsys):
    own = {"data_files": str(model / "train.json"), "chat_template": str(model / "chat_template.json")}
    most = {"data_files": [str(model / "train.json")] * 2}
    run = settings(model, tmp_path / "a", template="v1").with_changes(dataset={"train": [own, most]})
    folder = finetune(run).folder
    assert "several conversation templates: 4 rows with v1, 2 rows with" in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["template"] == "v1"
    assert not (folder / "chat_template.json").exists()


def eval_rows(model):
    return {"eval": [{"data_files": str(model / "train.json")}]}


@pytest.mark.parametrize(
    "keys", [{}, {"lora": "true"}, {"template": "plain"}, {"template": "v0_plain", "lora": "true"}]
)
def test_a_fine_tune_that_would_learn_captions_only_is_refused_with_keys_that_help(model, tmp_path, keys):
    with pytest.raises(ConfigError) as caught:
        finetune(settings(model, tmp_path / "out", **keys))
    name = keys.get("template", "plain")
    for remedy in ('"template": "v1"', f'write "template": "{name}" and "tune_mm_mlp_adapter": true'):
        assert remedy in str(caught.value)
    assert ('with "lora": false' in str(caught.value)) == ("lora" in keys)
    assert not (tmp_path / "out").exists()
    keys_for_loss = {"do_train": "false", "do_eval": "true", "data_path": None, "dataset": json.dumps(eval_rows(model))}
    finetune(settings(model, tmp_path / "loss", **{**keys, **keys_for_loss}))
    for more in ({"template": "v1"}, {"template": name, "tune_mm_mlp_adapter": "true", "lora": "false"}):
        finetune(settings(model, tmp_path / "".join(more), **{**keys, **more}))


def test_a_template_of_another_name_than_the_models_own_is_told(model, tmp_path, capsys):
    first = finetune(settings(model, tmp_path / "a", template="llava_llama_2")).folder
    finetune(settings(model, tmp_path / "b", model_name_or_path=first, template="v1"))
    assert f'template "v1", as the settings say; {first} was trained with llava_llama_2' in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_template_that_is_not_there_is_told_before_anything_is_written(model, tmp_path):
    broken = tmp_path / "chat.json"
    broken.write_text("{")
    for keys, words in (
        ({"template": "v11"}, '"template": unknown template "v11", did you mean "v1"'),
        ({"chat_template": tmp_path / "none.json"}, "none.json: no such file"),
        ({"chat_template": broken}, "chat.json"),
    ):
        with pytest.raises(Exception, match=words):
            finetune(settings(model, tmp_path / "out", **{"template": "v1", **keys}))
    assert not (tmp_path / "out").exists()


def test_a_model_without_its_chat_template_is_told_with_the_remedy(tmp_path):
    made = tiny_model(template="chat_template.json")
    save_model(tmp_path / "model", made, made.config, load_tokenizer(tiny_tokenizer_folder()))
    with pytest.raises(CheckpointError, match=r"was trained with a chat_template\.json.*name a template with"):
        template_for(tmp_path / "model", "chat_template.json")
