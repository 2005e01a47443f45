# SPDX-License-Identifier: Apache-2.0
"""Training in fp16 and bf16, O1 and O2, as a whole run on the stand-in: near float32, exact after a resume."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.npu_standin.precision import CONTINUED, FIRST, MODES, OVERFLOWING, STEPS

pytestmark = [pytest.mark.npu_standin, pytest.mark.timeout(280)]

Worker = Callable[..., dict[str, Any]]
NEAR = {"bf16": 0.02, "fp16": 0.004}
"""Of a loss near 5 and of a norm near 10: rounding to 8 and to 11 bits in a few layers."""


@pytest.mark.parametrize("mode", [name for name in MODES if name != "float32"])
def test_losses_and_norms_are_near_those_of_float32(worker: Worker, mode: str) -> None:
    found = worker("precision.modes")
    wanted, got = found["float32"], found[mode]
    near = NEAR[mode.partition(" ")[0]]
    assert len(got["losses"]) == STEPS
    assert got["losses"] == pytest.approx(wanted["losses"], abs=5 * near)
    assert got["norms"] == pytest.approx(wanted["norms"], rel=5 * near)  # unscaled, before clipping
    assert got["rates"] == wanted["rates"]
    assert got["skipped"] == 0


@pytest.mark.parametrize("mode", CONTINUED)
def test_a_continued_run_has_the_very_losses_and_norms(worker: Worker, mode: str) -> None:
    found = worker("precision.modes")
    straight, again = found[mode], found[f"{mode} again"]
    assert again["losses"] == straight["losses"]
    assert again["norms"] == straight["norms"]
    assert again["scalers"] == straight["scalers"][1:]


def test_a_checkpoint_holds_the_moments_and_the_float32_weights_of_o2(worker: Worker) -> None:
    found = worker("precision.modes")
    names = {mode: {name.partition("/")[2] for name in found[mode]["state"] if "moment1" in name} for mode in MODES}
    assert all(names[mode] == names["float32"] for mode in MODES)
    for mode in MODES:
        kinds = {name.partition("/")[0] for name in found[mode]["state"]}
        assert ("master" in kinds) == ("O2" in mode), mode


def test_a_checkpoint_counts_the_good_steps_of_the_loss_scale(worker: Worker) -> None:
    scalers = worker("precision.modes")["fp16 O2 master"]["scalers"]
    assert [scaler["incr_count"] for scaler in scalers] == [*range(2, STEPS + 1, 2)]


@pytest.mark.parametrize("mode", OVERFLOWING)
def test_an_overflow_skips_the_update_is_counted_and_moves_no_schedule(worker: Worker, mode: str) -> None:
    found = worker("precision.overflow")[mode]
    skips = found["skipped"]
    assert 0 < skips < STEPS, "the scale falls until the gradients fit"
    assert np.isfinite(found["losses"]).all()
    assert len(found["norms"]) == STEPS - skips, "a skipped update has no norm"
    assert found["schedule"][-1] == STEPS - skips
    assert found["scalers"][-1]["scale"] == [FIRST[mode] / 2.0**skips]
    assert len(set(found["rates"])) == STEPS - skips


@pytest.mark.parametrize("mode", OVERFLOWING)
def test_a_run_that_goes_on_between_overflows_ends_as_the_straight_one(worker: Worker, mode: str) -> None:
    found = worker("precision.overflow")
    straight, again = found[mode], found[f"{mode} again"]
    for name in ("losses", "norms", "rates", "skipped"):
        assert again[name] == straight[name], name
    assert again["scalers"] == straight["scalers"][1:]


def test_a_scale_that_cannot_fall_further_ends_the_run(worker: Worker) -> None:
    said = worker("precision.overflow")["endless"]
    assert "the gradients overflow float16 whatever the loss is scaled by" in said


def test_a_norm_is_computed_in_float32_under_amp(worker: Worker) -> None:
    difference, largest = worker("precision.overflow")["norm"]
    assert difference == 0.0
    assert 1.0 < largest < 2.0
