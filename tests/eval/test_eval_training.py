# SPDX-License-Identifier: Apache-2.0
"""``eval_benchmarks`` and ``do_predict`` of a training: asked in between, without a trace in the training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlemix.eval.answer_files import read_answers
from paddlemix.settings.run.loader import load_settings
from paddlemix.trainer.run import finetune
from paddlemix.utils.errors import ConfigError, DataError
from tests.eval.model_kit import write_model, write_shapes
from tests.tiny import write_rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in training")
    write_model(folder)
    write_shapes(folder / "shapes", 4)
    write_rows(folder)
    return folder


def settings(home: Path, output: Path, **changes: Any) -> Any:
    part = [{"data_files": str(home / "train.json")}]
    keys = {
        "model_name_or_path": home / "model", "dataset": json.dumps({"train": part}), "image_folder": home,
        "output_dir": output, "do_train": "true", "device": "cpu", "per_device_train_batch_size": 2, "max_steps": 4,
        "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "per_device_eval_batch_size": 3,
        "evaluation_strategy": "steps", "eval_steps": 2, "lora": "true", **changes,
    }  # fmt: skip
    return load_settings(
        [part for name, value in keys.items() if value is not None for part in (f"--{name}", str(value))]
    )


def slices(home: Path, *entries: dict[str, Any]) -> str:
    return json.dumps(
        [{"data": str(home / "shapes" / entry["name"]), "max_new_tokens": 3, **entry} for entry in entries]
    )


def losses(output: Path) -> list[float]:
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def weights(output: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    (path,) = output.glob("*.safetensors")
    return load_file(path)


def test_benchmarks_are_asked_at_each_evaluation_and_leave_no_trace_in_the_training(home: Path, tmp_path: Path) -> None:
    """Dropout is on, so that a drawn random number would show; a second run is asked nothing."""
    parts = {"train": [{"data_files": str(home / "train.json")}], "eval": [{"data_files": str(home / "eval.json")}]}
    same = {"dataset": json.dumps(parts), "lora_dropout": 0.3, "recompute": "true", "neftune": "true"}
    asked = slices(home, {"name": "pope", "limit": 6}, {"name": "mme", "label": "mme-small", "limit": 4})
    found = finetune(settings(home, tmp_path / "asked", eval_benchmarks=asked, **same))
    finetune(settings(home, tmp_path / "plain", **same))
    assert losses(tmp_path / "asked") == losses(tmp_path / "plain")
    ours, plain = weights(tmp_path / "asked"), weights(tmp_path / "plain")
    assert all((ours[name] == plain[name]).all() for name in plain)
    log = json.loads((tmp_path / "asked" / "trainer_state.json").read_text())["log_history"]
    evaluated = [entry for entry in log if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated][:2] == [2, 4]
    assert all(0 <= entry["eval_pope_accuracy"] <= 1 and entry["eval_mme_small_perception"] >= 0 for entry in evaluated)
    assert "eval_pope_accuracy" in found.metrics
    answers = read_answers([tmp_path / "asked" / "eval_benchmarks" / "pope" / "step-000002.jsonl"])
    assert len(answers) == 6
    assert not (tmp_path / "plain" / "eval_benchmarks").exists()


def test_the_best_checkpoint_can_be_that_of_a_benchmark(home: Path, tmp_path: Path) -> None:
    asked = {"eval_benchmarks": slices(home, {"name": "pope", "label": "my-pope", "limit": 4})}
    same = {"load_best_model_at_end": "true", "save_strategy": "steps", "save_steps": 2, **asked}
    finetune(settings(home, tmp_path / "out", metric_for_best_model="my_pope_accuracy", **same))
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    values = {entry["step"]: entry[key] for entry in state["log_history"] if (key := "eval_my_pope_accuracy") in entry}
    best = max(values.values())
    assert state["best_metric"] == best
    first = min(step for step, value in values.items() if value == best)
    assert Path(state["best_model_checkpoint"]).name == f"checkpoint-{first}"
    with pytest.raises(ConfigError, match="known are my_pope_mean_f1, my_pope_accuracy"):
        finetune(settings(home, tmp_path / "no", metric_for_best_model="my_pope_f1", **same))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("name", "greater", "best"), [(None, None, 1), ("eval_rouge_l", None, 2), ("rouge_l", False, 0), ("loss", True, 2)]
)
def test_the_best_is_the_lowest_loss_or_the_highest_of_other_measures(
    name: str | None, greater: bool | None, best: int
) -> None:
    from types import SimpleNamespace as Made

    from paddlemix.trainer.evaluation import Evaluation

    trainer = Evaluation()
    trainer.settings = Made(training=Made(metric_for_best_model=name, greater_is_better=greater))
    trainer.state = Made(best_metric=None, best_model_checkpoint=None)
    for number, (loss, score) in enumerate(((0.5, 0.1), (0.4, 0.2), (0.6, 0.3))):
        trainer._note_best({"eval_loss": loss, "eval_rouge_l": score}, Path(f"checkpoint-{number}"))
    trainer._note_best({"eval_runtime": 1.0}, Path("without"))  # a measure that has no value this time
    assert trainer.state.best_model_checkpoint == f"checkpoint-{best}"


def test_the_generator_is_where_it_was_and_the_model_trains_again(home: Path, tmp_path: Path) -> None:
    from paddlemix.trainer.run import TrainingRun

    made = settings(home, tmp_path / "out", eval_benchmarks=slices(home, {"name": "gqa"}))
    run = TrainingRun(made, tmp_path / "out", None)
    run.set_up()
    before = [state.current_seed() for state in paddle.get_rng_state()], np.random.get_state()[1].tolist()
    metrics = run.trainer.evaluate()
    assert ([state.current_seed() for state in paddle.get_rng_state()], np.random.get_state()[1].tolist()) == before
    assert run.model.training
    assert set(metrics) == {"eval_gqa_accuracy", "eval_benchmarks_runtime"}, "without eval rows the benchmarks alone"


def test_what_a_benchmark_scores_in_a_training_is_what_the_command_scores(home: Path, tmp_path: Path) -> None:
    """Of the model that a run without training evaluates."""
    from paddlemix.eval.evaluate import Request, carry_out, planned
    from tests.eval.model_kit import cpu

    asked = slices(home, {"name": "pope"}, {"name": "textvqa"})
    finetune(settings(home, tmp_path / "out", do_train="false", do_eval="true", eval_benchmarks=asked, lora=None))
    metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    for name, metric in (("pope", "accuracy"), ("textvqa", "accuracy")):
        request = Request(
            name, home / "shapes" / name, cpu(home / "model"), tmp_path / name, max_new_tokens=3, batch_size=3
        )
        outcome = carry_out(planned(request))
        assert metrics[f"eval_{name}_{metric}"] == pytest.approx(outcome.scored[0].score.metrics[metric], abs=1e-6)
        own = read_answers([next((tmp_path / "out" / "eval_benchmarks" / name).glob("*.jsonl"))])
        said = read_answers([tmp_path / name / "answers.jsonl"])
        assert [answer.text for answer in own] == [answer.text for answer in said]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "pope"}], 'item 0: "data" is missing'),
        ([{"name": "pope", "data": "x", "limits": 3}], 'unknown key "limits", did you mean "limit"'),
        ([{"name": "pope", "data": "x", "limit": 0}], '"limit" has to be a whole number from 1'),
        ([{"name": "pope", "data": "x"}] * 2, '"pope" is there twice; give one of them a "label"'),
        ([{"name": "popee", "data": "x"}], 'unknown benchmark "popee", did you mean "pope"'),
        ([{"name": "custom", "data": "x"}], "own rows go by the rule that scores them: exact, choice, vqa or rouge-l"),
        ([{"name": "pope", "data": "nowhere"}], "nowhere: no such folder"),
        ([{"name": "mm-vet", "data": "x"}], "cannot be scored here"),
        (
            [{"name": "pope", "data": "SHAPES/pope", "image_folder": "nowhere"}],
            'name the right folder with "image_folder"',
        ),
        ([{"name": "pope", "data": "SHAPES/pope", "convention": "lava"}], 'unknown convention "lava"'),
    ],
)
def test_a_wrong_entry_ends_the_run_before_a_weight_is_read(
    entries: list[dict[str, Any]], message: str, home: Path, tmp_path: Path
) -> None:
    text = json.dumps(entries).replace("SHAPES", str(home / "shapes"))
    with pytest.raises((ConfigError, DataError)) as raised:
        finetune(settings(home, tmp_path / "out", eval_benchmarks=text))
    assert message in str(raised.value)
    assert "eval_benchmarks" in str(raised.value)
    assert not (tmp_path / "out").exists()


def with_test(home: Path, folder: Path, rows: list[dict[str, Any]] | None = None) -> str:
    rows = rows or json.loads((home / "train.json").read_text())
    (folder / "test.json").write_text(json.dumps(rows))
    parts = {"train": [{"data_files": str(home / "train.json")}], "test": [{"data_files": str(folder / "test.json")}]}
    return json.dumps(parts)


def test_do_predict_writes_what_the_model_answers_to_the_test_rows(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((home / "train.json").read_text())
    rows[0]["conversations"] += [{"from": "human", "value": "and why?"}, {"from": "gpt", "value": "because"}]
    rows[1]["conversations"][1]["value"] = ""
    changes = {
        "dataset": with_test(home, tmp_path, rows), "evaluation_strategy": "no", "eval_steps": None,
        "do_predict": "true", "max_new_tokens": 3, "lora": None,
    }  # fmt: skip
    made = settings(home, tmp_path / "out", **changes)
    found = finetune(made)
    said = " ".join("".join(capsys.readouterr()).split())  # long lines are broken
    assert "predict_rows: 6" in said
    assert f"The predictions are in {tmp_path / 'out' / 'generated_predictions.jsonl'}" in said
    lines = [json.loads(line) for line in (tmp_path / "out" / "generated_predictions.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"prompt", "predict", "label"}] * 6
    assert lines[0]["label"] == "because"
    assert lines[0]["prompt"].endswith("and why?")
    assert "red square" not in lines[0]["prompt"], "of the answers only those before the question"
    assert {"predict_rows", "predict_failed", "predict_exact_match", "predict_rouge_l"} <= set(found.metrics)
    assert found.metrics["predict_rows"] == 6
    assert json.loads((tmp_path / "out" / "predict_results.json").read_text())["predict_rows"] == 6

    from paddlemix.tools.batch_predict import main

    flags = [
        "--model-path", str(tmp_path / "out"), "--data", str(tmp_path / "test.json"), "--image-folder", str(home),
        "--output", str(tmp_path / "again.jsonl"), "--max-new-tokens", "3", "--batch-size", "3", "--device", "cpu",
    ]  # fmt: skip
    assert main(flags) == 0
    again = [json.loads(line)["response"] for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert again == [line["predict"] for line in lines], "the published result answers as the model in memory did"


def test_predictions_go_on_after_a_kill_and_those_of_another_model_are_made_anew(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paddlemix.eval.asking import Asker
    from tests.eval.model_kit import StopError

    changes = {"dataset": with_test(home, tmp_path), "evaluation_strategy": "no", "do_train": "false",
               "do_predict": "true", "max_new_tokens": 2, "lora": None, "eval_steps": None}  # fmt: skip
    finetune(settings(home, tmp_path / "straight", **changes))
    asked: list[int] = []
    ask = Asker.ask

    def dies(self: Asker, items: Any) -> Any:
        asked.append(len(items))
        if len(asked) == 2:
            raise StopError
        return ask(self, items)

    monkeypatch.setattr(Asker, "ask", dies)
    with pytest.raises(StopError):
        finetune(settings(home, tmp_path / "out", **changes))
    finetune(settings(home, tmp_path / "out", **changes))
    assert asked == [3, 3, 3], "the first batch is not asked again"
    finetune(settings(home, tmp_path / "out", **changes))
    assert len(asked) == 3, "what is done is not done again"
    name = "generated_predictions.jsonl"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    finetune(settings(home, tmp_path / "out", **{**changes, "max_new_tokens": 1}))
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_predict": "true"}, 'add "test" to dataset'),
        ({"do_predict": "true", "sharding": "stage3", "dataset": "TEST"}, "stage3 leaves no process a whole model"),
        ({"do_predict": "true", "tensor_parallel_degree": 2, "dataset": "TEST"}, "do not answer questions"),
    ],
)
def test_what_cannot_be_predicted_is_said_at_once(
    changes: dict[str, Any], message: str, home: Path, tmp_path: Path
) -> None:
    given = {**changes, "dataset": with_test(home, tmp_path)} if "dataset" in changes else changes
    with pytest.raises(ConfigError) as raised:
        settings(home, tmp_path / "out", **given)
    assert message in str(raised.value)
