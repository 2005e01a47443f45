# SPDX-License-Identifier: Apache-2.0
"""Runs over a mixture: their start lines, and the continued run against the straight one."""

import json

import pytest

from tests.trainer.run_kit import go


def mixture(place, **more):
    first = {"data_files": str(place / "train.json"), "weight": 0.75}
    return json.dumps({"train": [first, {"data_files": str(place / "eval.json"), "weight": 0.25, **more}]})


@pytest.mark.parametrize("order", [{}, {"group_by_length": "true"}, {"mixtoken": "true", "max_length": 256}])
def test_a_mixture_that_goes_on_in_the_middle_of_an_epoch_ends_as_the_straight_run(place, tmp_path, capsys, order):
    keys = dict(data_path=None, dataset=mixture(place), save_strategy="steps", save_steps=3, num_train_epochs=None,
                lr_scheduler_type="constant", **order)  # fmt: skip
    go(place, tmp_path / "straight", max_steps=7, **keys)
    assert "training data: 9 rows, 9 an epoch" in capsys.readouterr().out
    go(place, tmp_path / "out", max_steps=3, **keys)
    assert go(place, tmp_path / "out", max_steps=7, **keys).steps == 7
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "out"))
    assert first == second
