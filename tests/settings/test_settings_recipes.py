# SPDX-License-Identifier: Apache-2.0
"""Every recipe that is shipped passes the loader; InternVL-Chat's hold the numbers of the original's scripts."""

import json
import re
from pathlib import Path

import pytest

from paddlemix.settings.run.loader import load_settings
from paddlemix.text import templates

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "paddlemix" / "config"
CLUSTER = ROOT / "config" / "cluster"
DEMO = CONFIG / "demo"
"""The recipes of the demo train the models that it draws, on its own data, with the template of their folders."""
PATHS = sorted(path for path in CONFIG.rglob("*.json") if DEMO not in path.parents)
RECIPES = [str(path.relative_to(CONFIG)) for path in PATHS]
INTERNVL = [
    f"internvl_chat/{stage}_{size}_vicuna{width}.json"
    for stage in ("pretrain", "sft", "lora_sft")
    for size in ("224to336", "448")
    for width in ("7b", "13b")
]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_passes_the_loader(name):
    settings = load_settings([str(CONFIG / name)])
    assert settings.training.do_train
    assert settings.model.template is None or settings.model.template in templates.TEMPLATES


EVERY = [CONFIG / name for name in RECIPES] + sorted((CONFIG.parents[1] / "config" / "cluster").rglob("*.json"))


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_names_the_template_that_it_trains_with(path):
    template = load_settings([str(path)]).model.template
    captions = templates.get(template, training=True).images_only
    assert captions == path.name.startswith("pretrain")


def test_the_recipes_of_the_demo_pass_the_loader():
    assert len(list(DEMO.glob("*.json"))) == 5
    for path in DEMO.glob("*.json"):
        data = load_settings([str(path)]).data
        assert "demo_out/" in str((data.image_folder, data.dataset))


def test_all_recipes_of_internvl_chat_are_there():
    assert set(INTERNVL) <= set(RECIPES)


@pytest.mark.parametrize("name", INTERNVL)
def test_internvl_chat_trains_as_its_scripts_do(name):
    settings = load_settings([str(CONFIG / name)])
    model, data, training = settings.model, settings.data, settings.training
    assert (training.warmup_ratio, training.lr_scheduler_type, training.weight_decay) == (0.03, "cosine", 0.0)
    assert (training.num_train_epochs, training.max_grad_norm) == (1, 1.0)
    assert (training.bf16, training.recompute, training.save_steps, training.save_total_limit) == (True, True, 1000, 3)
    first = "/pretrain" in name
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * 8
    assert batch == (256 if first else 128)
    assert (model.template, data.image_aspect_ratio) == (("plain", "square") if first else ("v1", "pad"))
    assert training.group_by_modality_length != first
    assert training.learning_rate == {True: 1e-3, False: 2e-4 if model.lora else 2e-5}[first]
    if first:
        assert model.vision_tower == "OpenGVLab/InternViT-6B-" + ("448px" if "_448_" in name else "224px")
        assert (model.mm_vision_select_layer, model.mm_projector_type) == (-4, "mlp2x_gelu")
        assert model.tune_mm_mlp_adapter


def test_a_second_stage_goes_on_from_the_result_of_the_first():
    for name in INTERNVL:
        if "/sft" in name:
            first = load_settings([str(CONFIG / name.replace("/sft", "/pretrain"))])
            assert load_settings([str(CONFIG / name)]).model.model_name_or_path == first.training.output_dir


PICTURE_TOKENS = {
    "mv_llava": 256,  # a view: CLIP-L/14 at 224 pixels
    "internvl_chat.*448": 1024,  # InternViT-6B at 448
    "internvl_chat": 576,  # at 336
    "llava": 576,  # CLIP-L/14 at 336
}
"""Feature rows of one tile, by the name of the recipe; the first that is found."""

TILES = 5
"""Most tiles of an image under anyres with LLaVA-1.6's grids: four and the image as a whole."""


def positions_needed(path: Path) -> int:
    """Merged positions of the longest row that the original trains whole.

    MV-LLaVA and InternVL-Chat cut at 2048 ids when all images of a row are still one id; LLaVA-1.5 and 1.6 cut at
    2048 and 4096 positions with the image in them.
    """
    settings = load_settings([str(path)])
    newer = {"next": 8192, "interleave": 32768, "onevision": 32768}  # model_max_length of LLaVA-NeXT's scripts
    if path.parent.name in newer:
        return newer[path.parent.name]
    tokens = next(count for name, count in PICTURE_TOKENS.items() if re.search(name, str(path.relative_to(ROOT))))
    if settings.data.image_aspect_ratio == "anyres":
        assert settings.data.max_length - TILES * tokens > 1000, "room for the text"
        return 4096
    entries = (settings.data.dataset or {}).get("train", [])
    several = settings.data.single_view_repeat if any(entry.get("name") == "mv_dataset" for entry in entries) else 1
    before = re.search("mv_llava|internvl", path.stem + path.parent.name)
    return 2048 - 1 + several * tokens if before else 2048


@pytest.mark.parametrize("path", [*PATHS, *CLUSTER.rglob("*.json")], ids=lambda path: path.stem)
def test_a_shipped_recipe_has_room_for_the_pictures_and_the_text_of_its_data(path):
    length = load_settings([str(path)]).data.max_length
    assert positions_needed(path) <= length < 1.05 * positions_needed(path)


@pytest.mark.parametrize("path", [*PATHS, *CLUSTER.rglob("*.json")], ids=lambda path: path.stem)
def test_the_image_folder_of_the_command_is_that_of_every_data_set(path):
    settings = load_settings([str(path), "--image_folder", "images"])
    entries = (settings.data.dataset or {}).get("train", [])
    assert [entry["image_folder"] for entry in entries if entry.get("image_folder")] == []
    assert not [note for note in settings.notes if "image_folder" in note]


@pytest.mark.parametrize(("folders", "share"), [(["a", "b"], ""), (["a", None], " on 1 of 2 data sets")])
def test_an_image_folder_that_data_sets_do_not_take_is_noted(tmp_path, folders, share):
    entries = [{"data_files": "rows.json"} | ({"image_folder": folder} if folder else {}) for folder in folders]
    recipe = {"model_name_or_path": "m", "output_dir": "out", "do_train": True, "dataset": {"train": entries}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    settings = load_settings([str(tmp_path / "recipe.json"), "--image_folder", "images"])
    assert (
        f'image_folder has no effect{share}: the "image_folder" in the data set ("a") goes before it' in settings.notes
    )
