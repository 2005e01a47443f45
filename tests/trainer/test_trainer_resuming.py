# SPDX-License-Identifier: Apache-2.0
"""What may differ when a run goes on: bad rows, the length of the run, and what changes no number."""

import dataclasses
import json
import shutil

import pytest

from paddlemix.datasets.packing import RULE
from paddlemix.datasets.resumed import rows_of
from paddlemix.datasets.sampler import shuffled
from paddlemix.trainer import checkpointing
from paddlemix.trainer.checkpointing import RunState
from paddlemix.trainer.resuming import MAY_CHANGE, require_same_run
from paddlemix.utils.errors import CheckpointError, ConfigError, DataError
from tests.trainer.run_kit import go
from tests.trainer.trainer_kit import Rows, settings

KEYS = dict(per_device_train_batch_size=1, num_train_epochs=2, check_images="none")


@pytest.fixture(scope="module")
def stopped(place, tmp_path_factory):
    """(folder, row): images of which that of ``row`` is broken; ``stopped`` holds a run that has met it in its fourth
    step, ``straight`` one that skipped it from the beginning."""
    root = tmp_path_factory.mktemp("broken")
    shutil.copytree(place, root / "data")
    row = next(index for index in shuffled(6, 42)(0)[3:] if index != 5)  # row 5 has no image
    (root / "data" / f"{row}.png").write_bytes(b"no image")
    go(root / "data", root / "straight", on_bad_sample="skip", **KEYS)
    with pytest.raises(DataError, match=rf"train\.json: /{row}: .*{row}\.png"):
        go(root / "data", root / "stopped", **KEYS)
    assert len(checkpointing.checkpoints(root / "stopped")) == 1
    return root, row


def without(root, *rows):
    """A data file that lacks these rows."""
    found = json.loads((root / "data" / "train.json").read_text())
    path = root / f"without-{'-'.join(map(str, rows))}.json"
    path.write_text(json.dumps([value for number, value in enumerate(found) if number not in rows]))
    return path


@pytest.mark.parametrize("way", ["skip", "skip what a look before the run finds", "take out"])
def test_a_run_that_met_a_bad_row_goes_on_as_if_it_had_skipped_it(stopped, tmp_path, capsys, way):
    root, row = stopped
    shutil.copytree(root / "stopped", tmp_path / "out")
    changes = {
        "skip": {"on_bad_sample": "skip"},
        "skip what a look before the run finds": {"on_bad_sample": "skip", "check_images": "header"},
        "take out": {"data_path": without(root, row)},
    }[way]
    go(root / "data", tmp_path / "out", **KEYS | changes)
    said = " ".join(capsys.readouterr().out.split())
    if way == "take out":
        assert "note: 1 of 6 training rows are gone since checkpoint-" in said
    else:
        assert 'on_bad_sample was "error", is "skip"' in said
        assert "skipped 1 of 6 rows" in said
    result, wanted = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "out", root / "straight"))
    assert result == wanted


def test_a_run_that_met_a_bad_row_goes_on_with_the_row_repaired(stopped, tmp_path, capsys):
    root, row = stopped
    rows = json.loads((root / "data" / "train.json").read_text())
    good = next(index for index in range(5) if index != row)
    rows[row]["image"] = rows[good]["image"]
    path = tmp_path / "repaired.json"
    path.write_text(json.dumps(rows))
    shutil.copytree(root / "stopped", tmp_path / "out")
    go(root / "data", tmp_path / "out", **KEYS | {"data_path": path})
    said = " ".join(capsys.readouterr().out.split())
    assert "note: 1 of 6 training rows say something else than at checkpoint-" in said
    go(root / "data", tmp_path / "straight", **KEYS | {"data_path": path})
    result, wanted = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "straight"))
    assert result == wanted
    rows[good]["conversations"][-1]["value"] = "something else"
    path.write_text(json.dumps(rows))
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(root / "stopped", tmp_path / "out")
    with pytest.raises(ConfigError, match="the training data"):
        go(root / "data", tmp_path / "out", **KEYS | {"data_path": path})


def test_more_rows_taken_out_than_may_be_bad_are_refused_before_paddle_is_needed(stopped, tmp_path):
    root, row = stopped
    shutil.copytree(root / "stopped", tmp_path / "out")
    with pytest.raises(ConfigError, match=r'2 of 6 training rows .* raise "skip_limit"'):
        go(root / "data", tmp_path / "out", **KEYS, data_path=without(root, row, 5))


def test_a_finished_run_goes_on_with_more_steps_and_says_so(place, tmp_path, capsys):
    keys = dict(save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    go(place, tmp_path / "straight", max_steps=4, **keys)
    go(place, tmp_path / "out", max_steps=2, **keys)
    assert go(place, tmp_path / "out", max_steps=4, **keys).steps == 4
    assert "the run is longer than at checkpoint-2: max_steps was 2, is 4" in " ".join(capsys.readouterr().out.split())
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "out"))
    assert first == second  # the rate is constant, so the straight run computes the same
    with pytest.raises(ConfigError, match="max_steps was 4, is 3"):
        go(place, tmp_path / "out", max_steps=3, **keys)


def state(run, **changes):
    from paddlemix.settings.run.loader import settings_to_json

    return RunState(3, 3, 1, "12 rows", packing=RULE, settings={**settings_to_json(run), **changes})


def told(tmp_path, before, now, rows=12):
    run = settings(tmp_path, **before)
    return require_same_run(state(run), settings(tmp_path, **now), 1, Rows(rows), tmp_path / "checkpoint-3")


def test_packs_of_another_version_are_not_gone_on_with(tmp_path):
    run = settings(tmp_path, mixtoken=True)
    assert require_same_run(state(run), run, 1, Rows(12), tmp_path / "checkpoint-3") == []
    old = dataclasses.replace(state(run), packing=0)
    with pytest.raises(ConfigError, match=r"its packs \(mixtoken\) were made by another version.*model_name_or_path"):
        require_same_run(old, run, 1, Rows(12), tmp_path / "checkpoint-3")
    plain = settings(tmp_path)
    assert require_same_run(dataclasses.replace(state(plain), packing=0), plain, 1, Rows(12), tmp_path / "c") == []


def with_processes(tmp_path, before, now, accumulate=(1, 1), rows=12, **keys):
    """What is said when ``now`` processes go on with what ``before`` have saved."""
    first, second = (settings(tmp_path, gradient_accumulation_steps=count, **keys) for count in accumulate)
    saved = dataclasses.replace(state(first), world_size=before)
    return require_same_run(saved, second, now, Rows(rows), tmp_path / "checkpoint-3")


@pytest.mark.parametrize("sharding", ["", "stage1", "stage2"])
@pytest.mark.parametrize(("before", "now", "accumulate"), [(2, 1, (1, 2)), (1, 2, (4, 2)), (2, 3, (3, 2))])
def test_another_number_of_processes_goes_on_where_a_step_keeps_its_rows(tmp_path, sharding, before, now, accumulate):
    (line,) = with_processes(tmp_path, before, now, accumulate, sharding=sharding)
    assert line.startswith(f"processes: {now} go on with what {before} have saved; each step has the same rows")


@pytest.mark.parametrize(
    ("before", "now", "accumulate", "remedy"),
    [
        (2, 1, (1, 1), 'Write "gradient_accumulation_steps": 2, which keeps the rows of a step together'),
        (1, 2, (4, 4), 'Write "gradient_accumulation_steps": 2, which'),
        (
            2,
            3,
            (1, 1),
            "The 2 micro-batches of a step do not divide among the 3 processes: start 1 with "
            '"gradient_accumulation_steps": 2 or 2 with "gradient_accumulation_steps": 1, or start a new run',
        ),
    ],
)
def test_other_rows_in_a_step_are_refused_with_what_keeps_them(tmp_path, before, now, accumulate, remedy):
    with pytest.raises(ConfigError, match=rf"\(.*number of processes was {before}, is {now}\)") as caught:
        with_processes(tmp_path, before, now, accumulate)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("keys", [{"sharding": "stage3"}, {"tensor_parallel_degree": 2}])
def test_states_in_slices_want_as_many_processes_as_have_saved_them(tmp_path, keys):
    with pytest.raises(ConfigError, match="number of processes was 4, is 2.*Start 4 processes: .*, or start a new run"):
        with_processes(tmp_path, 4, 2, (1, 2), **keys)


def test_processes_that_share_rows_are_counted_by_their_rows(tmp_path):
    assert len(with_processes(tmp_path, 4, 2, (1, 2), sep_parallel_degree=2)) == 1
    with pytest.raises(ConfigError, match='start 2 with "gradient_accumulation_steps": 2 or 4 with "grad'):
        with_processes(tmp_path, 4, 6, (1, 1), sep_parallel_degree=2)


def test_an_epoch_that_would_be_filled_up_otherwise_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="number of processes was 2, is 1"):  # 3 batches: 4 in steps of 4, or 3
        with_processes(tmp_path, 2, 1, (4, 8), rows=6)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"num_train_epochs": 2.0}, {"num_train_epochs": 3.0}),
        ({"num_train_epochs": 2.0}, {"max_steps": 30}),
        ({"max_steps": 5}, {"max_steps": -1, "num_train_epochs": 10.0}),
    ],
)
def test_a_longer_run_is_told_and_a_shorter_one_refused(tmp_path, before, now):
    (line,) = told(tmp_path, before, now)
    assert "longer than at checkpoint-3" in line
    assert "the learning rate follows the curve of the longer run" in line
    with pytest.raises(ConfigError, match="cannot go on with other settings"):
        told(tmp_path, {**before, **now}, {**dict.fromkeys(now, -1), "num_train_epochs": 1.0, **before})


@pytest.mark.parametrize(
    ("kind", "beginning"),
    [
        ({}, "model_name_or_path {}"),
        ({"lora": True}, "lora_path {}"),
        ({"tune_mm_mlp_adapter": True}, "pretrain_mm_mlp_adapter {}/mm_projector.safetensors"),
    ],
)
def test_the_new_run_that_is_offered_takes_the_checkpoint_as_what_it_is(tmp_path, kind, beginning):
    with pytest.raises(ConfigError, match="another output_dir with") as caught:
        told(tmp_path, kind, {**kind, "learning_rate": 0.5})
    assert str(caught.value).endswith(beginning.format(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize(
    "changes",
    [
        {"on_bad_sample": "skip"},
        {"skip_limit": 0.5},
        {"check_images": "none"},
        {"logging_steps": 7},
        {"save_steps": 7},
        {"save_total_limit": 3},
        {"dataloader_num_workers": 2},
        {"dataloader_timeout": 5.0},
        {"report_to": ("visualdl",)},
        {"max_image_side": 100},
    ],
)
def test_changes_that_do_no_harm_are_one_line(tmp_path, changes):
    (line,) = told(tmp_path, {}, changes)
    assert line.startswith("changed since checkpoint-3: ")
    assert all(name in line for name in changes)
    assert set(changes) <= MAY_CHANGE


def test_nothing_is_said_when_nothing_changed_but_the_place(tmp_path):
    run = settings(tmp_path / "a")
    assert require_same_run(state(run), settings(tmp_path / "b"), 1, Rows(12), tmp_path / "checkpoint-3") == []


def test_a_key_that_an_earlier_version_did_not_know_has_its_default(tmp_path):
    known = state(settings(tmp_path))
    del known.settings["exif_rotation"]
    assert require_same_run(known, settings(tmp_path), 1, Rows(12), tmp_path / "checkpoint-3") == []
    with pytest.raises(ConfigError, match="exif_rotation was false, is true"):
        require_same_run(known, settings(tmp_path, exif_rotation=True), 1, Rows(12), tmp_path / "checkpoint-3")


def test_files_of_the_same_rows_are_the_same_data_and_another_template_is_not(tmp_path):
    one = {"dataset": {"train": [{"data_files": "a.json"}, {"data_files": "b.json", "name": "llava_dataset"}]}}
    other = {
        "dataset": {"train": [{"data_files": ["c.json"], "image_folder": "d"}], "eval": [{"data_files": "e.json"}]}
    }
    (line,) = told(tmp_path, one, other) or ("",)
    assert line == ""
    templated = {"dataset": {"train": [{"data_files": "a.json", "chat_template": "t.json"}]}}
    with pytest.raises(ConfigError, match="dataset was"):
        told(tmp_path, one, templated)


def test_the_rows_of_a_checkpoint_read_back_and_a_broken_file_is_named(tmp_path):
    assert rows_of(Rows(3)) is None
    checkpointing.write_rows(tmp_path, Rows(3))
    assert checkpointing.read_rows(tmp_path, "f") is None
    (tmp_path / checkpointing.ROWS_FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"training_rows\.safetensors"):
        checkpointing.read_rows(tmp_path, "f")
