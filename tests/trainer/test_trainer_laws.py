"""Laws of the training loop, on a model that trains a step in milliseconds."""

import dataclasses
import logging

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from paddlemix.datasets.sampler import shuffled
from paddlemix.trainer import checkpointing
from paddlemix.utils.errors import CheckpointError, ConfigError, DataError, TrainingError
from tests.trainer.trainer_kit import Rows, collate, losses, make_trainer, settings, tiny, weights


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)


def trained(run, **more):
    trainer = make_trainer(run, **more)
    trainer.train()
    return trainer


def same(one, other):
    left, right = weights(one.model), weights(other.model)
    return left.keys() == right.keys() and same_values(left, right)


def same_values(left, right):
    return all(np.array_equal(left[name], right[name]) for name in left)


def furthest(one, other):
    left, right = weights(one.model), weights(other.model)
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


@pytest.mark.parametrize(
    ("lora", "accumulate", "tower"), [(False, 1, False), (False, 2, True), (True, 1, True), (True, 2, False)]
)
def test_a_resumed_run_equals_the_straight_run_bit_for_bit(tmp_path, lora, accumulate, tower):
    keys = dict(lora=lora, gradient_accumulation_steps=accumulate, logging_steps=2, tune_entire_model=tower)
    straight = trained(settings(tmp_path / "straight", **keys))
    trained(settings(tmp_path / "saved", save_strategy="steps", save_steps=1, **keys))
    found = checkpointing.checkpoints(tmp_path / "saved")
    # In the middle of an epoch, between two log lines, at the border of the epochs, at the last step.
    steps = straight.state.max_steps
    for step, folder in [found[index - 1] for index in (1, steps // 2, steps // 2 + 1, steps)]:
        resumed = make_trainer(settings(tmp_path / "saved", **keys))
        output = resumed.train(folder)
        assert same(resumed, straight), f"resumed at {step}"
        assert losses(resumed) == losses(straight)
        assert output.training_loss == straight.state.log_history[-1]["train_loss"]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"lora": True},
        {"tune_mm_mlp_adapter": True},
        {"tune_entire_model": True},
    ],
)
def test_steps_without_a_picture_give_the_optimizer_zeros_so_any_step_can_be_resumed(tmp_path, keys):
    def order(epoch):  # images only in the third and the fifth step
        return [2, 5, 8, 2, 0, 5, 8, 11, 1, 3, 2, 5]

    count = keys.get("gradient_accumulation_steps", 1)
    keys = dict(per_device_train_batch_size=2 // count, num_train_epochs=1.0, save_total_limit=None, **keys)
    straight = make_trainer(settings(tmp_path, save_strategy="steps", save_steps=1, **keys), order=order)
    straight.train()
    moments = load_file(tmp_path / "checkpoint-1" / "optimizer.safetensors")
    assert {name.partition("/")[2] for name in moments} == set(straight.plan.rules)
    for step in range(1, 6):
        resumed = make_trainer(settings(tmp_path, **keys), order=order)
        resumed.train(tmp_path / f"checkpoint-{step}")
        assert same(resumed, straight), f"resumed at {step}"


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path):
    first = trained(settings(tmp_path / "a", lora=True))
    assert same(first, trained(settings(tmp_path / "b", lora=True)))
    assert not same(first, trained(settings(tmp_path / "c", lora=True, seed=43)))


def test_saving_changes_nothing(tmp_path):
    plain = trained(settings(tmp_path / "a", lora=True))
    assert same(plain, trained(settings(tmp_path / "b", lora=True, save_strategy="steps", save_steps=1)))


def test_evaluation_during_training_changes_nothing(tmp_path):
    plain = trained(settings(tmp_path / "a", lora=True))
    run = settings(tmp_path / "b", lora=True, evaluation_strategy="steps", eval_steps=1, do_eval=True)
    assert same(plain, trained(run, eval_rows=Rows(4)))


@pytest.mark.parametrize("keys", [{}, {"lora": True}, {"lora": True, "freeze_mm_mlp_adapter": True}])
def test_recompute_equals_plain(tmp_path, keys):
    plain = trained(settings(tmp_path / "a", **keys))
    assert same(plain, trained(settings(tmp_path / "b", recompute=True, **keys)))


def test_two_micro_batches_equal_one_of_twice_the_size(tmp_path):
    # Equal counts of labels per row: only then is the mean of the means the mean of all.
    rows = Rows(12, equal=True)
    large = trained(settings(tmp_path / "a", per_device_train_batch_size=4), rows=rows)
    small = trained(settings(tmp_path / "b", gradient_accumulation_steps=2), rows=rows)
    assert losses(small) == pytest.approx(losses(large), rel=1e-6)
    assert furthest(small, large) < 5e-6


def test_worker_processes_change_nothing(tmp_path):
    plain = trained(settings(tmp_path / "a", max_steps=3))
    assert same(plain, trained(settings(tmp_path / "b", max_steps=3, dataloader_num_workers=1)))


def test_lora_starts_equal_to_its_base(tmp_path):
    batch = {name: paddle.to_tensor(value) for name, value in collate([Rows()[0], Rows()[2]]).items()}
    base = tiny()
    base.eval()
    adapted = make_trainer(settings(tmp_path, lora=True)).model
    adapted.eval()
    assert float(base(**batch)) == float(adapted(**batch))


@pytest.mark.parametrize(
    "keys",
    [{}, {"lora": True}, {"lora": True, "freeze_include": ("*mm_projector*",)}, {"tune_mm_mlp_adapter": True}],
)
def test_exactly_the_planned_parameters_move(tmp_path, keys):
    trainer = make_trainer(settings(tmp_path, **keys))
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == set(trainer.plan.rules)


def test_frozen_parameters_get_no_gradient(tmp_path):
    trainer = make_trainer(settings(tmp_path, lora=True))
    trainer.model(**{name: paddle.to_tensor(value) for name, value in collate([Rows()[0]]).items()}).backward()
    with_gradient = {name for name, value in trainer.model.named_parameters() if value.grad is not None}
    assert with_gradient == set(trainer.plan.rules)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_value_that_is_not_finite_stops_before_the_update(tmp_path, accumulate):
    rows = Rows(12, poison=4)
    run = settings(tmp_path / "a", gradient_accumulation_steps=accumulate)
    trainer = make_trainer(run, rows=rows)
    with pytest.raises(TrainingError, match=r"step \d+: .*nan.*synthetic record 4") as caught:
        trainer.train()
    done = trainer.state.global_step
    assert f"step {done + 1}:" in str(caught.value)
    assert all(np.isfinite(value).all() for value in weights(trainer.model).values())
    # The schedule belongs to the whole run, so the same run is stopped after the last good step by hand.
    clean = make_trainer(run, rows=Rows(12))
    stop_after(clean, done)
    clean.train()
    assert same(trainer, clean)


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (0, 2), (2, 2)])
def test_a_row_that_cannot_be_read_ends_the_run_as_a_signal_does(tmp_path, workers, accumulate):
    keys = dict(gradient_accumulation_steps=accumulate, dataloader_num_workers=workers, logging_steps=2)
    straight = trained(settings(tmp_path / "straight", save_strategy="steps", save_steps=1, **keys))
    order = shuffled(12, 42)(0)
    refused = order[2 * 2 * accumulate + 1]  # in the first micro-batch of the third step
    failing = make_trainer(settings(tmp_path / "failing", **keys), rows=Rows(refused=refused))
    with pytest.raises(DataError, match=f"^synthetic record {refused}: no such image$"):
        failing.train()
    assert [step for step, _ in checkpointing.checkpoints(tmp_path / "failing")] == [2]
    saved, wanted = tmp_path / "failing" / "checkpoint-2", tmp_path / "straight" / "checkpoint-2"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (saved / name).read_bytes() == (wanted / name).read_bytes()
    states = [dataclasses.replace(checkpointing.read_state(folder), settings={}) for folder in (saved, wanted)]
    assert states[0] == states[1]
    resumed = make_trainer(settings(tmp_path / "failing", **keys))
    resumed.train(saved)
    assert same(resumed, straight)
    assert losses(resumed) == losses(straight)


def test_each_process_goes_on_with_its_own_sum_of_losses_and_not_with_their_mean(tmp_path):
    straight = trained(settings(tmp_path, save_strategy="steps", save_steps=4, logging_steps=3))
    folder = tmp_path / "checkpoint-4"
    state = checkpointing.read_state(folder)
    assert state.open_losses == [state.open_loss]
    checkpointing.write_state(folder, dataclasses.replace(state, open_loss=123.0))
    resumed = make_trainer(settings(tmp_path, logging_steps=3))
    resumed.train(folder)
    assert losses(resumed) == losses(straight)


def test_a_row_that_cannot_be_read_in_evaluation_ends_the_run_as_a_signal_does(tmp_path):
    run = settings(tmp_path, do_eval=True, evaluation_strategy="steps", eval_steps=3)
    with pytest.raises(DataError, match="synthetic record 2"):
        trained(run, eval_rows=Rows(4, refused=2))
    assert [step for step, _ in checkpointing.checkpoints(tmp_path)] == [3]


def test_an_error_in_the_first_step_and_one_of_the_numbers_save_nothing(tmp_path):
    first = shuffled(12, 42)(0)[0]
    with pytest.raises(DataError):
        trained(settings(tmp_path), rows=Rows(refused=first))
    with pytest.raises(TrainingError):
        trained(settings(tmp_path), rows=Rows(poison=4))
    assert checkpointing.checkpoints(tmp_path) == []


def stop_after(trainer, steps):
    from paddlemix.trainer.library import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= steps
            return control

    trainer.add_callback(Stop())


def test_save_total_limit_holds_in_a_single_process(tmp_path):
    run = settings(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2)
    trained(run)
    assert [step for step, _ in checkpointing.checkpoints(tmp_path)] == [10, 12]


def test_the_best_checkpoint_is_kept_and_taken(tmp_path):
    run = settings(
        tmp_path,
        do_eval=True,
        evaluation_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        learning_rate=0.3,  # far too high: the last step is not the best
        lr_scheduler_type="constant",
    )
    trainer = trained(run, eval_rows=Rows(6))
    scores = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = int(np.argmin(scores)) + 1
    assert best < len(scores)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert [step for step, _ in checkpointing.checkpoints(tmp_path)] == [best, len(scores)]
    assert trainer.evaluate()["eval_loss"] == scores[best - 1]


def test_eval_loss_does_not_depend_on_the_batch_size(tmp_path):
    found = [
        make_trainer(settings(tmp_path, per_device_eval_batch_size=size), eval_rows=Rows(7)).evaluate()["eval_loss"]
        for size in (1, 2, 7)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_eval_loss_is_the_mean_over_all_labels(tmp_path):
    trainer = make_trainer(settings(tmp_path), eval_rows=Rows(5))
    model = trainer.model
    model.eval()
    parts = []
    for index in range(5):
        batch = collate([Rows(5)[index]])
        count = int((batch["labels"][:, 1:] != -100).sum())
        parts.append((float(model(**{k: paddle.to_tensor(v) for k, v in batch.items()})) * count, count))
    expected = sum(part for part, _ in parts) / sum(count for _, count in parts)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_the_rates_in_the_log_are_those_that_the_steps_used(tmp_path):
    trainer = trained(settings(tmp_path, max_steps=6))
    found = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert found == pytest.approx([0.0, 0.005, 0.01, 0.0085355339, 0.005, 0.0014644661], abs=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"])
@pytest.mark.parametrize("warmup", [{"warmup_ratio": 0.03}, {"warmup_ratio": 1.0}, {"warmup_steps": 100}])
def test_a_run_of_one_step_changes_the_weights(tmp_path, schedule, warmup, capsys):
    trainer = make_trainer(settings(tmp_path, lora=True, max_steps=1, lr_scheduler_type=schedule, **warmup))
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert all(after[name].any() for name in after if name.endswith("lora_B"))
    assert {name for name in before if not np.array_equal(before[name], after[name])} >= {
        name for name in trainer.plan.rules if "lora_A" not in name
    }
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["learning_rate"] == 1e-2
    assert ("note: no warmup" in capsys.readouterr().err) == (schedule != "constant")


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_warmup_longer_than_the_run_is_noted_and_the_weights_change(tmp_path, steps, capsys):
    trainer = make_trainer(settings(tmp_path, max_steps=steps, warmup_steps=100))
    before = weights(trainer.model)
    trainer.train()
    assert not same_values(before, weights(trainer.model))
    assert f"rises to {1e-4 * (steps - 1):g} and never reaches" in capsys.readouterr().err


def test_other_settings_refuse_to_resume_and_name_what_changed(tmp_path):
    trained(settings(tmp_path, save_strategy="steps", save_steps=4))
    folder = checkpointing.newest_valid(tmp_path)
    changed = make_trainer(settings(tmp_path, learning_rate=2e-2, logging_steps=3))
    with pytest.raises(ConfigError, match="learning_rate was 0.01, is 0.02") as caught:
        changed.train(folder)
    assert "logging_steps" not in str(caught.value)
    with pytest.raises(ConfigError, match="training data"):
        make_trainer(settings(tmp_path), rows=Rows(11)).train(folder)


def test_optimizer_states_that_do_not_fit_are_refused(tmp_path):
    trained(settings(tmp_path, save_strategy="steps", save_steps=12))
    trainer = make_trainer(settings(tmp_path))
    trainer.create_optimizer_and_scheduler(12)
    some = dict(list(trainer.plan.trainable(trainer.model).items())[:-1])
    path = tmp_path / "checkpoint-12" / "optimizer.safetensors"
    with pytest.raises(CheckpointError, match="do not fit the run; .*lm_head.weight is not expected"):
        checkpointing.load_optimizer([path], trainer.optimizer, some)


def test_head_and_loss_by_portions_train_as_the_whole(tmp_path, monkeypatch):
    from paddlemix.models import head_loss

    portions = []
    of_part = head_loss._of_part
    monkeypatch.setattr(head_loss, "_of_part", lambda *args: portions.append(1) or of_part(*args))
    found = []
    for fused in (False, True):
        trainer = make_trainer(settings(tmp_path / str(fused), max_steps=3, use_fused_head_and_loss_fn=fused))
        trainer.train()
        found.append((losses(trainer), weights(trainer.model)))
        assert bool(portions) == fused
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    for name, value in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], value, atol=2e-5, err_msg=name)
