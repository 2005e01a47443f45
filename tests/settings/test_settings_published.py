# SPDX-License-Identifier: Apache-2.0
"""Published config.json files become our architecture, and nothing in them is passed over in silence."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from paddlemix.checkpoint.convert.config import hf_data, hf_processor
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.published.config import OWN_MODEL_TYPE, default_template, load_config
from paddlemix.settings.published.tower import find_tower, known_tower
from paddlemix.settings.towers.table import TOWERS
from paddlemix.utils.errors import CheckpointError, ConfigError, PaddleMixError

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
LLAVA = TEXT | {
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_vision_tower": "openai/tower",
    "mm_hidden_size": 24,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
    "use_mm_proj": True,
    "torch_dtype": "bfloat16",
}
PREPROCESSOR = {"crop_size": 28, "size": 28, "resample": 3, "do_resize": True, "do_center_crop": True}
ANYRES = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[28, 56], [56, 28]]}


class Hub:
    """A folder of models: ``hub.tower``, and ``hub.model(**changes)`` writes a LLaVA config.json."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tower = self.write("openai/tower", {"model_type": "clip", "vision_config": VISION})
        (self.tower / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))

    def write(self, name: str, config: dict) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def model(self, base: dict = LLAVA, **changes) -> Path:
        config = {key: value for key, value in (base | changes).items() if value != "REMOVED"}
        return self.write("author/model", config)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "cache"))
    return Hub(tmp_path / "hub")


def told(folder: Path, **arguments) -> str:
    with pytest.raises(PaddleMixError) as caught:
        load_config(folder, **arguments)
    return str(caught.value)


def test_the_original_layout_with_its_tower(hub):
    config = load_config(hub.model())
    assert (config.text.num_key_value_heads, config.text.rope_theta, config.text.model_type) == (2, 10000.0, "llama")
    assert (config.vision.hidden_size, config.vision.select_layer, config.vision.tokens_per_tile) == (24, -2, 16)
    assert (config.image.crop_size, config.image.aspect, config.image.merge) == (28, "pad", "flat")
    assert (config.dtype, config.projector_type, config.vision_tower_name) == ("bfloat16", "mlp2x_gelu", "openai/tower")


def test_what_the_file_leaves_out_is_as_in_the_original(hub):
    gone = dict.fromkeys(("mm_projector_type", "image_aspect_ratio", "mm_vision_select_feature"), "REMOVED")
    config = load_config(hub.model(**gone))
    assert (config.projector_type, config.image.aspect, config.image.merge) == ("linear", "square", "flat")
    assert (config.vision.select_feature, config.padding_side, config.has_image_newline) == ("patch", "right", False)


@pytest.mark.parametrize(("merge", "newline"), [("flat", False), ("spatial", False), ("spatial_unpad", True)])
def test_a_newline_exists_where_the_merge_type_unpads(hub, merge, newline):
    assert load_config(hub.model(mm_patch_merge_type=merge, **ANYRES)).has_image_newline is newline


@pytest.mark.parametrize(
    ("kind", "architecture", "family"),
    [
        ("llava", "LlavaLlamaForCausalLM", "llama"),
        ("llava_llama", "LlavaLlamaForCausalLM", "llama"),
        ("llava_llama", "LlamaForCausalLM", "llama"),
        ("llava_mistral", "LlavaMistralForCausalLM", "mistral"),
        ("llava", "LlavaMistralForCausalLM", "mistral"),
    ],
)
def test_the_language_model_follows_from_type_and_architecture(hub, kind, architecture, family):
    assert load_config(hub.model(model_type=kind, architectures=[architecture])).text.model_type == family


def test_the_template_follows_from_the_architecture_and_not_from_the_folder(hub):
    vicuna = load_config(hub.model()).text
    assert default_template(vicuna) == "vicuna_v1"
    shutil.copytree(hub.root / "author/model", hub.root / "author/llava-v1.6-mistral-34b")
    assert load_config(hub.root / "author/llava-v1.6-mistral-34b").template == "vicuna_v1"
    assert load_config(hub.model(model_type="llava_mistral")).template == "mistral_instruct"
    assert load_config(hub.model(vocab_size=64000)).template == "chatml_direct"


def test_a_language_model_alone_has_no_eyes_until_a_tower_is_given(hub):
    folder = hub.write("author/vicuna", TEXT | {"model_type": "llama"})
    assert load_config(folder).vision is None
    config = load_config(folder, tower_folder=hub.tower, overrides={"mm_projector_type": "linear", **ANYRES})
    assert (config.vision.hidden_size, config.image.aspect, config.projector_type) == (24, "anyres", "linear")


def test_our_own_folder_gives_the_same_object_back(hub):
    config = load_config(hub.model(**ANYRES)).with_changes(template="chatml_direct")
    folder = hub.write("own", {"model_type": OWN_MODEL_TYPE, **config.to_dict()})
    assert load_config(folder) == config


@pytest.mark.parametrize("part", ["text", "vision"])
def test_a_kind_that_is_not_in_the_tables_is_named_with_its_file(hub, part):
    data = load_config(hub.model()).to_dict()
    kind = data[part]["model_type"]
    data[part]["model_type"] = f"{kind}x"
    folder = hub.write("own", {"model_type": OWN_MODEL_TYPE, **data})
    text = rf'own/config.json: "{part}/model_type" is "{kind}x": unknown, did you mean "{kind}"\? \(known: .*{kind}'
    with pytest.raises(CheckpointError, match=text):
        load_config(folder)


@pytest.mark.parametrize(
    ("declared", "names", "kind"),
    [
        ("llava", ["LlavaMistralForCausalLM"], "mistral"),
        ("llava_llama", ["MistralForCausalLM"], "mistral"),
        ("llava", ["LlavaLlamaForCausalLM"], "llama"),
        ("llava_mistral", ["LlavaLlamaForCausalLM"], "mistral"),
        ("llava", ["Something"], "llama"),
        ("llava", None, "llama"),
    ],
)
def test_the_decoder_of_a_llava_is_told_by_its_type_and_its_class(hub, declared, names, kind):
    assert load_config(hub.model(model_type=declared, architectures=names)).text.model_type == kind


def test_overrides_change_what_they_name_and_none_changes_nothing(hub):
    folder = hub.model()
    assert load_config(folder, overrides={"template": None, "mm_vision_tower": None}) == load_config(folder)
    changed = load_config(folder, overrides={"template": "plain", "mm_vision_select_feature": "cls_patch"})
    assert (changed.template, changed.vision.tokens_per_tile) == ("plain", 17)


def test_an_unknown_override_comes_with_the_nearest_name(hub):
    with pytest.raises(ConfigError, match='unknown override "mm_vision_selct_layer", did you mean "mm_vision_select_l'):
        load_config(hub.model(), overrides={"mm_vision_selct_layer": -1})


# llava-hf

HF = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": {"model_type": "llama", "vocab_size": 128, "max_position_embeddings": 4096},
    "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 8},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "image_token_index": 127,
    "torch_dtype": "float16",
}


def test_a_tower_without_a_class_token_gives_all_its_rows_and_refuses_to_lose_one(hub, monkeypatch):
    tower = TOWERS.get("clip_vision_model")
    monkeypatch.setitem(TOWERS._table, tower.kind, dataclasses.replace(tower, class_token=False))
    text = told(hub.model(HF))
    assert '"vision_feature_select_strategy" is "default"' in text
    assert "without a class token; expected full" in text
    config = load_config(hub.model(HF, vision_feature_select_strategy="full"))
    assert (config.vision.select_feature, config.vision.tokens_per_tile) == ("patch", config.vision.grid**2)
    original = load_config(hub.model(mm_vision_select_feature="cls_patch"))
    assert (original.vision.select_feature, original.vision.tokens_per_tile) == ("patch", 16)
    changed = load_config(hub.model(), overrides={"mm_vision_select_feature": "cls_patch"})
    assert changed.vision.select_feature == "patch"
    written, processor = (
        hf_data(config, vocabulary=128, image_id=127, pad_id=0, dtype="float32"),
        hf_processor(config)[1],
    )
    assert written["vision_feature_select_strategy"] == processor["vision_feature_select_strategy"] == "full"
    assert processor["num_additional_image_tokens"] == 0


def test_what_text_config_leaves_out_is_the_default_of_transformers(hub):
    text = load_config(hub.model(HF)).text
    assert (text.vocab_size, text.hidden_size, text.intermediate_size, text.num_key_value_heads) == (
        128,
        4096,
        11008,
        32,
    )
    mistral = load_config(hub.model(HF, text_config={"model_type": "mistral", "vocab_size": 128})).text
    assert (mistral.intermediate_size, mistral.num_key_value_heads, mistral.sliding_window) == (14336, 8, 4096)


CHATML = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% endfor %}"
CAPITALS = "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% endfor %}"


@pytest.mark.parametrize(
    ("decoder", "kind", "file", "program", "wanted"),
    [
        ("llama", "llava", "chat_template.jinja", CHATML, "qwen_1_5"),
        ("llama", "llava", "chat_template.json", CHATML.replace("{{", "You are SmolLM.{{"), "smollm2"),
        ("llama", "llava_next", "tokenizer_config.json", CHATML, "qwen_1_5"),
        ("mistral", "llava_next", "chat_template.json", CAPITALS, "vicuna_v1"),
        ("mistral", "llava", "chat_template.json", "{{ '[INST] ' }}", "mistral_instruct"),
        ("qwen2", "llava", "chat_template.json", CHATML.replace("{{", "You are SmolLM.{{"), "smollm2"),
        ("llama", "llava", "chat_template.json", "{# no [INST] #}{{ '<|start_header_id|>' + role }}", "llama_3"),
        ("llama", "llava", "tokenizer_config.json", [{"name": "default", "template": CHATML}], "qwen_1_5"),
    ],
)
def test_turns_that_a_folder_writes_in_another_way_decide_its_template(
    hub, capsys, decoder, kind, file, program, wanted
):
    text = {"model_type": decoder, "vocab_size": 128}
    folder = hub.model(HF, model_type=kind, text_config=text)
    (folder / file).write_text(program if file.endswith("jinja") else json.dumps({"chat_template": program}))
    assert load_config(folder).template == wanted
    assert f'taken as trained with the template "{wanted}", because {file} writes turns in that way' in (
        said := " ".join(capsys.readouterr().err.split())
    )
    assert 'conv_mode=NAME or "paddlemix_template"' in said
    (folder / "config.json").write_text(
        json.dumps(HF | {"model_type": kind, "text_config": text, "paddlemix_template": "v1"})
    )
    assert load_config(folder).template == "v1"


def test_of_several_chat_templates_that_of_transformers_counts(hub):
    folder = hub.model(HF, model_type="llava", text_config={"model_type": "llama", "vocab_size": 128})
    for name, program, wanted in [
        ("chat_template.jinja", "[INST]", "mistral_instruct"),
        ("chat_template.json", CHATML, "qwen_1_5"),
        ("processor_config.json", "<|start_header_id|>", "llama_3"),
    ]:
        text = program if name.endswith("jinja") else json.dumps({"chat_template": program})
        (folder / name).write_text(text)
        assert load_config(folder).template == wanted


def test_a_chat_template_of_unknown_form_is_told(hub, capsys):
    folder = hub.model(HF, model_type="llava", text_config={"model_type": "llama", "vocab_size": 128})
    (folder / "chat_template.jinja").write_text("{# <|im_start|> #}{{ '<|user|>' + messages[0]['content'] }}")
    assert load_config(folder).template == "vicuna_v1"
    said = " ".join(capsys.readouterr().err.split())
    assert 'template "vicuna_v1", because' in said
    assert "turns in chat_template.jinja is not known here" in said
    assert 'conv_mode=NAME or "paddlemix_template"' in said


@pytest.mark.parametrize(
    ("kind", "wanted"), [("llava", "vicuna_v1"), ("llava_next", "mistral_instruct")], ids=["bakLlava", "next"]
)
def test_a_mistral_of_llava_1_5_is_asked_as_llava_1_5_is(hub, capsys, kind, wanted):
    folder = hub.model(HF, model_type=kind, text_config={"model_type": "mistral", "vocab_size": 128})
    assert load_config(folder).template == wanted
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CAPITALS if kind == "llava" else "[INST]"}))
    assert load_config(folder).template == wanted
    (folder / "chat_template.json").write_text(json.dumps({"conversation": ["", ""]}))  # PaddleNLP's file
    assert load_config(folder).template == wanted
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"126": {"content": "<pad>"}, "127": {"content": "<image>"}}},
        ),
        ("added_tokens.json", {"<image>": 127}),
        ("tokenizer.json", {"added_tokens": [{"id": 127, "content": "<image>"}], "model": {"vocab": {"a": 0}}}),
    ],
)
def test_an_image_token_with_two_ids_is_told(hub, capsys, name, content):
    folder = hub.model(HF, image_token_index=127)
    (folder / name).write_text(json.dumps(content))
    load_config(folder)
    assert not capsys.readouterr().err
    load_config(hub.model(HF, image_token_index=99))
    said = " ".join(capsys.readouterr().err.split())
    assert f'"image_token_index" is 99, but "<image>" has the id 127 in {folder / name}' in said


def test_a_sliding_window_of_null_is_no_window(hub):
    text = load_config(hub.model(HF, text_config={"model_type": "mistral", "sliding_window": None})).text
    assert text.sliding_window is None


def test_a_missing_vision_config_is_clip_large_at_336_pixels(hub):
    vision = load_config(hub.model(HF, vision_config="REMOVED")).vision
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1024, 24, 336, 14)


def test_a_onevision_file_that_is_silent_has_the_grid_tower_and_decoder_of_transformers(hub):
    config = load_config(hub.write("silent", {"model_type": "llava_onevision"}))
    vision, sides = config.vision, range(384, 2305, 384)
    assert (vision.model_type, vision.hidden_size, vision.num_hidden_layers) == ("siglip_vision_model", 1152, 26)
    assert (vision.image_size, vision.select_layer, config.text.model_type) == (384, -1, "qwen2")
    assert config.image.grid_pinpoints == tuple((width, height) for height in sides for width in sides)
    next_grid = load_config(hub.model(HF, model_type="llava_next")).image.grid_pinpoints
    assert next_grid == ((672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336))


def test_pinpoints_of_llava_next_are_turned_from_height_width_to_width_height(hub):
    config = load_config(hub.model(HF, model_type="llava_next", image_grid_pinpoints=[[28, 56], [84, 28]]))
    assert config.image.grid_pinpoints == ((56, 28), (28, 84))
    assert (config.image.aspect, config.image.merge, config.has_image_newline) == ("anyres", "spatial_unpad", True)


def test_the_full_strategy_keeps_the_class_token(hub):
    assert load_config(hub.model(HF, vision_feature_select_strategy="full")).vision.select_feature == "cls_patch"


def test_a_list_of_ids_that_end_a_text_is_read(hub):
    """As Llama-3.1's own config.json has it."""
    ends = [128001, 128008, 128009]
    assert load_config(hub.model(eos_token_id=ends)).text.eos_token_id == 128001
    assert load_config(hub.model(HF, text_config={"eos_token_id": ends})).text.eos_token_id == 128001
    assert '"eos_token_id" is []: expected an int, or a list of them' in told(hub.model(eos_token_id=[]))


def test_a_list_of_one_layer_is_that_layer_and_one_of_several_is_refused_by_name(hub):
    assert load_config(hub.model(HF, vision_feature_layer=[-1])).vision.select_layer == -1
    text = told(hub.model(HF, vision_feature_layer=[-3, -1]))
    assert '"vision_feature_layer" is [-3, -1]: features of several layers are not supported' in text
    assert '"vision_feature_layer" is ["x"]' in told(hub.model(HF, vision_feature_layer=["x"])).replace("'", '"')


# Towers


def test_the_newer_of_two_vision_configs_wins(hub):
    hub.write("openai/tower", {"model_type": "clip", "vision_config": VISION, "vision_config_dict": {"patch_size": 14}})
    assert load_config(hub.model()).vision.patch_size == 14


def test_a_tower_is_found_beside_the_model_and_in_the_cache(hub, tmp_path):
    assert find_tower(hub.root / "author/model", "openai/tower") == hub.tower
    assert find_tower(tmp_path / "elsewhere", "openai/tower") is None
    cached = tmp_path / "cache" / "models" / "openai" / "tower"
    shutil.copytree(hub.tower, cached)
    assert find_tower(tmp_path / "elsewhere", "openai/tower") == cached


def test_a_published_tower_is_known_without_its_folder(hub):
    config = load_config(hub.model(mm_vision_tower="openai/clip-vit-large-patch14-336", mm_hidden_size=1024))
    assert config.vision.image_size == config.image.crop_size == 336
    assert known_tower("openai/clip-vit-large-patch14").image_size == 224
    assert known_tower("Zery/MV-LLaVA-7B_Pretrained_vit-large224-l4").tokens_per_tile == 256
    assert known_tower("somebody/clip-vit-large-patch14-336") is None


@pytest.mark.parametrize("size", [28, {"shortest_edge": 28}, {"height": 28, "width": 28}])
def test_old_and_new_forms_of_a_size_mean_the_same(hub, size):
    text = json.dumps(PREPROCESSOR | {"crop_size": {"height": 28, "width": 28}, "size": size})
    (hub.tower / "preprocessor_config.json").write_text(text)
    image = load_config(hub.model()).image
    assert (image.crop_size, image.resize_size) == (28, 28)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"crop_size": 14}, '"crop_size" is 14, but the vision tower takes 28 pixels'),
        ({"size": {"height": 28, "width": 14}}, 'expected {"shortest_edge": N}'),
        ({"resample": 2}, '"resample" is 2: only 3 (bicubic)'),
        ({"do_center_crop": False}, '"do_center_crop" is false'),
        ({"rescale_factor": 0.5}, "expected 1/255"),
        ({"image_std": [1, 0, 1]}, "expected numbers above 0"),
        ({"image_mean": [1]}, "expected three numbers"),
    ],
)
def test_a_preprocessor_that_we_cannot_follow_is_refused(hub, changes, text):
    (hub.tower / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | changes))
    message = told(hub.model())
    assert "preprocessor_config.json" in message
    assert text in message


def test_the_image_processor_that_transformers_5_writes_into_processor_config_counts(hub):
    folder = hub.model(HF)
    file = folder / "processor_config.json"
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    file.write_text(json.dumps({"image_processor": PREPROCESSOR | {"image_mean": [0.1, 0.2, 0.3]}, "patch_size": 7}))
    assert load_config(folder).image.mean == (0.1, 0.2, 0.3)
    file.write_text(json.dumps({"image_processor": PREPROCESSOR | {"resample": 2}}))
    message = told(folder)
    assert f"{file}: " in message
    assert '"image_processor/resample" is 2: only 3 (bicubic)' in message
    file.write_text(json.dumps({"patch_size": 7}))  # transformers 4
    assert load_config(folder).image.mean == load_config(hub.model()).image.mean


ROPE = [
    ({"rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}, 5e6, None),
    ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}, 5e5,
     {"rope_type": "linear", "factor": 2.0}),
    ({"rope_parameters": {"rope_type": "default"}}, 10000.0, None),
    ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
      "rope_scaling": {"type": "linear", "factor": 2.0}}, 5e5, {"rope_type": "linear", "factor": 2.0}),
    ({"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 4}}, 2e4, {"type": "linear", "factor": 4}),
    ({"rope_scaling_type": "linear", "rope_scaling_factor": 3.0}, 10000.0, {"type": "linear", "factor": 3.0}),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, 10000.0,
     {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 512}),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 10000.0, {"type": "dynamic", "factor": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "theta", "scaling"), ROPE)
def test_rotary_settings_of_every_program_and_version(hub, changes, theta, scaling):
    text = load_config(hub.model(**changes)).text
    assert (text.rope_theta, text.rope_scaling) == (theta, scaling)


# Faults


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "\"auto_map\" is {'AutoModel': 'evil.Model'}: code from a model"),
        ({"mm_projector_type": "os.system"}, '"mm_projector_type" is "os.system": expected linear'),
        ({"mm_projector_type": "mlp0x_gelu"}, "expected linear, identity or mlpNx_gelu"),
        ({"model_type": "llava_mpt"}, '"model_type" is "llava_mpt": unknown'),
        ({"model_type": "REMOVED"}, '"model_type" is null'),
        ({"hidden_size": "REMOVED"}, '"hidden_size" is missing'),
        ({"hidden_size": "32"}, '"hidden_size" is "32": expected int, got str'),
        ({"hidden_size": 33}, '"num_attention_heads" is 4: hidden_size 33 is no multiple of it'),
        ({"num_key_value_heads": 3}, '"num_key_value_heads" is 3: num_attention_heads is 4'),
        ({"num_hidden_layers": 0}, '"num_hidden_layers" is 0: expected a number above 0'),
        ({"hidden_act": "relu"}, '"hidden_act" is "relu": only silu'),
        ({"mlp_bias": True}, '"mlp_bias" is true'),
        ({"fuse_attention_qkv": True}, "fused weights cannot be read"),
        ({"rope_scaling": {"type": "yarn"}}, '"factor" is to be a number above 0'),
        ({"rope_scaling": {"type": "longrope"}}, "expected a type of default, linear, llama3, dynamic, yarn"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 0}}, '"beta_fast" is to be a number above 0'),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 8}}, '"alpha" is not supported'),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, '"factor" is to be a number above 0'),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, '"factor" is to be a number above 0'),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, '"low_freq_factor" is to be a number'),
        ({"rope_parameters": {"rope_theta": -1.0}}, '"rope_parameters/rope_theta" is -1.0: expected a number above 0'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "only whole heads are turned"),
        (
            {
                "rope_parameters": {"rope_type": "linear", "factor": 2.0},
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            'another one stands in "rope_parameters"',
        ),
        ({"torch_dtype": "float8"}, "expected one of float32, float16, bfloat16"),
        ({"mm_vision_select_layer": "REMOVED"}, '"mm_vision_select_layer" is missing'),
        ({"mm_vision_select_layer": -5}, "layer -5 of a vision tower with 3 layers"),
        ({"mm_hidden_size": 25}, '"mm_hidden_size" is 25: the vision tower'),
        ({"mm_vision_tower": "no/where"}, '"mm_vision_tower" is "no/where": no folder of that name'),
        ({"mm_resampler_type": "perceiver"}, "resamplers are not supported"),
        ({"s2": True}, "multi-scale"),
        ({"use_mm_proj": False}, "a model without a projector"),
        ({"image_aspect_ratio": "anyres"}, '"image_grid_pinpoints" is empty'),
        ({"image_aspect_ratio": "anyres_max"}, "expected one of square, pad, anyres, anyres_max_N"),
        ({"image_grid_pinpoints": [[1]]}, "expected a list of [width, height]"),
    ],
)
def test_a_fault_names_file_key_and_value(hub, changes, text):
    folder = hub.model(**changes)
    message = told(folder)
    assert str(folder / "config.json") in message
    assert text in message


def test_a_missing_folder_and_a_missing_file_are_named(hub):
    assert "no such folder" in told(hub.root / "nowhere")
    (hub.root / "empty").mkdir()
    assert "config.json: no such file" in told(hub.root / "empty")


def test_a_broken_file_is_told_with_line_and_column(hub):
    folder = hub.model()
    (folder / "config.json").write_text('{"model_type": "llava",}')
    with pytest.raises(CheckpointError, match=r"config.json:1:23: a comma"):
        load_config(folder)


@pytest.mark.parametrize("key", ["hidden_act", "num_channels", "model_type", "patch_size"])
def test_a_tower_that_we_cannot_build_is_refused(hub, key):
    wrong = {"hidden_act": "relu", "num_channels": 1, "model_type": "dinov2", "patch_size": 29}
    hub.write("openai/tower", VISION | {"model_type": "clip_vision_model", key: wrong[key]})
    assert f'"{key}"' in told(hub.model())


# The published layouts


@pytest.mark.golden
def test_every_published_layout_is_read(golden_llava):
    folders = [path.parent for path in sorted((golden_llava / "hub").glob("*/*/config.json"))]
    models = [folder for folder in folders if json.loads((folder / "config.json").read_text())["model_type"] != "clip"]
    assert models
    for folder in models:
        config = load_config(folder)
        assert LlavaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config, folder


@pytest.mark.golden
def test_the_facts_of_published_models_arrive(golden_llava):
    for folder in (path.parent for path in (golden_llava / "hub/liuhaotian").glob("*/config.json")):
        data = json.loads((folder / "config.json").read_text())
        config = load_config(folder)
        assert config.image.aspect == data["image_aspect_ratio"]
        assert config.image.merge == data.get("mm_patch_merge_type", "flat")
        assert [list(pair) for pair in config.image.grid_pinpoints] == data.get("image_grid_pinpoints", [])
        assert config.vision.hidden_size == data["mm_hidden_size"]
        assert config.dtype == data["torch_dtype"]
