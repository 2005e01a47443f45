# SPDX-License-Identifier: Apache-2.0
"""Head and loss by portions against the whole table of logits: loss, gradients, memory of the logits."""

import dataclasses

import numpy as np
import paddle
import pytest

from paddlemix.models import head_loss
from paddlemix.models.llava import build_empty, init_weights
from paddlemix.settings.model import LlavaConfig, TextConfig
from paddlemix.utils.constants import IGNORE_INDEX

CLOSE = 2e-6
"""float32 sums in another order, of gradients below 1."""

TEXT = TextConfig(97, 32, 48, 2, 4, 2)


def model_of(tied=False, frozen_head=False):
    made = build_empty(LlavaConfig(dataclasses.replace(TEXT, tie_word_embeddings=tied), None, None))
    init_weights(made, 3)
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
@pytest.mark.parametrize("kind", ["plain", "tied", "frozen_head"])
def test_portions_give_the_loss_and_the_gradients_of_the_whole(portion, kind):
    model = model_of(tied=kind == "tied", frozen_head=kind == "frozen_head")
    whole, wanted = run(model, 0, batch(), scale=3.0)
    loss, grads = run(model, portion, batch(), scale=3.0)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert grads.keys() == wanted.keys()
    assert ("lm_head.weight" in grads) == (kind == "plain")
    for name, value in wanted.items():
        np.testing.assert_allclose(grads[name], value, atol=CLOSE, rtol=0, err_msg=name)


def test_a_batch_without_labels_has_loss_zero_and_zero_gradients():
    loss, grads = run(model_of(), 8, batch(labels=False))
    assert loss == 0.0
    assert all((value == 0).all() for value in grads.values())


def test_without_gradients_the_loss_is_the_same_and_nothing_is_kept():
    model = model_of()
    whole, _ = run(model, 0, batch())
    with paddle.no_grad():
        loss = model(**{name: paddle.to_tensor(value) for name, value in batch().items()})
    assert loss.stop_gradient
    assert float(loss) == pytest.approx(whole, rel=1e-6)


def test_no_more_than_a_portion_of_logits_is_ever_made(monkeypatch):
    seen = []
    part = head_loss._of_part

    def noted(piece, *args):
        seen.append(piece.shape[0])
        return part(piece, *args)

    monkeypatch.setattr(head_loss, "_of_part", noted)
    run(model_of(), 8, batch())
    assert seen == [8, 8, 8, 8, 1]
