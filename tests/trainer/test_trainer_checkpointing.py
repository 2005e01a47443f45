"""Checkpoints are complete or absent, and the right one is found."""

import json
import logging
import os
import shutil

import pytest

from paddlemix.trainer import checkpointing
from paddlemix.trainer.checkpointing import RunState
from paddlemix.trainer.frozen import require_same_frozen
from paddlemix.trainer.weights import publish_result
from paddlemix.utils import files
from paddlemix.utils.errors import CheckpointError, ConfigError, TrainingError
from tests.trainer.trainer_kit import settings


def publish(output, step, text="weights"):
    with files.publish_folder(output / f"checkpoint-{step}") as folder:
        (folder / "model.safetensors").write_text(text)
        for name in (checkpointing.STATE_FILE, checkpointing.LOG_FILE):
            (folder / name).write_text("{}")
    return output / f"checkpoint-{step}"


def test_checkpoints_are_ordered_by_step_and_not_by_name_or_time(tmp_path):
    for step in (10, 100, 9):  # the newest file is not of the newest step
        publish(tmp_path, step)
    (tmp_path / "checkpoint-abc").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [step for step, _ in checkpointing.checkpoints(tmp_path)] == [9, 10, 100]
    assert checkpointing.newest_valid(tmp_path).name == "checkpoint-100"


FACTS = {"bytes": 2, "sha256": "0" * 64}
ODD_MANIFESTS = [
    "{", "", "null", "[]", "1", '"x"', "[" * 5000, "\ufffe", '{"files": {}}', '{"files": []}', '{"files": null}', "{}",
    '{"files": {"a": null}}', '{"files": {"a": []}}', '{"files": {"a": {"bytes": "2", "sha256": 3}}}',
    '{"files": {"a": {"bytes": 1e400}}}', f'{{"files": {{"a": {{"bytes": {"1" * 5000}}}}}}}',
    json.dumps({"files": {"../model.safetensors": FACTS}}), json.dumps({"files": {"/dev/zero": FACTS}}),
    json.dumps({"files": {"a\0": FACTS}}), json.dumps({"files": {"": FACTS}}), json.dumps({"files": {"\ud800": FACTS}}),
    '{"files": {"a": {"bytes": NaN}}}', '{"files": {}, "files": {}}',
]  # fmt: skip


@pytest.mark.parametrize("text", ODD_MANIFESTS)
def test_a_manifest_of_any_form_is_a_damaged_checkpoint_and_an_older_one_is_taken(tmp_path, text, capsys):
    publish(tmp_path, 1)
    (publish(tmp_path, 2) / files.MANIFEST).write_text(text)
    assert checkpointing.newest_valid(tmp_path).name == "checkpoint-1"
    assert "checkpoint-2 is damaged" in " ".join(capsys.readouterr().err.split())  # lines are wrapped


def test_a_manifest_that_lists_less_than_a_checkpoint_needs_is_damaged(tmp_path):
    publish(tmp_path, 1)
    newest = publish(tmp_path, 2)
    whole = json.loads((newest / files.MANIFEST).read_text())["files"]
    for name in (checkpointing.STATE_FILE, checkpointing.LOG_FILE):
        less = {file: facts for file, facts in whole.items() if file != name}
        (newest / files.MANIFEST).write_text(json.dumps({"files": less}))
        assert checkpointing.newest_valid(tmp_path).name == "checkpoint-1"


def test_a_manifest_that_is_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    publish(tmp_path, 1)
    for step, make in ((2, os.mkfifo), (3, lambda path: os.symlink("/dev/zero", path))):
        manifest = publish(tmp_path, step) / files.MANIFEST
        manifest.unlink()
        make(manifest)
    assert checkpointing.newest_valid(tmp_path).name == "checkpoint-1"


class Weights:
    """A result of a run that is one file."""

    def save(self, folder, model, read):
        (folder / "model.safetensors").write_text("new")


@pytest.mark.parametrize("text", [*ODD_MANIFESTS, json.dumps({"files": {"checkpoint-1/model.safetensors": FACTS}})])
def test_a_damaged_manifest_does_not_stop_a_run_at_its_end_nor_leave_the_former_weights(tmp_path, text):
    publish(tmp_path, 1)
    (tmp_path / files.MANIFEST).write_text(text)
    former = [] if "checkpoint-1" in text else ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    for name in former:
        (tmp_path / name).write_text("old")
    publish_result(tmp_path, Weights(), None)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["checkpoint-1", files.MANIFEST, "model.safetensors"]
    assert files.verify_folder(tmp_path) == []
    assert files.verify_folder(tmp_path / "checkpoint-1") == []


@pytest.mark.parametrize("damage", ["bit", "missing", "manifest", "longer"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage, capsys):
    publish(tmp_path, 1)
    newest = publish(tmp_path, 2)
    if damage == "bit":
        (newest / "model.safetensors").write_text("weightt")
    elif damage == "longer":
        (newest / "model.safetensors").write_text("weights and more")
    elif damage == "missing":
        (newest / "model.safetensors").unlink()
    else:
        (newest / files.MANIFEST).write_text("{")
    assert checkpointing.newest_valid(tmp_path).name == "checkpoint-1"
    assert "checkpoint-2 is damaged" in " ".join(capsys.readouterr().err.split())  # lines are wrapped


def test_only_damaged_checkpoints_are_an_error_and_no_fresh_start(tmp_path):
    (publish(tmp_path, 2) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint there is damaged"):
        checkpointing.find_resume(settings(tmp_path))
    assert checkpointing.find_resume(settings(tmp_path, overwrite_output_dir=True)) is None


def test_a_named_checkpoint_must_be_whole(tmp_path):
    folder = publish(tmp_path / "elsewhere", 3)
    run = settings(tmp_path / "out", resume_from_checkpoint=str(folder))
    assert checkpointing.find_resume(run) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r'"resume_from_checkpoint".*model.safetensors: missing'):
        checkpointing.find_resume(run)


def test_a_folder_with_other_things_is_not_written_into(tmp_path):
    assert checkpointing.find_resume(settings(tmp_path / "new")) is None
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        checkpointing.find_resume(settings(tmp_path))
    assert checkpointing.find_resume(settings(tmp_path, overwrite_output_dir=True)) is None


def test_what_an_interrupted_start_leaves_does_not_block_the_next(tmp_path):
    for name in ("train.log", ".lock", "training_settings.json", ".tmp-checkpoint-2-77", "train_results.json",
                 "trainer_state.json"):  # fmt: skip
        (tmp_path / name).write_text("")
    assert checkpointing.find_resume(settings(tmp_path)) is None


def test_asking_for_a_checkpoint_where_there_is_none_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="holds no valid checkpoint"):
        checkpointing.find_resume(settings(tmp_path, resume_from_checkpoint="true"))


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    folders = [publish(tmp_path, step) for step in (1, 2, 3, 4)]
    assert checkpointing.rotate(tmp_path, None) == []
    gone = checkpointing.rotate(tmp_path, 2, keep=folders[0])
    assert gone == folders[1:3]
    assert [step for step, _ in checkpointing.checkpoints(tmp_path)] == [1, 4]
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".tmp")] == []
    assert checkpointing.rotate(tmp_path, 1, keep=folders[3]) == [folders[0]]


def test_a_removal_that_is_cut_short_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    folder = publish(tmp_path, 5)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    checkpointing.remove(folder)
    assert checkpointing.checkpoints(tmp_path) == []


def test_a_state_reads_back_bit_for_bit(tmp_path):
    state = RunState(7, 7, 1, "abc", open_loss=0.1 + 0.2, logged_loss=1 / 3, settings={"lora": True})
    checkpointing.write_state(tmp_path, state)
    assert checkpointing.read_state(tmp_path) == state


STATE = '{"format": 1, "global_step": 1, "schedule_step": 1, "world_size": 1, "data": "a"'


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 1}', '{"format": 1, "extra": 2}', '{"format": 9}', "{" * 5000, f'{STATE}, "tokens": "x"}}',
     f'{STATE}, "settings": []}}', f'{STATE}, "tokens": {"1" * 5000}}}', f'{STATE}, "open_loss": NaN}}',
     f'{STATE}, "tokens": true}}', f'{STATE}, "frozen": null}}'],
)  # fmt: skip
def test_a_broken_state_names_the_file(tmp_path, text):
    (tmp_path / checkpointing.STATE_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"training_state\.json"):
        checkpointing.read_state(tmp_path)


def test_a_model_folder_is_not_taken_for_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="a model and not a checkpoint"):
        checkpointing.read_state(tmp_path)


def test_a_failing_save_leaves_the_older_checkpoint_and_no_new_one(tmp_path):
    from tests.trainer.trainer_kit import PlainWeights, make_trainer

    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    trainer = make_trainer(settings(tmp_path, save_strategy="steps", save_steps=2))

    class Failing(PlainWeights):
        def save(self, folder, model, read):
            super().save(folder, model, read)
            if trainer.state.global_step == 4:
                raise OSError(28, "No space left on device")

    trainer.weights = Failing()
    with pytest.raises(Exception, match=r"checkpoint-4: cannot be written .*free"):
        trainer.train()
    assert [step for step, _ in checkpointing.checkpoints(tmp_path)] == [2]
    assert files.verify_folder(tmp_path / "checkpoint-2") == []


def test_the_optimizer_is_stored_by_structured_names(tmp_path):
    from safetensors import safe_open

    from tests.trainer.trainer_kit import make_trainer

    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    trainer = make_trainer(settings(tmp_path, save_strategy="steps", save_steps=12))
    trainer.train()
    with safe_open(tmp_path / "checkpoint-12" / "optimizer.safetensors", framework="np") as stored:
        names = set(stored.keys())
    assert {name.partition("/")[2] for name in names} == set(trainer.plan.rules)
    assert json.loads((tmp_path / "checkpoint-12" / checkpointing.STATE_FILE).read_text())["global_step"] == 12


@pytest.mark.parametrize("stage", ["lora", "tune_mm_mlp_adapter"])
def test_a_run_does_not_go_on_over_another_base_under_the_same_path(tmp_path, stage):
    from paddlemix.ops.linear import add_lora
    from paddlemix.trainer.lora_targets import default_targets
    from tests.trainer.trainer_kit import make_trainer, tiny

    def model_of(seed):
        model = tiny(seed)
        if stage == "lora":
            add_lora(model, default_targets(), 2, 4.0, 0.0, seed=1)
        return model

    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    run = settings(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, **{stage: True})
    make_trainer(run, model=model_of(0)).train()
    (_, first), _ = checkpointing.checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="sampled parameters .* have other values now .*Restore it"):
        make_trainer(run, model=model_of(5)).train(first)
    assert make_trainer(run, model=model_of(0)).train(first).global_step == 2


def test_a_checkpoint_of_a_version_without_the_sample_is_taken(tmp_path):
    require_same_frozen({}, {"a": [1.0]}, tmp_path, "model")
    with pytest.raises(CheckpointError, match="1 of 2 sampled"):
        require_same_frozen({"a": [1.0], "b": [2.0]}, {"a": [1.0], "b": [2.5]}, tmp_path, "model")


def test_a_full_disk_while_the_optimizer_is_written_is_the_same_sentence(tmp_path):
    """RLIMIT_FSIZE stands for the full disk; the library of the format would raise an error without errno."""
    import resource

    from tests.trainer.trainer_kit import PlainWeights, make_trainer

    class NoWeights(PlainWeights):
        def save(self, folder, model, read):
            (folder / "model.safetensors").touch()
            if checkpointing.checkpoints(tmp_path):
                resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))

    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    trainer = make_trainer(settings(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, save_total_limit=1))
    trainer.weights = NoWeights()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(TrainingError, match=r"checkpoint-2: cannot be written .File too large.; \d+ MiB"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpointing.newest_valid(tmp_path) == tmp_path / "checkpoint-1"
    assert [step for step, _ in checkpointing.checkpoints(tmp_path)] == [1]


def test_a_result_leaves_no_weights_of_an_earlier_one_beside_it_even_after_a_kill(tmp_path):
    from paddlemix.trainer.weights import publish_result
    from paddlemix.utils.files import MANIFEST

    class Files:
        def __init__(self, *names):
            self.names = names

        def save(self, folder, model, read):
            for name in self.names:
                (folder / name).write_text("x")

    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = "model.safetensors.index.json"
    (tmp_path / "mm_projector.safetensors").write_text("written beside the result")
    publish_result(tmp_path, Files(*shards, index, "config.json"), None)
    (tmp_path / MANIFEST).unlink()  # as a kill while the earlier result is removed leaves it
    publish_result(tmp_path, Files("model.safetensors", "config.json"), None)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.safetensors", "config.json", "mm_projector.safetensors", MANIFEST}
