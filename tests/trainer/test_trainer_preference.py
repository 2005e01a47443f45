# SPDX-License-Identifier: Apache-2.0
"""Preference tuning as a whole: TRL's numbers, the reference, resume, accumulation, processes, a toy that is learnt."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.save import save_model
from paddlemix.ops.linear import lora_layers
from paddlemix.settings.run.loader import load_settings
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer.preference import PreferenceTrainer
from paddlemix.trainer.run import finetune, preference_tune
from paddlemix.utils.errors import ConfigError
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer_folder
from tests.trainer import preference_kit as kit
from tests.trainer import preference_rows as shared
from tests.trainer.run_kit import arguments
from tests.trainer.trainer_kit import weights

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "trl" / "preference.json").read_text())
WORKER = Path(__file__).with_name("trl_worker.py")


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)


@pytest.mark.parametrize("case", shared.LOSSES)
def test_losses_measures_and_gradients_of_ten_steps_are_those_of_trl(tmp_path, case):
    trainer = kit.trainer(case, tmp_path)
    trainer.train()
    mine = kit.logged(trainer)
    expected = GOLDEN[case]
    assert len(mine) == shared.STEPS
    for name, values in expected["measures"].items():
        if name == "nll_loss" and case == "simpo":
            continue  # 0 there, and not a term of the loss
        np.testing.assert_allclose(
            [entry.get(name, np.nan) for entry in mine], values, rtol=1e-6, atol=1e-4, err_msg=name
        )
    sketches = [shared.sketch(found) for found in trainer.gradients]
    for name, steps in expected["gradients"].items():
        np.testing.assert_allclose([found[name] for found in sketches], steps, rtol=2e-5, atol=1e-4, err_msg=name)


@pytest.mark.reference
@pytest.mark.timeout(300)
def test_trl_itself_gives_the_same_gradients(tmp_path):
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    command = [python, str(WORKER), str(tmp_path), *shared.LOSSES]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case in shared.LOSSES:
        trainer = kit.trainer(case, tmp_path / case)
        trainer.train()
        theirs = np.load(tmp_path / f"{case}.npz")
        losses = [entry["loss"] for entry in json.loads(str(theirs["logs"]))]
        np.testing.assert_allclose([entry["loss"] for entry in kit.logged(trainer)], losses, rtol=0, atol=1e-4)
        for step, found in enumerate(trainer.gradients):
            for name, value in found.items():
                np.testing.assert_allclose(value, theirs[f"{step}/{name}"], rtol=0, atol=1e-4, err_msg=f"{case} {name}")


@pytest.mark.reference
@pytest.mark.timeout(300)
def test_trl_gives_the_same_losses_and_gradients_for_pairs_with_images(tmp_path):
    """Ten steps of DPO on transformers' LLaVA; the tower is frozen, the projector trains."""
    from paddlemix.checkpoint.convert.layouts import convert
    from paddlemix.checkpoint.save import save_model
    from paddlemix.text.tokenizer import load_tokenizer
    from tests.tiny import tiny_model, tiny_tokenizer_folder

    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    model = tiny_model()
    save_model(tmp_path / "own", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    convert(tmp_path / "own", tmp_path / "hf", "llava-hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    rows = kit.PicturedRows(model.config)
    np.savez(tmp_path / "rows.npz", **rows.arrays(model.config, config["image_token_index"]))
    command = [python, str(WORKER.with_name("trl_picture_worker.py")), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trainer = kit.trainer("sigmoid", tmp_path / "out", tuned=model, rows=rows)
    trainer.train()
    theirs = np.load(tmp_path / "trl.npz")
    logs, mine = json.loads(str(theirs["logs"])), kit.logged(trainer)
    for name in ("loss", "rewards/chosen", "rewards/margins", "logps/rejected"):
        np.testing.assert_allclose([e[name] for e in mine], [e[name] for e in logs], rtol=1e-6, atol=1e-4, err_msg=name)
    assert len({round(entry["loss"], 6) for entry in mine}) == len(mine) == shared.STEPS
    for step, found in enumerate(trainer.gradients):
        named = {kit.in_llava(name): value for name, value in found.items()}
        assert {f"{step}/{name}" for name in named} == {name for name in theirs.files if name.startswith(f"{step}/")}
        for name, value in named.items():
            np.testing.assert_allclose(value, theirs[f"{step}/{name}"], rtol=1e-4, atol=1e-4, err_msg=f"{step} {name}")


# Runs of the command, with images


def prefer(place, output, **changes):
    rows = place / ("single.json" if changes.get("loss_type") == "kto" else "pairs.json")
    keys = {"data_path": rows, "logging_steps": 2, "loss_type": "sigmoid", **changes}
    return preference_tune(load_settings(arguments(place, output, **keys)))


@pytest.fixture(scope="session")
def pairs(place):
    """The folder of ``place``, with rows of two answers and of one."""
    both = []
    for number in range(6):
        good, bad = ("red square", "blue circle and green") if number % 2 else ("blue circle", "there are three")
        row = {"image": f"{number}.png", "question": f"what colour {number}?", "chosen": good, "rejected": bad}
        both.append(row if number != 4 else {name: value for name, value in row.items() if name != "image"})
    (place / "pairs.json").write_text(json.dumps(both))
    single = [
        {name: row[name] for name in ("image", "question") if name in row}
        | {"label": bool(number % 2), "completion": row["chosen" if number % 2 else "rejected"]}
        for number, row in enumerate(both)
    ]
    (place / "single.json").write_text(json.dumps(single))
    return place


def log_of(folder):
    kept = ("loss", "kl", "grad_norm")
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in entry.items() if "/" in name or name in kept} for entry in entries]


def result(folder):
    from paddlemix.checkpoint.load import load_model

    return weights(load_model(str(folder)).model)


@pytest.mark.parametrize("changes", [{}, {"lora": "true"}, {"loss_type": "kto"}], ids=["full", "lora", "kto"])
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(pairs, tmp_path, changes):
    keys = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "seed": 5, **changes}
    prefer(pairs, tmp_path / "straight", **keys)
    # A run of the same length whose later checkpoints are gone, as after a kill behind the third step.
    prefer(pairs, tmp_path / "killed", **keys)
    for folder in (tmp_path / "killed").glob("checkpoint-*"):
        if folder.name != "checkpoint-3":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    before = result(tmp_path / "straight")
    prefer(pairs, tmp_path / "killed", **keys, resume_from_checkpoint=tmp_path / "killed" / "checkpoint-3")
    after = result(tmp_path / "killed")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert log_of(tmp_path / "killed")[:3] == log_of(tmp_path / "straight")[:3]


@pytest.mark.parametrize("lora", ["false", "true"])
def test_log_probabilities_that_were_computed_before_give_the_same_run(pairs, tmp_path, lora):
    prefer(pairs, tmp_path / "live", lora=lora)
    prefer(pairs, tmp_path / "kept", lora=lora, precompute_ref_log_probs="true")
    for mine, other in zip(log_of(tmp_path / "kept"), log_of(tmp_path / "live"), strict=True):
        assert mine.keys() == other.keys()
        np.testing.assert_allclose(list(mine.values()), list(other.values()), rtol=1e-4, atol=1e-4)


def test_kept_log_probabilities_are_used_again_and_those_of_other_rows_are_not(pairs, tmp_path, monkeypatch):
    keys = {"precompute_ref_log_probs": "true", "overwrite_output_dir": "true"}
    prefer(pairs, tmp_path / "out", **keys)
    asked = []
    computed = PreferenceTrainer._computed
    monkeypatch.setattr(PreferenceTrainer, "_computed", lambda *a: asked.append(a[2]) or computed(*a))
    prefer(pairs, tmp_path / "out", **keys)
    assert asked == []
    prefer(pairs, tmp_path / "out", **keys, max_length=300)
    assert asked == [[0, 1, 2, 3, 4, 5]]


def test_the_reference_is_the_start_whatever_the_training_did(pairs, tmp_path):
    """With a rate so high that the model is far from its start, and adapters that go on from a folder."""
    prefer(pairs, tmp_path / "first", lora="true", learning_rate=0.05)
    for changes in ({}, {"lora": "true"}, {"lora": "true", "lora_path": tmp_path / "first"}):
        name = f"out-{len(changes)}"
        prefer(pairs, tmp_path / name, learning_rate=0.05, logging_steps=1, max_steps=3, **changes)
        first, *others = log_of(tmp_path / name)[:3]
        assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0
        assert all(abs(entry["rewards/margins"]) > 1e-3 for entry in others)


def test_a_wide_model_begins_as_its_reference(pairs, tmp_path):
    """From width 512 on, passes without gradients have kernels that round in another way."""
    config = tiny_config()
    wide = replace(config.text, hidden_size=512, intermediate_size=512, num_attention_heads=8)
    model = tiny_model(config=config.with_changes(text=wide))
    save_model(tmp_path / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    prefer(pairs, tmp_path / "out", model_name_or_path=tmp_path / "model", logging_steps=1, max_steps=1)
    first = log_of(tmp_path / "out")[0]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0


def test_accumulated_batches_are_one_larger_batch(tmp_path):
    found = {}
    for size, accumulate in ((4, 1), (2, 2)):
        made = kit.trainer(
            "sigmoid", tmp_path / str(size), PreferenceTrainer,
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulate,
        )  # fmt: skip
        made.train()
        found[size] = kit.logged(made), weights(made.model)
    for one, two in zip(*(found[size][0] for size in (4, 2)), strict=True):
        for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen"):
            np.testing.assert_allclose(one[name], two[name], rtol=0, atol=1e-4, err_msg=name)
    for name, value in found[4][1].items():
        np.testing.assert_allclose(value, found[2][1][name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.dist
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    worker = Path(__file__).with_name("preference_worker.py")
    alone = kit.trainer("rpo", tmp_path / "alone", PreferenceTrainer, per_device_train_batch_size=4, rpo_alpha=0.0)
    alone.train()
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    log = tmp_path / "log"
    done = subprocess.run(
        [*launcher, "--log_dir", str(log), str(worker), str(tmp_path / "two")],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = "\n".join(file.read_text()[-1500:] for file in sorted(log.glob("workerlog.*")))
    assert done.returncode == 0, told
    two = json.loads((tmp_path / "two" / "told.json").read_text())
    mine = kit.logged(alone)
    for name in ("loss", "rewards/chosen", "rewards/margins", "logps/rejected"):
        np.testing.assert_allclose(two["live"][name], [entry[name] for entry in mine], rtol=0, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(two["kept"][name], two["live"][name], rtol=0, atol=1e-4, err_msg=name)
    evaluated = alone.evaluate()
    for name in ("eval_loss", "eval_rewards/accuracies", "eval_logps/chosen"):
        np.testing.assert_allclose(two["evaluated"][name], evaluated[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "orpo"])
def test_a_tiny_model_learns_to_prefer(tmp_path, loss):
    """Chosen answers begin with an id that rejected ones never have, so every order of the rows teaches it."""
    for seed in (1, 2):
        made = kit.trainer(loss, tmp_path / str(seed), PreferenceTrainer, learning_rate=1e-2, num_train_epochs=4.0,
                           logging_steps=10, seed=seed)  # fmt: skip
        for pair in made.train_dataset.rows:
            for part, first in ((pair.chosen, 5), (pair.rejected, 9)):
                part.ids[pair.answer] = part.labels[pair.answer] = first
        order = np.random.default_rng(seed).permutation(len(made.train_dataset)).tolist()
        made.batches.order = lambda epoch, order=order: order
        made.train()
        assert made.evaluate()["eval_rewards/accuracies"] == 1.0


def test_evaluation_has_the_measures_and_counts_pairs(tmp_path):
    made = kit.trainer("sigmoid", tmp_path, PreferenceTrainer, do_eval=True)
    found = made.evaluate()
    assert found["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert found["eval_pairs"] == shared.BATCH * shared.STEPS
    assert {f"eval_{name}" for name in ("rewards/chosen", "rewards/margins", "rewards/accuracies")} <= set(found)


def test_adapters_have_no_dropout_unless_it_is_asked_for():
    from paddlemix.tools import preference_tune as command

    seen = []

    def start(settings):
        seen.append((settings.model.lora_dropout, settings.preference.loss_type))
        return type("Result", (), {"exit_code": 0})

    import paddlemix.trainer.run as run

    given = ["--model_name_or_path", "m", "--output_dir", "/tmp/none/out", "--data_path", "x.json", "--do_train"]
    before, run.preference_tune = run.preference_tune, start
    try:
        assert command.main(given) == 0
        assert command.main([*given, "--lora", "--lora_dropout", "0.1", "--loss_type", "ipo"]) == 0
    finally:
        run.preference_tune = before
    assert seen == [(0.0, "sigmoid"), (0.1, "ipo")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixtoken": "true"}, "pairs of answers are not packed"),
        ({"tensor_parallel_degree": 2}, "preference tuning does not divide a model"),
        ({"loss_type": "kto", "per_device_train_batch_size": 1}, "from the answers of other rows of the batch"),
        ({"loss_type": "kto", "precompute_ref_log_probs": "true"}, "pairs that each batch makes anew"),
        ({"sharding": "stage3"}, '"precompute_ref_log_probs": true'),
    ],
)
def test_what_does_not_go_with_a_preference_loss_is_refused(pairs, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        prefer(pairs, tmp_path / "out", **changes)


def test_the_other_trainings_refuse_a_preference_loss(pairs, tmp_path):
    keys = arguments(pairs, tmp_path / "out", loss_type="ipo")
    with pytest.raises(ConfigError, match='"loss_type" is "ipo", a loss of preference tuning'):
        finetune(load_settings(keys))


def test_dry_run_shows_both_answers(pairs, tmp_path, capsys):
    prefer(pairs, tmp_path / "out", dry_run="true")
    shown = capsys.readouterr().out
    assert ", chosen\n" in shown
    assert ", rejected\n" in shown
    assert "memory of a device, about: " in shown
    assert not (tmp_path / "out").exists()


def test_the_reference_leaves_every_weight_and_switch_as_it_was(tmp_path):
    made = kit.trainer("sigmoid", tmp_path, PreferenceTrainer)
    names = weights(made.model)
    with paddle.no_grad():
        for parameter in made.model.parameters():
            parameter.set_value(parameter + 1.0)
    moved = weights(made.model)
    with made.reference.in_place():
        inside = weights(made.model)
        assert not made.model.training
    after = weights(made.model)
    assert all(np.array_equal(inside[name], names[name]) for name in names)
    assert all(np.array_equal(after[name], moved[name]) for name in names)
    assert not any(layer.off for _, layer in lora_layers(made.model))


def test_the_estimate_of_memory_counts_both_answers_and_the_copy_of_the_reference():
    from paddlemix.settings.memory import count_parameters, expected_memory
    from paddlemix.settings.run.training import TrainingSettings
    from tests.tiny import tiny_config

    config = tiny_config()

    def need(**keys):
        return expected_memory(config, TrainingSettings().with_changes(per_device_train_batch_size=2, **keys), 1)

    counts = count_parameters(config)
    whole = need(loss_type="sigmoid")
    kept = need(loss_type="sigmoid", precompute_ref_log_probs=True)
    assert whole.weights - kept.weights == 4 * (counts.decoder + counts.projector)
    assert (
        need(loss_type="sigmoid", lora=True).weights - need(loss_type="simpo", lora=True).weights
        == 4 * counts.projector
    )
    assert kept.activations > 1.5 * need().activations
    assert need(loss_type="kto").activations == need().activations
