"""Whole runs from settings to a folder that the chat opens, through the entry points where that matters."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlemix.checkpoint.save import save_model
from paddlemix.settings.run.loader import load_settings
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer import checkpointing
from paddlemix.utils import files
from paddlemix.utils.errors import CheckpointError, ConfigError, TrainingError
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder
from tests.trainer.run_kit import arguments, go, with_eval

ROOT = Path(__file__).resolve().parents[2]
ENTRY_POINT = ROOT / "paddlemix" / "tools" / "supervised_finetune.py"


def answer(folder):
    from paddlemix.generation.load import load_chat
    from paddlemix.generation.sampling import Decoding

    chat = load_chat(str(folder), device="cpu", decoding=Decoding(max_new_tokens=4))
    return "".join(chat.ask("what colour 0?", [tiny_image(0)]))


def test_a_pad_token_without_a_row_is_no_reason_to_stop(place, tmp_path):
    """As in published folders of Vicuna: added_tokens.json names <pad> with the number of rows."""
    model = shutil.copytree(place / "model", tmp_path / "model")
    (model / "added_tokens.json").write_text(json.dumps({"<pad>": 448}))
    result = go(place, tmp_path / "out", model_name_or_path=model, max_steps=1)
    assert result.steps == 1
    assert answer(model) == answer(place / "model")
    assert answer(result.folder)


def test_a_full_run_leaves_a_complete_folder_and_the_console_tells_what_counts(place, tmp_path, capsys):
    result = go(place, tmp_path / "out", save_strategy="steps", save_steps=4, **with_eval(place), do_eval="true")
    shown = capsys.readouterr().out
    for words in ("learning_rate: 0.001", "What trains (full)", "vision tower", "frozen", "loss: ", "eval_loss: ",
                  "saved checkpoint-4", f"--model-path {tmp_path / 'out'}"):  # fmt: skip
        assert words in shown
    assert "Configuration Arguments" not in shown
    assert len(shown.splitlines()) < 70
    command = next(line for line in shown.splitlines() if "--image-file IMAGE" in line)
    assert {f"--model-path {tmp_path / 'out'}", "--image-file IMAGE"} <= set(re.findall(r"--\S+ \S+", command))
    # Only what cannot be broken, a path for example, may be longer than the line.
    long = [line for line in shown.splitlines() if len(line) > 100 and line != command]
    assert not [line for line in long if len(line.split()) > 2], long
    out = result.folder
    assert "Configuration Arguments" in (out / "train.log").read_text()
    assert files.verify_folder(out) == []
    assert files.verify_folder(out / "checkpoint-4") == []
    results = json.loads((out / "all_results.json").read_text())
    assert results["train_loss"] > 0
    assert results["eval_loss"] > 0
    assert {"train_results.json", "eval_results.json", "trainer_state.json"} <= {item.name for item in out.iterdir()}
    assert load_settings(arguments_from(out / "training_settings.json")).training.learning_rate == 1e-3
    assert isinstance(answer(out), str)


def test_a_model_without_a_tower_is_not_asked_about_an_image(tmp_path, capsys):
    model = tiny_model(vision=None, image=None)
    save_model(tmp_path / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    turns = [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "three"}]
    (tmp_path / "train.json").write_text(json.dumps([{"conversations": turns}] * 2))
    go(tmp_path, tmp_path / "out", image_folder=None, num_train_epochs=1)
    shown = capsys.readouterr().out
    assert f"chat --model-path {tmp_path / 'out'}" in shown
    assert "--image-file" not in shown


def arguments_from(file):
    return [str(file)]


def test_the_result_is_what_was_trained(place, tmp_path):
    from paddlemix.trainer.run import TrainingRun

    run = TrainingRun(load_settings(arguments(place, tmp_path)), tmp_path, None)
    run.set_up()
    before = {name: value.numpy().copy() for name, value in run.model.named_parameters()}
    run.carry_out()
    stored = load_file(tmp_path / "model.safetensors")
    after = {name: value.numpy() for name, value in run.model.named_parameters()}
    assert all(np.array_equal(stored[name], after[name]) for name in after)
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert moved == set(run.plan.rules)


def test_an_adapter_opens_without_flags_and_goes_on_as_lora_path(place, tmp_path):
    go(place, tmp_path / "a", lora="true", lora_rank=2, save_strategy="steps", save_steps=6)
    assert (tmp_path / "a" / "lora_config.json").is_file()
    assert not (tmp_path / "a" / "model.safetensors").exists()
    assert answer(tmp_path / "a") == answer(tmp_path / "a" / "checkpoint-6")
    go(place, tmp_path / "b", lora="true", lora_path=tmp_path / "a", learning_rate=1e-30)
    first, second = (load_file(tmp_path / name / "lora_model_state.safetensors") for name in "ab")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_an_adapter_folder_can_be_moved_together_with_its_base(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "one" / "model")
    go(place, tmp_path / "one" / "adapter", lora="true", lora_rank=2, model_name_or_path=tmp_path / "one" / "model")
    told = answer(tmp_path / "one" / "adapter")
    os.rename(tmp_path / "one", tmp_path / "two")
    assert answer(tmp_path / "two" / "adapter") == told


def test_a_finished_adapter_goes_on_as_the_model_of_another_run(place, tmp_path, capsys):
    first = go(place, tmp_path / "a", lora="true", lora_rank=2, max_steps=1).folder
    with pytest.raises(ConfigError, match=r'holds the result of a finished run .* give it as "model_name_or_path"'):
        go(place, first, lora="true", lora_rank=2, max_steps=2)
    capsys.readouterr()
    still = go(place, tmp_path / "b", lora="true", model_name_or_path=first, learning_rate=1e-30, max_steps=1)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"the adapter {first} goes on, on its base {place / 'model'}; its rank 2" in shown
    one, two = (load_file(folder / "lora_model_state.safetensors") for folder in (first, still.folder))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    config = json.loads((still.folder / "lora_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == place / "model"
    moved = go(place, tmp_path / "c", lora="true", model_name_or_path=first, max_steps=2)
    assert answer(moved.folder)
    with pytest.raises(ConfigError, match='lora_path needs "lora": true'):
        go(place, tmp_path / "d", lora_path=first, max_steps=1)


def test_an_adapter_is_evaluated_alone_in_each_of_the_documented_ways(place, tmp_path):
    adapter = go(place, tmp_path / "a", lora="true", lora_rank=2, max_steps=2).folder
    only = {"do_train": "false", "do_eval": "true", **with_eval(place)}
    ways = [
        {"model_name_or_path": adapter},
        {"model_name_or_path": adapter, "lora": "true"},
        {"lora_path": adapter},
        {"lora_path": adapter, "lora": "true"},
    ]
    losses = [go(place, tmp_path / str(i), **only, **way).metrics["eval_loss"] for i, way in enumerate(ways)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    base = go(place, tmp_path / "base", **only).metrics["eval_loss"]
    assert abs(base - losses[0]) > 1e-3


def test_pretraining_saves_a_projector_that_reads_back(place, tmp_path):
    from paddlemix.trainer.run import pretrain

    run = load_settings(arguments(place, tmp_path / "a", save_strategy="steps", save_steps=6))
    pretrain(run)
    trained = load_file(tmp_path / "a" / "model.safetensors")
    projector = load_file(tmp_path / "a" / "mm_projector.safetensors")
    assert np.array_equal(projector["model.mm_projector.0.weight"], trained["llama.mm_projector.0.weight"].T)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["template"] == "plain"
    before = load_file(place / "model" / "model.safetensors")
    assert {name for name in before if not np.array_equal(before[name], trained[name])} == {
        name for name in before if "mm_projector" in name
    }
    for adapter in (tmp_path / "a" / "mm_projector.safetensors", tmp_path / "a" / "checkpoint-6"):
        go(place, tmp_path / "b", pretrain_mm_mlp_adapter=adapter, learning_rate=1e-30, overwrite_output_dir="true")
        assert np.array_equal(
            load_file(tmp_path / "b" / "model.safetensors")["llama.mm_projector.2.bias"],
            trained["llama.mm_projector.2.bias"],
        )


def test_evaluation_alone_gives_the_loss_and_trains_nothing(place, tmp_path):
    result = go(place, tmp_path / "out", do_train="false", do_eval="true", **with_eval(place))
    assert result.steps == 0
    assert result.metrics["eval_loss"] > 0
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_folder_with_a_result_is_not_overwritten_unasked(place, tmp_path):
    go(place, tmp_path, max_steps=1)
    with pytest.raises(ConfigError, match="holds the result of a finished run .*overwrite_output_dir true"):
        go(place, tmp_path, max_steps=1)
    go(place, tmp_path, max_steps=1, overwrite_output_dir="true", save_strategy="steps", save_steps=1)
    go(place, tmp_path, max_steps=1, overwrite_output_dir="true")
    assert checkpointing.checkpoints(tmp_path) == []


def test_a_finished_run_started_again_gives_its_result_back(place, tmp_path):
    keys = dict(save_strategy="steps", save_steps=6)
    first = go(place, tmp_path, **keys)
    result = (tmp_path / "model.safetensors").read_bytes()
    again = go(place, tmp_path, **keys)
    assert again.steps == first.steps == 6
    assert again.metrics["train_loss"] == first.metrics["train_loss"]
    assert (tmp_path / "model.safetensors").read_bytes() == result


def test_a_run_under_nohup_outlives_its_terminal_and_still_stops_when_asked():
    from paddlemix.trainer.callbacks import StopOnSignal

    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    callback = StopOnSignal()
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        callback.on_train_begin(None, None, None)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        assert callback.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert callback.received == "SIGTERM"
    finally:
        callback.restore()
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("lora", ["false", "true"])
def test_a_signal_saves_and_the_same_command_ends_as_the_straight_run(place, tmp_path, lora):
    from paddlemix.trainer.library import TrainerCallback
    from paddlemix.trainer.run import TrainingRun, finetune

    keys = dict(lora=lora, group_by_modality_length="true")
    go(place, tmp_path / "straight", **keys)

    class Kill(TrainerCallback):
        def on_substep_end(self, args, state, control, **_):
            return control

        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    settings = load_settings(arguments(place, tmp_path / "stopped", **keys))
    (tmp_path / "stopped").mkdir()
    run = TrainingRun(settings, tmp_path / "stopped", None)
    run.set_up()
    run.trainer.add_callback(Kill())
    stopped = run.carry_out()
    assert (stopped.exit_code, stopped.stopped_by, stopped.steps) == (75, "SIGTERM", 4)
    assert [step for step, _ in checkpointing.checkpoints(tmp_path / "stopped")] == [4]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert finetune(settings).exit_code == 0
    name = "model.safetensors" if lora == "false" else "lora_model_state.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_the_command_resumes_in_a_fresh_process_bit_for_bit_and_from_any_folder(place, tmp_path):
    keys = dict(lora="true", save_strategy="steps", save_steps=3)

    def command(output):
        done = subprocess.run(
            [sys.executable, str(ENTRY_POINT), *arguments(place, output, **keys)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # Both in processes of their own: which matrix kernels a process takes is settled at its first product.
    command("straight")
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "straight" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    assert "going on from again/checkpoint-3" in command("again")
    name = "lora_model_state.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


WRONG = {
    "a key": ({"learning_rat": 1}, 'did you mean "learning_rate"'),
    "a fixed key": ({"do_export": "true"}, "do_export"),
    "a conflict": ({"lora": "true", "tune_mm_mlp_adapter": "true"}, "choose one"),
    "the model": ({"model_name_or_path": "nobody/nothing"}, '"nobody/nothing" is not on this machine'),
    "the tower": ({"vision_tower": "nobody/tower"}, '"nobody/tower" is not on this machine'),
    "the template": ({"template": "vicunna_v1"}, 'unknown template "vicunna_v1"'),
    "the device": ({"device": "gpu"}, "the installed paddle is the CPU build"),
    "the adapters": ({"lora": "true", "lora_target_modules": "q_prok"}, 'fits no linear layer, did you mean "q_proj"'),
    "the curves": ({"report_to": "tensorboard"}, '"report_to" names tensorboard, but the package "tensorboardX"'),
    "the data file": ({"data_path": "nowhere.json"}, "nowhere.json: no such data file"),
    "its syntax": ({"data_path": "broken.json"}, "broken.json:1:"),
    "its rows": ({"data_path": "roles.json"}, "roles.json: /0"),
    "their number": ({"data_path": "empty.json"}, "empty.json"),
    "an image": ({"data_path": "gone.json"}, "gone.png: no such image file"),
    "a mark": ({"data_path": "unmarked.json"}, "unmarked.json: /0"),
    "the image folder": ({"image_folder": "nowhere"}, "nowhere: no such image folder"),
    "the image folder, unlooked": (
        {"image_folder": "nowhere", "check_images": "none"},
        "nowhere: no such image folder",
    ),
    "a file for the image folder": (
        {"image_folder": "roles.json", "check_images": "none"},
        "roles.json: no such image",
    ),
    "the chat template": ({"chat_template": "nowhere.json"}, "nowhere.json"),
    "the tokenizer": ({"text_model_name_or_path": "."}, "tokenizer.model"),
    "the adapter": ({"lora": "true", "lora_path": "nobody/adapter"}, '"nobody/adapter" is not on this machine'),
    "the checkpoint": ({"resume_from_checkpoint": "nobody/checkpoint-3"}, "nobody/checkpoint-3"),
    "a pattern": ({"freeze_include": '["llama.layrs.*"]'}, 'the pattern "llama.layrs.*" matches no parameter'),
    "a pattern that saves": ({"freeze_exclude": "vision"}, 'the pattern "vision" matches no parameter'),
    "what trains": ({"freeze_include": '["*"]'}, "nothing would train: the stage is full"),
    "a rate": ({"freeze_include": "*mm_projector*", "mm_projector_lr": 0.1}, "no parameter of the projector trains"),
    "the tower's layers": (
        {"tune_vision_tower": "true", "tune_vit_from_layer": 99},
        '"tune_vit_from_layer" is 99, but the vision tower has 2 layers',
    ),
    "what of the tower trains": (
        {"tune_vision_tower": "true", "tune_vit_from_layer": 1},
        "what was chosen of it lies behind them",
    ),
    "the layer of the features": ({"mm_vision_select_layer": -9}, "layer -9 of a vision tower with 2 layers"),
}

DRIVER = """
import contextlib, importlib.util, io, json, sys
from pathlib import Path
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "tensorboardX" else there(name, *more)
from paddlemix.checkpoint.formats.source import TensorSource
read = []
for way in ("view", "mapped"):
    setattr(TensorSource, way, lambda self, name: read.append(name))
from paddlemix.tools.supervised_finetune import main
found = {}
for name, argv in json.load(sys.stdin).items():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(argv)
    found[name] = [code, said.getvalue(), "paddle" in sys.modules, len(read), Path("out").exists()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refused(place, tmp_path_factory):
    """How the command ends for every case of ``WRONG``, all of them in one process."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "broken.json").write_text('[{"id": 1, ')
    (folder / "empty.json").write_text("[]")
    (folder / "roles.json").write_text(json.dumps([{"conversations": [{"from": "nobody", "value": "why?"}]}]))
    rows = json.loads((place / "train.json").read_text())
    (folder / "gone.json").write_text(json.dumps([{**rows[0], "image": "gone.png"}]))
    unmarked = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a thing"}]
    (folder / "unmarked.json").write_text(json.dumps([{**rows[0], "conversations": unmarked}]))
    cases = {name: arguments(place, "out", **changes) for name, (changes, _) in WRONG.items()}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(cases),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_reported_before_paddle_and_a_weight_and_leaves_nothing(refused, what):
    code, said, imported, weights, left = refused[what]
    assert WRONG[what][1] in said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert (code, imported, weights, left) == (2, False, 0, False)


def test_missing_eval_rows_name_the_key(place, tmp_path):
    with pytest.raises(ConfigError, match="eval"):
        go(place, tmp_path / "out", do_eval="true")


def test_the_failing_step_names_the_rows(place, tmp_path):
    with pytest.raises(TrainingError, match=r"step \d+: .*train\.json"):
        go(place, tmp_path / "out", learning_rate=1e30, max_grad_norm=0, lr_scheduler_type="constant")


def test_a_model_folder_that_does_not_exist_is_told(place, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        go(place, tmp_path / "out", model_name_or_path="nowhere/model")


def test_the_eval_accumulation_of_paddlemix_files_is_noted_and_does_not_stop_the_run(place, tmp_path, capsys):
    assert go(place, tmp_path / "out", eval_accumulation_steps=16).exit_code == 0
    assert "eval_accumulation_steps has no effect" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval", "save_on_each_node"])
def test_a_key_without_effect_is_an_error(place, tmp_path, name):
    with pytest.raises(ConfigError, match=f'"--{name}" is true, but only false is accepted'):
        go(place, tmp_path / "out", **{name: "true"})
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_told_before_the_first_step(place, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(ConfigError, match='"output_dir": .* MiB are free'):
        go(place, tmp_path / "out")
    assert not (tmp_path / "out" / "trainer_state.json").exists()


def test_packed_rows_train(place, tmp_path):
    result = go(place, tmp_path / "out", mixtoken="true", max_length=200)
    assert np.isfinite(result.metrics["train_loss"])


@pytest.fixture(autouse=True)
def _library_log():
    logger = logging.getLogger("PaddleNLP")
    logger.setLevel(logging.DEBUG)
    yield
    logger.handlers = []


@pytest.mark.parametrize("key", ["sep_parallel_degree", "tensor_parallel_degree"])
def test_what_a_cpu_cannot_do_is_told_before_more_processes_are_asked_for(place, tmp_path, key):
    with pytest.raises(ConfigError, match=f'"{key}" is 2, but the device is cpu'):
        go(place, tmp_path / "out", **{key: 2})
    assert not (tmp_path / "out").exists()
