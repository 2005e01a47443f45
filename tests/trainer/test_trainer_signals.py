# SPDX-License-Identifier: Apache-2.0
"""A signal at any time of a run: what it leaves, the exit code, and that the same command goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from paddlemix.tools.supervised_finetune import main
from paddlemix.trainer import checkpointing
from paddlemix.utils import files
from tests.trainer.run_kit import arguments, with_eval

ENTRY_POINT = Path(__file__).resolve().parents[2] / "paddlemix" / "tools" / "supervised_finetune.py"

pytestmark = pytest.mark.usefixtures("usual_signals")


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def first(act, function):
    """``function`` with a call of ``act`` in front of it."""

    def both(*args, **kwargs):
        act()
        return function(*args, **kwargs)

    return both


def left(folder):
    return sorted(item.name for item in folder.iterdir()) if folder.exists() else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_while_the_model_is_loaded_nothing_is_left_and_the_code_is_75(place, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr("paddlemix.checkpoint.load._fill", lambda *_: send(number))
    with pytest.raises(SystemExit) as ended:
        main(arguments(place, tmp_path / "out"))
    assert ended.value.code == 75
    assert f"{number.name} before the first step: nothing to save" in capsys.readouterr().err
    assert left(tmp_path / "out") is None


def test_ctrl_c_while_the_model_is_loaded_is_130_and_leaves_nothing(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("paddlemix.checkpoint.load._fill", lambda *_: send(signal.SIGINT))
    assert main(arguments(place, tmp_path / "out")) == 130
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_the_result_is_written_it_is_written_to_its_end(place, tmp_path, monkeypatch, capsys, number):
    from paddlemix.checkpoint import save_files

    monkeypatch.setattr(save_files, "write_side_files", first(lambda: send(number), save_files.write_side_files))
    monkeypatch.setattr("paddlemix.checkpoint.save.write_side_files", save_files.write_side_files)
    assert main(arguments(place, tmp_path, max_steps=1)) == 0
    assert f"{number.name}: writing the result to its end" in capsys.readouterr().err
    assert files.verify_folder(tmp_path) == []
    assert [name for name in left(tmp_path) if name.startswith(".tmp")] == []
    assert (tmp_path / "all_results.json").is_file()


def test_between_the_result_and_its_evaluation_the_result_is_whole_and_the_code_is_75(
    place, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("paddlemix.trainer.weights._move_references", lambda *_: send())
    code = main(
        arguments(place, tmp_path, max_steps=1, do_eval="true", evaluation_strategy="epoch", **with_eval(place))
    )
    assert code == 75
    assert "stopped by SIGTERM before the evaluation; the result is in" in " ".join(capsys.readouterr().out.split())
    assert files.verify_folder(tmp_path) == []
    assert not (tmp_path / "eval_results.json").exists()


def test_in_the_evaluation_of_the_result_the_code_is_75_at_once(place, tmp_path, monkeypatch, capsys):
    from paddlemix.trainer.run import TrainingRun

    monkeypatch.setattr(TrainingRun, "_evaluate", first(lambda: None, TrainingRun._evaluate))
    monkeypatch.setattr("paddlemix.trainer.evaluation.count_labels", lambda _: send())
    keys = dict(max_steps=1, do_eval="true", evaluation_strategy="epoch", load_best_model_at_end="false")
    monkeypatch.setattr("paddlemix.trainer.llava_trainer.LlavaTrainer._maybe_log_save_evaluate", lambda *_, **__: None)
    with pytest.raises(SystemExit) as ended:
        main(arguments(place, tmp_path, **keys, **with_eval(place)))
    assert ended.value.code == 75
    assert f"the result is in {tmp_path}" in capsys.readouterr().err
    assert files.verify_folder(tmp_path) == []


@pytest.fixture
def written(monkeypatch):
    """The steps of which a checkpoint was written, in order."""
    found, write_state = [], checkpointing.write_state
    monkeypatch.setattr(
        checkpointing,
        "write_state",
        lambda folder, state: found.append(state.global_step) or write_state(folder, state),
    )
    return found


def test_an_evaluation_during_training_is_broken_off_and_the_step_saved_once(place, tmp_path, monkeypatch, written):
    from paddlemix.trainer import evaluation

    seen = []

    def once(batch):
        seen.append(batch)
        send()
        return 1

    monkeypatch.setattr(evaluation, "count_labels", once)
    keys = dict(max_steps=4, do_eval="true", evaluation_strategy="steps", eval_steps=2, per_device_eval_batch_size=1)
    assert main(arguments(place, tmp_path, **keys, **with_eval(place))) == 75
    assert len(seen) == 1
    assert [step for step, _ in checkpointing.checkpoints(tmp_path)] == written == [2]


@pytest.mark.parametrize(("step", "steps", "evaluated"), [(2, [2], 0), (3, [3, 3], 3)])
def test_a_signal_within_an_epoch_is_not_taken_for_its_end(
    place, tmp_path, monkeypatch, written, step, steps, evaluated
):
    from paddlemix.trainer import callbacks, evaluation

    seen, on_step_end = [], callbacks.StopOnSignal.on_step_end

    def signalled(self, args, state, control, **more):
        if state.global_step == step:
            send()
        return on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(callbacks.StopOnSignal, "on_step_end", signalled)
    monkeypatch.setattr(evaluation, "count_labels", lambda batch: seen.append(batch) or 1)
    keys = dict.fromkeys(("evaluation_strategy", "save_strategy"), "epoch")
    keys |= dict(do_eval="true", load_best_model_at_end="true", per_device_eval_batch_size=1)
    assert main(arguments(place, tmp_path, **keys, **with_eval(place))) == 75
    assert (written, len(seen)) == (steps, evaluated)


def test_while_a_checkpoint_is_written_it_is_written_to_its_end_and_the_code_is_75(place, tmp_path, monkeypatch):
    sent = []
    once = first(lambda: sent or sent.append(send()), checkpointing.save_optimizer)
    monkeypatch.setattr(checkpointing, "save_optimizer", once)
    assert main(arguments(place, tmp_path, max_steps=6, save_strategy="steps", save_steps=2)) == 75
    found = checkpointing.checkpoints(tmp_path)
    assert [files.verify_folder(folder) for _, folder in found] == [[]] * len(found)
    assert found[0][0] == 2
    assert [name for name in left(tmp_path) if name.startswith(".tmp")] == []


def test_a_second_signal_ends_the_run_at_once(place, tmp_path, monkeypatch):
    def twice(*_):
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("went on after the second signal")

    monkeypatch.setattr("paddlemix.trainer.llava_trainer.LlavaTrainer._note_norm", twice)
    assert main(arguments(place, tmp_path, max_steps=2)) == 130
    assert checkpointing.checkpoints(tmp_path) == []


def test_a_signal_to_the_whole_group_saves_also_with_loader_processes(place, tmp_path):
    keys = dict(dataloader_num_workers=2, max_steps=3000, num_train_epochs=1)
    command = [sys.executable, str(ENTRY_POINT), *arguments(place, tmp_path / "out", **keys)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as run:
        said = []
        for line in run.stdout:
            said.append(line)
            if "step: 3/" in line:
                os.killpg(run.pid, signal.SIGTERM)
        code = run.wait(60)
    assert code == 75, "".join(said)
    assert "Traceback" not in "".join(said)
    ((step, folder),) = checkpointing.checkpoints(tmp_path / "out")
    assert step >= 3
    assert files.verify_folder(folder) == []
    assert load_file(folder / "optimizer.safetensors")
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
