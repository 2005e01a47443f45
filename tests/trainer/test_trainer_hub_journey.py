# SPDX-License-Identifier: Apache-2.0
"""From a hub name to an adapter and back: the shape of OneVision-0.5B made small, by transformers, at odd sizes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlemix.checkpoint.folders import resolve
from paddlemix.generation.load import load_chat
from paddlemix.generation.sampling import Decoding
from paddlemix.tools import convert_weights, merge_lora_params, supervised_finetune

ROOT = Path(__file__).resolve().parents[2]
MADE_BY_TRANSFORMERS = ROOT / "tests" / "data" / "onevision"
NAMES = {
    "onevision": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "interleave": "llava-hf/llava-interleave-qwen-0.5b-hf",
}
ON_A_CPU = ["--device", "cpu", "--bf16", "false", "--fp16_opt_level", "O1"]
RECIPES = ROOT / "paddlemix" / "config" / "llava"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A home in which both names are there, and rows with no, one and two pictures in ``data``."""
    for kind, name in NAMES.items():
        shutil.copytree(MADE_BY_TRANSFORMERS / kind, tmp_path / "home" / "models" / name)
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "data").mkdir()
    for number in range(6):
        files = [f"{number}-{k}.png" for k in range(number % 3)]
        for file in files:
            size = (37 + 9 * number, 51, 3)
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / "data" / file)
        talk = [
            {"from": "human", "value": "<image>\n" * len(files) + "What?"},
            {"from": "gpt", "value": "A red square."},
        ]
        rows.append({"id": str(number), "image": files, "conversations": talk})
    (tmp_path / "data" / "train.json").write_text(json.dumps(rows))
    return tmp_path


def sft(recipe: str, *flags: str) -> int:
    given = ["--data_path", "data/train.json", "--image_folder", "data", *ON_A_CPU, *flags]
    return supervised_finetune.main([str(RECIPES / f"{recipe}.json"), *given])


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_name_becomes_an_adapter_a_merged_model_and_a_folder_for_transformers(hub, kind, capsys):
    recipe = {"onevision": "onevision/lora_sft_qwen2_0_5b", "interleave": "interleave/lora_sft_qwen_0_5b"}[kind]
    assert sft(recipe, "--output_dir", "out", "--dry_run", "true") == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not Path("out").exists()
    assert sft(recipe, "--output_dir", "out", "--learning_rate", "0.05", "--max_steps", "2") == 0
    if kind == "onevision":  # the newline row has learnt, too
        assert convert_weights.main(["--src", "out", "--dst", "peft", "--to", "llava-hf"]) == 2
        assert "Merge the adapter first (paddlemix merge)" in " ".join(capsys.readouterr().err.split())
    assert merge_lora_params.main(["--lora_path", "out", "--merge_model_path", "merged"]) == 0
    assert convert_weights.main(["--src", "merged", "--dst", "back", "--to", "llava-hf"]) == 0
    said = {}
    for folder in (resolve(NAMES[kind], "model"), "out", "merged", "back"):
        chat = load_chat(str(folder), device="cpu", decoding=Decoding(max_new_tokens=8))
        files = [f"data/{name}" for name in ("5-0.png", "5-1.png")]
        said[Path(folder).name] = (chat.answer("What?", files), chat.stats.prompt_ids)
    assert said["out"] == said["merged"] == said["back"]
    name = NAMES[kind].rpartition("/")[2]
    assert said[name][0] != said["out"][0]
    assert said[name][1] == said["out"][1]


@pytest.mark.slow
def test_every_recipe_of_a_size_that_is_there_is_rehearsed_without_a_complaint(hub, caplog):
    recipes = [path for kind in NAMES for path in sorted((RECIPES / kind).glob("*.json"))]
    mine = [path for path in recipes if json.loads(path.read_text())["model_name_or_path"] in NAMES.values()]
    assert len(mine) == 3
    for path in mine:
        name = path.relative_to(RECIPES).with_suffix("").as_posix()
        assert sft(name, "--output_dir", "out", "--dry_run", "true") == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
