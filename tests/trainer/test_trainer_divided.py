# SPDX-License-Identifier: Apache-2.0
"""Parameters in slices and the norm of gradients that lie on several processes, with one process that plays them."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from paddlemix.trainer import divided
from paddlemix.trainer.clip import GlobalNormClip, Spread
from paddlemix.utils.errors import ConfigError
from tests.trainer.trainer_kit import make_trainer, settings, tiny


def cut(parameter, rank, world):
    """What stage3 makes of a parameter: a flat piece, padded to a multiple of the processes."""
    flat = parameter.numpy().reshape(-1)
    length = -(-(flat.size + 3) // world)
    padded = np.zeros(length * world, np.float32)
    padded[: flat.size] = flat
    parameter.fw_storage = paddle.to_tensor(padded[rank * length : (rank + 1) * length])
    divided.note_slices([parameter], SimpleNamespace(rank=rank))
    parameter._clear_data()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_piece_takes_its_part_of_the_whole_values(rank):
    values = np.arange(1.0, 12.0, dtype=np.float32)
    parameter = paddle.create_parameter([11], "float32")
    cut(parameter, rank, 3)
    divided.put(parameter, paddle.to_tensor(values))
    wanted = np.concatenate([values, np.zeros(4, np.float32)])[5 * rank : 5 * rank + 5]
    assert parameter.fw_storage.numpy().tolist() == wanted.tolist()
    assert divided.state_form(parameter).shape == [5]
    assert divided.state_key(parameter) == "slice@" + parameter.name


def test_the_others_send_what_the_first_process_asks_for(monkeypatch):
    model = paddle.nn.Sequential(paddle.nn.Linear(2, 3), paddle.nn.Linear(3, 2))
    for parameter in model.parameters():
        cut(parameter, 0, 1)
    said, sent = [], []
    monkeypatch.setattr(divided, "_send", said.append)
    monkeypatch.setattr(divided, "whole", lambda parameter: sent.append(parameter.name) or paddle.ones(parameter.shape))

    def write(read):
        for parameter in reversed(model.parameters()):
            assert read(parameter).shape == tuple(parameter.shape)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        divided.write_whole(model, write)
    assert said == [3, 2, 1, 0, -1]  # also after a failure: nobody waits for ever
    asked = iter(said)
    monkeypatch.setattr(divided, "_receive", lambda: next(asked))
    first = [sent.pop(0) for _ in range(4)]
    divided.write_whole(model, None)
    assert sent == first


def test_copies_of_a_gradient_are_counted_once():
    spread = Spread(world=8, sharding=2, tensor_parallel=2)
    named = {"slice": {}, "whole": {"unslice": True}, "part": {"is_distributed": True}}
    copies = {name: spread.copies(SimpleNamespace(**marks)) for name, marks in named.items()}
    assert copies == {"slice": 4, "whole": 8, "part": 2}


def test_the_norm_is_told_before_clipping_and_stops_a_run():
    told = []
    parameter = paddle.create_parameter([2], "float32")
    grad = paddle.to_tensor([3.0, 4.0])
    GlobalNormClip(1.0, note=told.append)([(parameter, grad)])
    assert told == [5.0]
    assert grad.numpy() == pytest.approx([0.6, 0.8])
    measured = paddle.to_tensor([3.0, 4.0])
    GlobalNormClip(0.0, note=told.append)([(parameter, measured)])
    assert measured.numpy().tolist() == [3.0, 4.0]


def test_stage3_refuses_a_head_that_is_the_embedding(tmp_path):
    run = settings(tmp_path, sharding="stage3")
    with pytest.raises(ConfigError, match='write "sharding": "stage2"'):
        divided.check_sharding(tiny(tie_word_embeddings=True), run.training.sharding)
    divided.check_sharding(tiny(), run.training.sharding)
    assert make_trainer(settings(tmp_path), model=tiny(tie_word_embeddings=True)) is not None
