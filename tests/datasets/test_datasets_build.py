# SPDX-License-Identifier: Apache-2.0
"""The data of a run from its settings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paddlemix.datasets.build import build_datasets, order_of
from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.run.loader import load_settings
from paddlemix.settings.run.training import TrainingGroup
from paddlemix.utils.errors import ConfigError, DataError

CONFIG = LlavaConfig(
    TextConfig(448, 32, 64, 2, 4, 2),
    VisionConfig(32, 64, 2, 4, image_size=28, patch_size=14),
    ImageConfig(28, 28, "pad"),
    padding_side="left",
)
ROWS = [
    {"image": "a.png", "conversations": [["<image>\nwhat is this?", "a red square"]]},
    {"conversations": [["why?", "a circle"]]},
    {"image": "b.png", "conversations": [["<image>\nwhat is this?", "two"]]},
]


@pytest.fixture
def run(tmp_path: Path, pictures: Path, tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))

    def make(world: int = 1, before: object = None, config: LlavaConfig = CONFIG, **keys: object):
        keys = {
            "model_name_or_path": "model",
            "output_dir": "out",
            "image_folder": str(pictures),
            "do_train": True,
            "per_device_train_batch_size": 1,
            "dataset": {"train": [{"name": "chatml_dataset", "data_files": "rows.json"}]},
            **keys,
        }
        (tmp_path / "run.json").write_text(json.dumps(keys))
        settings = load_settings([str(tmp_path / "run.json")])
        return build_datasets(settings, config, tokenizer, world=world, before=before)

    return make


def test_a_run_gets_its_rows_its_collator_and_a_drawn_order(run):
    data = run()
    assert len(data.train) == 3
    assert data.eval is None
    assert sorted(data.order(0)) == [0, 1, 2]
    batch = data.collator([data.train[0], data.train[1]])
    assert "starts" not in batch
    assert batch["pixels"].shape == (1, 3, 28, 28)


def test_data_path_and_dataset_give_the_same_rows(run):
    one, other = run(), run(dataset=None, data_path="rows.json")
    assert list(one.train.samples) == list(other.train.samples)


def test_train_and_eval_entries_keep_their_own_folder_and_template(run, tmp_path):
    template = {"conversation": ["Q: {{ user }}\n", "A: {{ bot }}</s>"], "query": "Q: {{ query }}\nA: "}
    (tmp_path / "chat.json").write_text(json.dumps(template))
    (tmp_path / "elsewhere").mkdir()
    entry = {"data_files": ["rows.json", "rows.json"], "image_folder": "elsewhere", "chat_template": "chat.json"}
    parts = {"train": [{"data_files": "rows.json"}, entry], "eval": [entry]}
    data = run(dataset=parts, do_eval=True, check_images="none")
    assert len(data.train) == 9
    assert len(data.eval) == 6
    assert data.train.samples[3].images == ("elsewhere/a.png",)
    assert data.train.encoder.render(data.train.samples[4]).text == "Q: why?\nA: a circle</s>"
    assert data.train.encoder.render(data.train.samples[1]).text.startswith("A chat between")


@pytest.mark.parametrize("key", ["group_by_length", "group_by_modality_length"])
def test_grouping_gives_an_order_of_all_rows(run, key):
    data = run(**{key: True})
    assert sorted(data.order(0)) == [0, 1, 2]
    assert data.order(0) == run(**{key: True}).order(0)


class Lengths:
    """4,000 rows of LLaVA's mixture: most with an image and much longer, the others shorter and more mixed."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        pictured = rng.random(4000) < 0.9
        texts = rng.lognormal(5, 0.9, 4000)
        self.lengths = np.where(pictured, 600 + texts, texts).clip(8, 2048).astype(np.int64)
        self.modality_lengths = np.where(pictured, self.lengths, -self.lengths)

    def __len__(self) -> int:
        return 4000


@pytest.mark.parametrize("key", ["group_by_length", "group_by_modality_length"])
@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_every_grouping_key_saves_padding(key: str, world: int, batch_size: int):
    rows = Lengths()

    def useful(**keys: bool) -> float:
        training = TrainingGroup(per_device_train_batch_size=batch_size, **keys)
        batches = rows.lengths[np.array(order_of(training, rows, world)(0))].reshape(-1, batch_size)
        return batches.sum() / (batches.max(axis=1) * batch_size).sum()

    grouped, drawn = useful(**{key: True}), useful()
    assert 1 - grouped < 0.6 * (1 - drawn)


def test_a_batch_without_a_picture_has_a_black_tile(run):
    data = run()
    pixels = data.collator([data.train[1]])["pixels"]
    assert pixels.shape == (1, 3, 28, 28)
    assert not pixels.any()


def test_too_few_rows_for_the_processes_are_an_error(run):
    with pytest.raises(DataError, match="3 training rows for 4 processes"):
        run(world=4)


def test_an_unknown_data_set_name_is_an_error(run):
    with pytest.raises(ConfigError, match='data set "coco_vqa" is not known'):
        run(dataset={"train": [{"name": "coco_vqa", "data_files": "rows.json"}]})


def test_skipped_rows_are_listed_beside_the_result(run, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS * 34, {"conversations": []}]))
    data = run(on_bad_sample="skip")
    assert len(data.train) == 102
    (line,) = (tmp_path / "out" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["where"] == "rows.json: /102"
    with pytest.raises(DataError, match=r"rows\.json: /102/conversations: empty"):
        run(on_bad_sample="error")


def before(data):
    """What a checkpoint would keep of the rows."""
    from paddlemix.datasets.resumed import rows_of

    return rows_of(data.train)


@pytest.mark.parametrize("keys", [{}, {"group_by_length": True}, {"mixtoken": True, "max_length": 150}])
def test_rows_that_were_taken_out_leave_the_numbers_the_order_and_the_packs_of_the_others(run, tmp_path, keys):
    rows = [{**row, "conversations": [[question, f"{answer} {number}"]]}
            for number in range(4) for row in ROWS for question, answer in row["conversations"]]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    straight = run(skip_limit=0.5, **keys)
    kept = before(straight)
    gone = (0, 4, 5, 11)
    (tmp_path / "rows.json").write_text(json.dumps([row for number, row in enumerate(rows) if number not in gone]))
    resumed = run(before=kept, skip_limit=0.5, **keys)
    assert len(resumed.train) == len(straight.train)
    assert [resumed.order(epoch) for epoch in (0, 1)] == [straight.order(epoch) for epoch in (0, 1)]
    assert resumed.train.fingerprint == straight.train.fingerprint
    assert (before(resumed).digests == kept.digests).all()
    packed = keys.get("mixtoken", False)
    for index in range(len(straight.train)):
        numbers = straight.train.groups[index] if packed else [index]
        whole = straight.train.dataset if packed else straight.train
        wanted = [whole[number].ids for number in numbers if number not in gone]
        found = resumed.train[index]
        assert (found is None) == (not wanted)
        assert found is None or found.ids.tolist() == [token for ids in wanted for token in ids]


@pytest.mark.parametrize("keys", [{}, {"group_by_length": True}, {"mixtoken": True, "max_length": 150}])
def test_a_mixture_that_goes_on_draws_what_it_would_have_drawn(run, tmp_path, keys):
    rows = [{"conversations": [["why?", f"because of {number}"]]} for number in range(12)]
    for name in ("rows", "more"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    keys["dataset"] = {"train": [{"data_files": "rows.json", "repeat": 0.5}, {"data_files": "more.json", "repeat": 2}]}
    straight = run(skip_limit=0.5, **keys)
    if not keys.get("mixtoken"):
        assert len(straight.train) == len(straight.order(0)) == 6 + 24
    kept = before(straight)
    (tmp_path / "rows.json").write_text(json.dumps(rows[1:]))
    resumed = run(before=kept, skip_limit=0.5, **keys)
    assert [resumed.order(epoch) for epoch in range(3)] == [straight.order(epoch) for epoch in range(3)]
    assert resumed.train.fingerprint == straight.train.fingerprint
    assert any("rows of an epoch: 30 (rows.json 6 of 12, more.json 24 of 12)" in note for note in straight.notes)


def test_more_rows_gone_than_may_be_bad_are_an_error_that_names_the_setting(run, tmp_path):
    kept = before(run())
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:1]))
    with pytest.raises(ConfigError, match='2 of 3 training rows .* are gone, more than 1%.*"skip_limit"'):
        run(before=kept)


@pytest.mark.parametrize("rows", [[*ROWS, ROWS[0]], ROWS[::-1], [ROWS[0], {**ROWS[1], "conversations": [["a", "b"]]}]])
def test_rows_that_are_new_moved_or_changed_are_other_data(run, tmp_path, rows):
    kept = before(run())
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert run(before=kept).train.fingerprint != kept.fingerprint


def test_lengths_are_those_of_the_first_part_whatever_became_of_a_picture(run, tmp_path, pictures):
    shutil.copytree(pictures, tmp_path / "own")
    keys = dict(group_by_length=True, image_folder=str(tmp_path / "own"), on_bad_sample="skip")
    kept = before(run(**keys))
    (tmp_path / "own" / "a.png").unlink()
    resumed = run(before=kept, **keys)
    assert resumed.train.lengths.tolist() == abs(kept.lengths).tolist()
    assert resumed.train[0] is None


@pytest.mark.parametrize("repaired", ["image", "text"])
def test_a_repaired_row_that_its_pack_has_no_room_for_is_left_out_and_named(run, tmp_path, pictures, repaired):
    shutil.copytree(pictures, tmp_path / "own")
    rows = [
        {"image": f"{name}.png", "conversations": [["<image>\nwhat is this?", "red"]]}
        for name in ("a", "new", "a", "b")
    ]
    rows[-1]["conversations"][0][1] = "blue " * 400  # a pack of its own
    mended = json.loads(json.dumps(rows).replace("red", "red, and so on and on" if repaired == "text" else "red", 2))
    mended[0] = rows[0]
    image = replace(CONFIG.image, aspect="anyres", merge="spatial_unpad", grid_pinpoints=((56, 56), (28, 56)))
    keys = dict(config=replace(CONFIG, image=image), skip_limit=0.5, image_folder=str(tmp_path / "own"),
                on_bad_sample="skip")  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    if repaired == "text":
        shutil.copy(pictures / "b.png", tmp_path / "own" / "new.png")
    keys["max_length"] = int(run(**keys, max_length=4000).train.lengths[:3].sum())
    first = run(**keys, mixtoken=True)
    assert sorted(map(sorted, first.train.groups)) == [[0, 1, 2], [3]]
    (tmp_path / "rows.json").write_text(json.dumps(mended))
    shutil.copy(pictures / "b.png", tmp_path / "own" / "new.png")
    resumed = run(before=before(first), **keys, mixtoken=True)
    assert resumed.train.groups == first.train.groups
    number = next(number for number, group in enumerate(first.train.groups) if 0 in group)
    assert resumed.train[number].length == run(**keys).train.lengths[[0, 2]].sum()
    (note,) = (note for note in resumed.notes if note not in first.notes)
    assert note.startswith("longer than in the first part of the run: 1 row; ")
    assert "rows.json: /1" in note


def test_the_limit_of_skipped_rows_is_a_setting(run, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS, {"conversations": []}, {"conversations": []}]))
    with pytest.raises(DataError, match=r'2 of 5 rows cannot be used, more than 1%.*raise "skip_limit"'):
        run(on_bad_sample="skip")
    assert len(run(on_bad_sample="skip", skip_limit=0.4).train) == 3
