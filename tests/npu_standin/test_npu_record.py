# SPDX-License-Identifier: Apache-2.0
"""The operators that a training step and a decode step use in bfloat16, held against those of the plug-in."""

from collections.abc import Callable
from typing import Any

import pytest

from paddlemix.ops.npu import record

Worker = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.npu_standin


def phases(log: str) -> dict[str, list[str]]:
    """Lines of the log by the mark that stands before them."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in log.splitlines():
        if line.startswith("PHASE "):
            current = found.setdefault(line.removeprefix("PHASE "), [])
        current.append(line)
    return found


@pytest.mark.parametrize("phase", ["train right", "train packed", "train left", "prefill", "decode"])
@pytest.mark.parametrize("case", ["record", "towers.record_intern", "towers.record_eva"])
def test_a_step_uses_no_operator_that_the_plug_in_may_lack(worker: Worker, case: str, phase: str) -> None:
    used = record.read_log(phases(worker(case, **record.LOG)["log"])[phase], "npu")
    assert record.Used("matmul", "bfloat16", False) in used
    assert phase in ("prefill", "decode") or record.Used("matmul", "bfloat16", True) in used
    assert record.objections(used) == []


def test_the_record_sees_what_the_plug_in_lacks() -> None:
    log = [
        "I1 api.cc:1] index_select API kernel key: [npu, NCHW, bfloat16]",
        "I1 api.cc:1] index_select API kernel key: [npu, NCHW, float32]",
        "I1 api.cc:1] subtract API kernel key: [npu, NCHW, bfloat16]",
        "I1 api.cc:1] subtract API kernel key: [npu, NCHW, float16]",
        "I1 backward_api_base.cc:1] squeeze_grad API kernel key: [npu, NCHW, bfloat16]",
        "I1 api.cc:1] gather API kernel key: [npu, NCHW, bfloat16]",
        "I1 api.cc:1] set_value_with_tensor_ API kernel key: [npu, NCHW, float32]",
        "I1 api.cc:1] topk API kernel key: [CPU, NCHW, float32]",
        "I1 backward_api_base.cc:1] sigmoid_grad API kernel key: [npu, NCHW, bfloat16]",
        "I1 backward_api_base.cc:1] dropout_grad API kernel key: [npu, NCHW, bfloat16]",
        "I1 api.cc:1] where API kernel key: [npu, NCHW, bool]",
        "I1 api.cc:1] matmul API kernel key: [npu, NCHW, bfloat16]",
    ]
    assert record.objections(record.read_log(log, "npu")) == [
        "dropout_grad in bfloat16: not known to be in the plug-in",
        "index_select in bfloat16: not known to be in the plug-in",
        "set_value_with_tensor in float32: computed on the host",
        "squeeze_grad in bfloat16: the plug-in has no form for bfloat16",
        "subtract in bfloat16: the plug-in has no form for bfloat16",
        "where in bool: the plug-in has no form for bool",
    ]
    assert record.objections(record.read_log(log)) != record.objections(record.read_log(log, "npu"))
