"""Where a name is looked for: one rule for models, bases and towers; paths of settings and flags are written alike."""

import json
from pathlib import Path

import pytest

from paddlemix.settings.places import places, published_name, snapshot_of
from paddlemix.settings.published.tower import find_tower, known_tower, published_twins, tower_like
from paddlemix.settings.run.loader import load_settings
from paddlemix.settings.run.rules import flat_values
from paddlemix.settings.run.training import KNOWN
from paddlemix.utils.errors import ConfigError

CLIP = "openai/clip-vit-large-patch14-336"


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def tower(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_path_of_another_machine_is_found_by_its_last_part_beside_the_model(tmp_path):
    model = tmp_path / "models" / "author" / "llava"
    name = f"/mnt/other/{CLIP}"
    assert find_tower(model, name) is None
    beside = tower(tmp_path / "models" / "author" / "clip-vit-large-patch14-336")
    assert find_tower(model, name) == beside
    above = tower(tmp_path / "models" / CLIP)
    assert find_tower(model, name) == above
    inside = tower(model / "clip-vit-large-patch14-336")
    assert find_tower(model, name) == inside


def test_a_link_to_a_model_is_followed(tmp_path):
    model = tmp_path / "store" / "llava"
    model.mkdir(parents=True)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "mine"
    link.symlink_to(model)
    there = tower(tmp_path / "store" / "my-clip")
    assert find_tower(link, "/mnt/other/my-clip") == there


def test_every_link_on_the_way_to_a_model_is_followed(tmp_path):
    names = ("end", "middle", "mine")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "end" / "llava").mkdir()
    (tmp_path / "middle" / "llava").symlink_to(Path("../end/llava"))
    (tmp_path / "mine" / "llava").symlink_to(tmp_path / "middle" / "llava")
    for name in names:  # the nearest is taken
        there = tower(tmp_path / name / "my-clip")
        assert find_tower(tmp_path / "mine" / "llava", "/mnt/other/my-clip") == there


@pytest.mark.parametrize("name", ["D:\\models\\openai\\my-clip", "D:/models/my-clip", "\\\\server\\share\\my-clip\\"])
def test_a_path_of_windows_is_found_by_its_last_part(name, tmp_path):
    there = tower(tmp_path / "models" / "author" / "my-clip")
    assert find_tower(tmp_path / "models" / "author" / "llava", name) == there
    assert published_twins(name.replace("my-clip", "clip-vit-large-patch14-336")) == [CLIP]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("/mnt/weights/vision/clip-vit-large-patch14-336", CLIP),
        ("/mnt/weights/InternViT-6B-448px", "OpenGVLab/InternViT-6B-448px"),
        ("pretrained/InternViT-6B-448px", "OpenGVLab/InternViT-6B-448px"),
    ],
)
def test_a_published_twin_is_found_in_the_cache_and_known_by_its_facts(name, published, tmp_path):
    assert published_twins(name) == [published]
    assert published_twins(published) == []
    assert known_tower(name) == known_tower(published)
    assert known_tower(name).image_size == (336 if published == CLIP else 448)
    cached = tower(tmp_path / "cache" / "models" / published)
    assert find_tower(tmp_path / "model", name) == cached


def test_a_tower_of_another_owner_is_another_model():
    assert published_twins("somebody/clip-vit-large-patch14-336") == []  # another owner's model
    assert known_tower("/mnt/weights/clip") is None


def test_weights_of_a_published_tower_tell_its_architecture():
    sizes = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "image_size": 336,
    }
    assert tower_like(sizes).num_attention_heads == 16
    assert tower_like({**sizes, "num_hidden_layers": 23}) is None


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", None])
def test_the_cache_of_huggingface_hub_is_looked_through(variable, tmp_path, monkeypatch):
    root = tmp_path / "home" / ".cache" / "huggingface" / "hub"
    if variable:
        root = tmp_path / "hf" / "hub"
        monkeypatch.setenv(variable, str(root if "CACHE" in variable else root.parent))
    folder = root / "models--openai--clip-vit-large-patch14-336"
    old, new = tower(folder / "snapshots" / "aaa"), tower(folder / "snapshots" / "bbb")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("aaa\n")
    assert find_tower(tmp_path / "model", CLIP) == old
    assert snapshot_of(folder) == old
    (folder / "refs" / "main").unlink()
    assert snapshot_of(folder) in (old, new)
    assert published_name(old) == CLIP
    assert published_name(tmp_path / "x" / "clip") == "clip"


def test_models_of_one_hub_cache_find_each_other(tmp_path):
    root = tmp_path / "somewhere"
    model = tower(root / "models--liuhaotian--llava-v1.5-7b" / "snapshots" / "abc")
    clip = tower(root / f"models--{CLIP.replace('/', '--')}" / "snapshots" / "def")
    assert find_tower(model, CLIP) == clip


@pytest.mark.parametrize("name", [CLIP, CLIP.replace(".", "___"), "owner/v1.5"])
def test_the_cache_of_modelscope_is_looked_through(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    folder = tower(tmp_path / "ms" / "models" / name.replace(".", "___"))
    assert find_tower(tmp_path / "model", name) == folder


def test_each_place_is_named_once(tmp_path):
    found = places("a/b", [tmp_path / "m", tmp_path / "m"])
    assert len(found) == len(set(found))


# ---- the same spelling for every path -----------------------------------------------------------------------------


PATHS = [name for name, known in KNOWN.items() if known.facts.path]


def load(tmp_path, **keys):
    base = {"model_name_or_path": "m", "output_dir": str(tmp_path / "out"), "data_path": "d.json", "do_train": True}
    file = tmp_path / "run.json"
    keys = {**base, **keys}
    if "dataset" in keys:
        del keys["data_path"]
    file.write_text(json.dumps(keys))
    return load_settings([str(file)])


def test_every_key_that_names_a_file_or_a_folder_is_a_path():
    texts = {name: known.facts.meaning for name, known in KNOWN.items() if known.kind.base is str}
    named = {
        name
        for name, text in texts.items()
        if text.startswith(("Folder", "File", "Adapter folder", "Checkpoint folder"))
    }
    assert len(named) > 8
    assert named <= set(PATHS)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("written", ["~/x", "$HOME/x", "${HOME}/x"])
def test_home_is_the_same_in_every_path_of_the_settings(name, written, tmp_path):
    needed = {"lora_path": {"lora": True}}.get(name, {})
    settings = load(tmp_path, **{name: written}, **needed)
    value = flat_values(settings)[name]
    if name == "data_path":
        value = settings.data.dataset["train"][0]["data_files"]
    assert value == str(tmp_path / "home" / "x")


def test_paths_inside_of_dataset_are_written_alike(tmp_path):
    entry = {"data_files": ["~/a.json", "$HOME/b.json"], "image_folder": "~/p", "chat_template": "$HOME/t.json"}
    found = load(tmp_path, dataset={"train": [entry]}).data.dataset["train"][0]
    home = tmp_path / "home"
    assert found["data_files"] == [str(home / "a.json"), str(home / "b.json")]
    assert (found["image_folder"], found["chat_template"]) == (str(home / "p"), str(home / "t.json"))


def test_the_file_of_the_settings_is_a_path_too(tmp_path):
    (tmp_path / "home").mkdir()
    load(tmp_path)
    (tmp_path / "run.json").rename(tmp_path / "home" / "run.json")
    assert load_settings(["$HOME/run.json"]).model.model_name_or_path == "m"


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"output_dir": "$NOWHERE/x"}, "/output_dir"),
        ({"dataset": {"train": [{"data_files": "$NOWHERE/x"}]}}, "/dataset/train/0/data_files"),
    ],
)
def test_a_variable_that_is_not_set_names_the_key(keys, key, tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match=rf'run\.json: "{key}".*the environment variable NOWHERE is not set'):
        load(tmp_path, **keys)


# ---- LLaVA-NeXT's spellings in the settings -----------------------------------------------------------------------


def test_tiles_are_named_as_in_a_checkpoint(tmp_path):
    data = load(tmp_path, image_aspect_ratio="anyres_max_9", image_grid_pinpoints="(1x1),...,(6x6)").data
    assert (data.image_aspect_ratio, data.image_grid_pinpoints) == ("anyres_max_9", "(1x1),...,(6x6)")
    assert load(tmp_path, image_grid_pinpoints=[[28, 56]]).data.image_grid_pinpoints == ((28, 56),)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("image_aspect_ratio", "anyres_max_0", "expected one of square, pad, anyres, anyres_max_N"),
        ("image_aspect_ratio", "anyrez", 'did you mean "anyres"'),
        ("image_grid_pinpoints", "(1x1", r'expected a list of \[width, height\], or "\(1x1\),...,\(6x6\)"'),
    ],
)
def test_other_spellings_are_told_with_the_known_ones(key, value, text, tmp_path):
    with pytest.raises(ConfigError, match=text) as caught:
        load(tmp_path, **{key: value})
    assert f'run.json: "/{key}" is "{value}"' in str(caught.value)


def test_settings_turn_a_model_to_the_tiles_that_they_name():
    from paddlemix.settings.published.config import apply_overrides
    from tests.tiny import tiny_config

    changes = {"image_aspect_ratio": "anyres_max_3", "image_grid_pinpoints": "(1x1),...,(2x1)"}
    image = apply_overrides(tiny_config(), changes).image
    assert (image.aspect, image.max_tiles, image.grid_pinpoints) == ("anyres", 3, ((28, 28), (56, 28)))
    config = tiny_config().with_changes(image=image)
    assert apply_overrides(config, {"mm_patch_merge_type": "spatial_unpad"}).image.max_tiles == 3
    assert apply_overrides(config, {"image_aspect_ratio": "anyres"}).image.max_tiles is None
