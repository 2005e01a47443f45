# SPDX-License-Identifier: Apache-2.0
"""Head and loss by portions against the whole table of logits: loss, gradients, memory of the logits."""

import dataclasses

import numpy as np
import paddle
import pytest

from paddlemix.models import head_loss, llava
from paddlemix.models.head_loss import HeadForm
from paddlemix.models.llava import build_empty, init_weights
from paddlemix.ops.linear import Linear, add_lora
from paddlemix.settings.model import LlavaConfig, TextConfig
from paddlemix.splice.plan import label_places
from paddlemix.utils.constants import IGNORE_INDEX

CLOSE = 2e-6
"""float32 sums in another order, of gradients below 1."""

TEXT = TextConfig(97, 32, 48, 2, 4, 2)


def model_of(tied=False, frozen_head=False, lora=False):
    made = build_empty(LlavaConfig(dataclasses.replace(TEXT, tie_word_embeddings=tied), None, None))
    init_weights(made, 3)
    if lora:
        add_lora(made, ["lm_head"], r=3, alpha=6)
        made.lm_head.lora_B.set_value(paddle.full_like(made.lm_head.lora_B, 0.02))
        made.lm_head.weight.stop_gradient = True
    if frozen_head:
        made.lm_head.weight.stop_gradient = True
    return made


def batch(labels=True):
    rng = np.random.default_rng(4)
    ids = rng.integers(3, 97, [3, 11])
    found = {"token_ids": ids, "source": np.arange(33).reshape(3, 11), "positions": np.tile(np.arange(11), (3, 1))}
    wanted = ids.copy()
    wanted[:, :4] = wanted[1, 7:] = IGNORE_INDEX
    return {**found, "labels": wanted if labels else np.full_like(ids, IGNORE_INDEX)}


def run(model, portion, given, scale=1.0):
    model.fuse_head_and_loss(portion)
    loss = model(**{name: paddle.to_tensor(value) for name, value in given.items()})
    (loss * scale).backward()
    grads = {name: value.grad.numpy().copy() for name, value in model.named_parameters() if value.grad is not None}
    for value in model.parameters():
        value.clear_gradient()
    return float(loss), grads


@pytest.mark.parametrize("portion", [1, 7, 33, 1000])
@pytest.mark.parametrize("kind", ["plain", "tied", "frozen_head", "lora"])
@pytest.mark.parametrize("in_place", [True, False])
def test_portions_give_the_loss_and_the_gradients_of_the_whole(portion, kind, in_place, monkeypatch):
    model = model_of(**({} if kind == "plain" else {kind: True}))
    whole, wanted = run(model, 0, batch(), scale=3.0)
    monkeypatch.setattr(llava, "HeadForm", lambda **given: HeadForm(**{**given, "in_place": in_place}))
    loss, grads = run(model, portion, batch(), scale=3.0)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert grads.keys() == wanted.keys()
    assert ("lm_head.weight" in grads) == (kind == "plain")
    assert ("lm_head.lora_A" in grads) == (kind == "lora")
    for name, value in wanted.items():
        np.testing.assert_allclose(grads[name], value, atol=CLOSE, rtol=0, err_msg=name)


def test_a_batch_without_labels_has_loss_zero_and_zero_gradients():
    loss, grads = run(model_of(), 8, batch(labels=False))
    assert loss == 0.0
    assert all((value == 0).all() for value in grads.values())


def test_without_gradients_the_loss_is_the_same_and_nothing_is_kept(monkeypatch):
    model = model_of()
    whole, _ = run(model, 0, batch())
    model.fuse_head_and_loss(8)
    slopes = []
    monkeypatch.setattr(head_loss._Sums, "add", lambda *given: slopes.append(given))
    with paddle.no_grad():
        loss = model(**{name: paddle.to_tensor(value) for name, value in batch().items()})
    assert loss.stop_gradient
    assert not slopes
    assert float(loss) == pytest.approx(whole, rel=1e-6)


def test_no_more_than_a_portion_of_logits_is_ever_made(monkeypatch):
    seen = []
    part = head_loss._of_part

    def noted(pieces, *args):
        seen.append(pieces[0].shape[0])
        return part(pieces, *args)

    monkeypatch.setattr(head_loss, "_of_part", noted)
    run(model_of(), 8, batch())
    assert seen == [8, 8, 8, 8, 1]


@pytest.mark.parametrize("portion", [0, 4])
@pytest.mark.parametrize("kind", ["right", "segments", "starts", "no label"])
def test_the_head_at_the_labelled_places_alone_gives_the_same(portion, kind, monkeypatch):
    given = batch(labels=kind != "no label")
    if kind == "segments":
        given["segments"] = np.repeat([[1, 2, 3]], 3, 0).repeat([5, 4, 2], 1)
    if kind == "starts":
        given["starts"] = np.array([5, 0, 3])  # the label at 5 is the first of its row: nothing predicts it
    model = model_of()
    whole, wanted = run(model, 0, given)
    rows = []
    loss_of = llava.LlavaForCausalLM.mean_loss
    monkeypatch.setattr(llava.LlavaForCausalLM, "mean_loss", lambda *a: rows.append(a[1].shape[1]) or loss_of(*a))
    places = label_places(given["labels"], given.get("segments"), given.get("starts"))
    loss, grads = run(model, portion, {**given, "label_places": places})
    assert rows == [len(places)] == [{"right": 17, "segments": 12, "starts": 16, "no label": 1}[kind]]
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, value in wanted.items():
        np.testing.assert_allclose(grads[name], value, atol=CLOSE, rtol=0, err_msg=name)


def test_a_head_of_another_kind_goes_by_its_own_output():
    class Doubled(Linear):
        def forward(self, x):
            return super().forward(x) * 2.0

    model = model_of()
    model.lm_head.__class__ = Doubled
    whole, wanted = run(model, 0, batch())
    loss, grads = run(model, 8, batch())
    assert loss == whole
    np.testing.assert_array_equal(grads["lm_head.weight"], wanted["lm_head.weight"])


@pytest.mark.parametrize("retain", [True, False])
def test_a_second_backward_pass_is_an_error_and_no_end_of_the_process(retain):
    model = model_of()
    model.fuse_head_and_loss(8)
    loss = model(**{name: paddle.to_tensor(value) for name, value in batch().items()})
    loss.backward(retain_graph=retain)
    # Paddle hands errors of a hook on as kinds of its own.
    with pytest.raises((RuntimeError, SystemError, OSError), match=r"one backward pass|backward twice"):
        loss.backward()
