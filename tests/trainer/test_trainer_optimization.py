"""Rates and AdamW: the curves and updates of the reference."""

import math

import numpy as np
import paddle
import pytest

from paddlemix.models.llm import llama
from paddlemix.settings.run.training import TrainingGroup
from paddlemix.trainer import optimization
from paddlemix.trainer.clip import Spread, global_norm
from paddlemix.trainer.optimization import build_optimizer, build_schedule, rate_curve, warmup_steps
from paddlemix.trainer.stages import plan_stage
from paddlemix.utils.errors import ConfigError
from tests.trainer.trainer_kit import make_trainer, settings, tiny


def rates(total, **keys):
    training = TrainingGroup(learning_rate=1.0, **keys)
    curve = rate_curve(training, total)
    return [curve(step) for step in range(total + 1)]


def test_a_part_of_the_steps_is_rounded_up():
    assert warmup_steps(TrainingGroup(warmup_ratio=0.03), 101) == 4
    assert warmup_steps(TrainingGroup(warmup_ratio=0.03, warmup_steps=2), 101) == 2
    assert warmup_steps(TrainingGroup(warmup_ratio=0.03), 2) == 1


def test_linear_rises_to_one_and_falls_to_zero():
    assert rates(6, warmup_ratio=0.3, lr_scheduler_type="linear") == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_cosine_is_half_a_wave():
    expected = [0.0, 0.5] + [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert rates(6, warmup_steps=2, lr_scheduler_type="cosine") == pytest.approx(expected, abs=1e-15)


def test_cosine_has_as_many_waves_as_asked():
    for waves, expected in ((1.0, [1.0, 0.5, 0.0, 0.5, 1.0]), (2.0, [1.0, 0.0, 1.0, 0.0, 1.0])):
        found = rates(4, lr_scheduler_type="cosine", num_cycles=waves)
        assert found == pytest.approx(expected, abs=1e-15)


def test_constant_has_no_warmup_unless_its_name_says_so():
    assert rates(3, warmup_steps=2, lr_scheduler_type="constant") == [1.0] * 4
    assert rates(3, warmup_steps=2, lr_scheduler_type="constant_with_warmup") == [0.0, 0.5, 1.0, 1.0]


def test_polynomial_ends_at_lr_end():
    assert rates(4, lr_scheduler_type="polynomial", lr_end=0.1, power=2.0) == pytest.approx(
        [1.0, 0.1 + 0.9 * 0.75**2, 0.1 + 0.9 * 0.25, 0.1 + 0.9 / 16, 0.1]
    )
    with pytest.raises(ConfigError, match='"lr_end"'):
        rates(4, lr_scheduler_type="polynomial", lr_end=2.0)


def reference_adamw(value, grads, lr, decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """AdamW as the paper and torch have it, in float64."""
    value, m, v = value.astype(np.float64), 0.0, 0.0
    for step, grad in enumerate(grads, 1):
        value = value * (1 - lr * decay)
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad * grad
        value = value - lr / (1 - beta1**step) * m / (np.sqrt(v / (1 - beta2**step)) + eps)
    return value


@pytest.mark.parametrize(
    ("name", "lr", "decay"),
    [
        ("llama.mm_projector.0.weight", 1e-3, 0.1),
        ("llama.mm_projector.0.bias", 1e-3, 0.0),
        ("llama.norm.weight", 1e-2, 0.0),
        ("lm_head.weight", 1e-2, 0.1),
    ],
)
def test_every_parameter_is_updated_by_its_own_rule(tmp_path, name, lr, decay):
    run = settings(tmp_path, mm_projector_lr=1e-3, max_grad_norm=0.0, lr_scheduler_type="constant", weight_decay=0.1)
    model = tiny()
    plan = plan_stage(model, run)
    plan.apply(model)
    optimizer = build_optimizer(model, plan, run.training, build_schedule(run.training, 10))
    parameter = dict(model.named_parameters())[name]
    start = parameter.numpy().copy()
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(start.shape).astype(np.float32) for _ in range(3)]
    for grad in grads:
        (parameter * paddle.to_tensor(grad)).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
    expected = reference_adamw(start, grads, lr, decay)
    assert np.abs(parameter.numpy() - expected).max() < 1e-6


def test_clipping_uses_the_norm_of_all_parameters_together(tmp_path):
    run = settings(tmp_path, mm_projector_lr=1e-3, max_grad_norm=1.0)
    model = tiny()
    plan = plan_stage(model, run)
    plan.apply(model)
    optimizer = build_optimizer(model, plan, run.training, build_schedule(run.training, 10))
    parameters = list(plan.trainable(model).values())
    sum((parameter * 3.0).sum() for parameter in parameters).backward()
    before = float(global_norm([(parameter, parameter.grad) for parameter in parameters], Spread()))
    size = sum(int(np.prod(parameter.shape)) for parameter in parameters)
    assert before == pytest.approx(3.0 * math.sqrt(size), rel=1e-5)
    clipped = optimizer._grad_clip([(parameter, parameter.grad) for parameter in parameters])
    assert math.sqrt(sum(float((grad * grad).sum()) for _, grad in clipped)) == pytest.approx(1.0, rel=1e-5)
    assert len(optimizer._param_groups) == len(parameters)  # one flat list; groups would be clipped one by one


def test_a_projector_rate_beside_a_rate_of_zero_is_refused(tmp_path):
    run = settings(tmp_path, learning_rate=0.0, mm_projector_lr=1e-3)
    model = tiny()
    with pytest.raises(ConfigError, match="tune_mm_mlp_adapter"):
        build_optimizer(model, plan_stage(model, run), run.training, build_schedule(run.training, 10))


def test_processes_that_hold_one_model_together_draw_the_same_noise():
    """In tensor parallel, dropout before a layer that is whole on every device must be the same on all of them."""
    from types import SimpleNamespace

    from paddlemix.trainer.callbacks import SeedEachStep

    def drawn(process, data, step=3):
        args = SimpleNamespace(seed=1, process_index=process, dataset_rank=data)
        SeedEachStep(SimpleNamespace(args=args)).on_step_begin(args, SimpleNamespace(global_step=step), None)
        return paddle.rand([8]).tolist()

    assert drawn(0, 0) == drawn(1, 0)
    assert drawn(0, 0) != drawn(2, 1)
    assert drawn(0, 0) != drawn(0, 0, step=4)


@pytest.mark.parametrize(
    ("keys", "freed"),
    [
        ({}, True),
        ({"release_grads": False}, False),
        ({"sharding": "stage2"}, False),
        ({"tensor_parallel_degree": 2}, False),
        ({"sharding": "stage1", "release_grads": True}, True),
    ],
)
def test_gradients_are_freed_unless_they_are_divided(keys, freed):
    assert TrainingGroup(**keys).releases_gradients == freed


def test_no_gradient_is_left_behind_a_step(tmp_path):
    trainer = make_trainer(settings(tmp_path, max_steps=1))
    trainer.train()
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("large", [True, False])
def test_large_gradients_are_given_back_behind_the_update_and_before_the_one_of_the_table(monkeypatch, tmp_path, large):
    model, run = tiny(), settings(tmp_path)
    least = 4 * model.llama.embed_tokens.weight.size + (not large)
    monkeypatch.setattr(llama, "LARGE_GRADIENTS", least)
    monkeypatch.setattr(optimization, "LARGE_GRADIENTS", 1 if large else 1 << 40)
    table, told = model.llama.embed_tokens.weight, []
    monkeypatch.setattr(llama, "give_memory_back", lambda: told.append(table.grad is None))
    monkeypatch.setattr(optimization, "give_memory_back", lambda: told.append("behind"))
    plan = plan_stage(model, run)
    plan.apply(model)
    optimizer = build_optimizer(model, plan, run.training, build_schedule(run.training, 9))

    model.llama.embed(paddle.to_tensor([[3, 4]])).sum().backward()
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)

    assert told == ([True, "behind"] if large else [])
    optimizer.clear_grad()  # zeros in the same memory: nothing is free
    assert told == ([True, "behind"] if large else [])
    with paddle.no_grad():
        model.llama.embed(paddle.to_tensor([[3, 4]]))
