# SPDX-License-Identifier: Apache-2.0
"""A loss that jumps and a step that does not fit: told with the rows, and the run ends where it was asked to."""

import logging

import numpy as np
import pytest

from paddlemix.trainer.library import TrainerCallback
from paddlemix.trainer.spikes import FEWEST, LossHistory
from paddlemix.utils.errors import TrainingError
from tests.trainer.trainer_kit import make_trainer, settings, weights


def judged(losses: list[float], logged_every: int = 1, factor: float = 100.0) -> list[float | None]:
    """What is said of each step when the sum begins anew behind every log line."""
    history, total, found = LossHistory(factor), 0.0, []
    for step, loss in enumerate(losses):
        steps = step % logged_every + 1
        total = loss if steps == 1 else total + loss
        found.append(history.times_above(total, steps))
    return found


@pytest.mark.parametrize("logged_every", [1, 3, 100])
def test_a_jump_is_told_wherever_it_stands_between_log_lines(logged_every):
    said = judged([2.0] * 10 + [500.0] + [2.0] * 3 + [700.0], logged_every)
    assert [step for step, times in enumerate(said) if times is not None] == [10, 14]
    assert said[10] == pytest.approx(250.0)


def test_what_is_usual_is_no_jump():
    assert not any(judged([9.0, 5.0, 3.0, 2.0, 2.0, 2.0, 150.0, 2.0]))
    assert not any(judged([1.0] * (FEWEST - 1) + [1e6]))
    assert not any(judged([1.0] * 10 + [1e6], factor=0.0))
    assert not any(judged([0.0] * 10 + [5.0]))


def test_a_resumed_run_in_the_middle_of_a_log_interval_judges_from_its_second_step_on():
    history = LossHistory(100.0)
    assert history.times_above(1e9, 4) is None
    assert [history.times_above(1e9 + 2.0 * n, 4 + n) for n in range(1, 7)] == [None] * 6


class Jumping:
    """Scales the loss of one step; the gradients stay as they are."""

    def __init__(self, trainer, step):
        self.trainer, self.step, self.real = trainer, step, trainer._check_loss_valid

    def __call__(self, loss):
        if self.trainer.state.global_step >= self.step:
            loss = loss + 10_000.0
        self.real(loss)


@pytest.mark.parametrize("stops", [False, True])
def test_a_run_tells_the_rows_of_a_jump_and_ends_there_when_asked(tmp_path, capsys, stops):
    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    run = settings(tmp_path, max_steps=8, logging_steps=100, stop_at_loss_jump=stops)
    trainer = make_trainer(run)
    trainer._check_loss_valid = Jumping(trainer, 6)
    if stops:
        with pytest.raises(TrainingError, match=r"step 7: the loss jumped .* Rows of this step: "):
            trainer.train()
        assert trainer.state.global_step == 6
    else:
        assert trainer.train().global_step == 8
        assert trainer.losses.jumps == 1
    assert "step 7: the loss is " in capsys.readouterr().err


def test_a_step_that_does_not_fit_names_its_rows_and_what_to_lower(tmp_path, monkeypatch):
    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    trainer = make_trainer(settings(tmp_path, max_steps=2))

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(type(trainer.model), "forward", full)
    with pytest.raises(TrainingError, match=r"step 1: out of memory with \d+ rows of \d+ positions .*recompute"):
        trainer.train()


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_not_finite_stops_before_the_update_although_the_loss_is(tmp_path, max_grad_norm):
    trainer = make_trainer(settings(tmp_path, max_grad_norm=max_grad_norm))
    parameter = next(iter(trainer.plan.trainable(trainer.model).values()))
    parameter.register_hook(lambda grad: grad * (float("inf") if trainer.state.global_step == 2 else 1.0))
    seen = {}

    class Keep(TrainerCallback):
        def on_step_end(self, *_, **__):
            seen.update(weights(trainer.model))

    trainer.add_callback(Keep())
    with pytest.raises(TrainingError, match=r"step 3: the loss is \d.*, the gradient norm (nan|inf).*synthetic record"):
        trainer.train()
    assert all(np.array_equal(seen[name], value) for name, value in weights(trainer.model).items())
