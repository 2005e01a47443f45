# SPDX-License-Identifier: Apache-2.0
"""doctor FOLDER: what a checkpoint is, what it lacks, what it needs; doctor --verify: every byte of it."""

import json

import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.describe import Description, describe, memory_needs, verify
from paddlemix.settings.memory import expected_memory, most_tiles
from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.tools import doctor
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_model


@pytest.fixture
def hub(tmp_path):
    return kit.hub(tmp_path, tiny_model(2), dtype="float16")


def test_a_llava_is_described_by_its_facts(hub):
    found = describe(hub["llava"])
    assert (found.exit_code, found.problems) == (0, [])
    assert found.facts["family"].startswith("LLaVA-1.5 (llama, 2 layers")
    assert found.facts["layout"] == "the original's names"
    assert found.facts["dtype"].startswith("float16")
    assert found.facts["template"] == "vicuna_v1"
    assert str(hub["clip"]) in found.facts["tower"]
    assert "4 tokens" in found.facts["images"]
    assert found.as_lines()[-1] == "  it can be loaded"


@pytest.mark.parametrize("to", ["own", "llava-hf", "paddlemix", "original"])
def test_every_layout_is_described(to, hub, tmp_path):
    found = describe(convert(hub["llava"], tmp_path / "x" / to, to).folder)
    assert found.exit_code == 0, found.problems
    assert found.facts["family"].startswith("LLaVA-1.5")


def test_adapters_and_language_models_are_described(hub, tmp_path):
    adapter = kit.peft_adapter(tmp_path / "liuhaotian" / "lora", tiny_model(2), "lmsys/tiny")
    found = describe(adapter)
    assert found.exit_code == 0, found.problems
    assert "rank 4, scale 2" in found.facts["adapter"]
    found = describe(hub["vicuna"])
    assert found.facts["family"].startswith("language model")
    assert any("pretraining makes a LLaVA of it" in text for text in found.notes)


def test_memory_of_a_tiny_model_is_told_in_megabytes():
    lines = Description(
        "folder", "kind", memory={"chat, float32": 14.04, "LoRA": 0.1, "chat, 8 bits": 0.0042}
    ).as_lines()
    assert [line.split()[-2:] for line in lines[2:5]] == [["14.0", "GB"], ["0.1", "GB"], ["4.2", "MB"]]


def test_what_is_missing_is_named_and_nothing_is_downloaded(hub, monkeypatch):
    monkeypatch.setenv("PADDLEMIX_HUB", "http://127.0.0.1:9")
    hub["clip"].rename(hub["clip"].with_name("elsewhere"))
    (hub["llava"] / "config.json").write_text(
        json.dumps({**kit.llava_config(tiny_model(2), "openai/clip-vit-large-patch14-336"), "mm_hidden_size": 1024})
    )
    found = describe(hub["llava"])
    assert found.exit_code == 1
    assert 'its vision tower "openai/clip-vit-large-patch14-336" is not on this machine' in found.problems[0]
    assert found.facts["layout"] == "the original's names"


def test_a_broken_folder_is_a_report_and_not_a_crash(hub, tmp_path):
    path = hub["llava"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    found = describe(hub["llava"])
    assert found.exit_code == 1
    assert "it is truncated" in found.problems[0]
    (tmp_path / "empty").mkdir()
    assert "no weights" in describe(tmp_path / "empty").problems[0]


def test_verify_finds_a_flipped_bit(hub, tmp_path):
    folder = convert(hub["llava"], tmp_path / "own", "own").folder
    problems, compared = verify(folder)
    assert problems == []
    assert "SHA-256" in compared
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))
    assert describe(folder).exit_code == 0  # no header tells of it
    problems, _ = verify(folder)
    assert problems == [f"{path}: its SHA-256 differs from the manifest"]


def test_verify_without_a_manifest_says_what_it_could_not_see(hub, tmp_path):
    problems, compared = verify(hub["llava"])
    assert problems == []
    assert "there is no manifest.json" in compared
    old = kit.hub(tmp_path / "bin", tiny_model(2), kind="bin")["llava"] / "pytorch_model.bin"
    data = bytearray(old.read_bytes())
    data[len(data) // 2] ^= 1
    old.write_bytes(bytes(data))
    assert "damaged" in verify(old.parent)[0][0]


def big() -> LlavaConfig:
    vision = VisionConfig(1024, 4096, 24, 16, 336, 14)
    return LlavaConfig(TextConfig(32000, 4096, 11008, 32, 32, 32), vision, ImageConfig(336, 336, "pad"))


def test_memory_of_a_7b_is_of_the_known_size():
    needs = memory_needs(big())
    # 7.06e9 numbers, and 2 * 2048 places * 32 layers * 4096 of cache.
    assert needs["chat, float32"] == pytest.approx(4 * (7.063 + 0.537), rel=2e-3)
    assert list(memory_needs(big(), {8: 10**9})) == [*list(needs)[:2], "chat, 8 bits", *list(needs)[2:]]
    assert memory_needs(big(), {8: 10**9})["chat, 8 bits"] == pytest.approx(1 + 4 * 0.537, rel=2e-3)
    assert needs["chat, bfloat16"] == pytest.approx(needs["chat, float32"] / 2)
    assert 115 < needs["full, bf16 and fp32 state"] < 145
    assert 17 < needs["LoRA of rank 128, bf16"] < 32


def test_the_estimate_of_training_is_that_of_the_recipes():
    keys = {"bf16": True, "fp16_opt_level": "O2", "amp_master_grad": True, "recompute": True, "max_length": 2048}
    settings = TrainingSettings().with_changes(**keys, per_device_train_batch_size=1)
    assert memory_needs(big())["full, bf16 and fp32 state"] == expected_memory(big(), settings, 1).total / 1e9


def test_the_estimate_counts_the_tiles_of_the_largest_picture():
    image = ImageConfig(336, 336, "anyres", "spatial_unpad", ((336, 672), (672, 672), (1008, 336)))
    assert most_tiles(big()) == 1
    assert most_tiles(big().with_changes(image=image)) == 5
    assert memory_needs(big().with_changes(image=image))["full, fp32"] > memory_needs(big())["full, fp32"]


def test_the_command_prints_text_or_json_and_its_exit_code_tells(hub, tmp_path, capsys):
    assert doctor.main([str(hub["llava"])]) == 0
    assert "LLaVA-1.5" in capsys.readouterr().out
    assert doctor.main([str(hub["llava"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["template"] == "vicuna_v1"
    assert doctor.main([str(hub["clip"])]) == 1
    capsys.readouterr()
    folder = convert(hub["llava"], tmp_path / "own", "own").folder
    assert doctor.main(["--verify", str(folder)]) == 0
    (folder / "config.json").unlink()
    assert doctor.main(["--verify", str(folder)]) == 1
    assert f"FAIL {folder / 'config.json'}: missing" in capsys.readouterr().out
    assert doctor.main(["--verify"]) == 2
