# SPDX-License-Identifier: Apache-2.0
"""A plug-in with other limits than ours, made of the stand-in: prints what training and generation then give."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import paddle

from paddlemix.doctor import operators
from paddlemix.ops import dispatch
from paddlemix.ops.npu import library
from tests.npu_standin.worker import compared, compared_generation, train

LIMITS: dict[str, tuple[str, Callable[..., bool]]] = {
    "attention heads": ("flash_attention_npu", lambda q, *_: q.shape[3] == 128),
    "attention lengths": ("flash_attention_npu", lambda q, *_: q.shape[1] % 16 == 0),
    "attention masks": ("flash_attention_npu", lambda q, k, v, seed, mask, *_: mask is None),
    "norm": ("rms_norm_npu", lambda *_: False),
    "rope": ("fused_rope", lambda *_: False),
}
WITHOUT_GRADIENT = ("flash_attention_npu", "rms_norm_npu", "fused_rope")
SWITCH = {"flash_attention_npu": "ATTENTION", "rms_norm_npu": "RMS_NORM", "fused_rope": "ROPE"}


def differences() -> dict[str, Any]:
    """A full and a LoRA training and a generation against the CPU."""
    trained = [compared("right"), compared("packed", lora=True)]
    generated = compared_generation("left")
    return {
        "trained": max(run[key] for run in trained for key in ("loss", "gradients", "after")),
        "parameters": [run["parameters"] for run in trained],
        "scores": generated["scores"],
        "same ids": generated["ids"][0] == generated["ids"][1],
    }


def limited(name: str) -> Any:
    """The limit ``name`` in force."""
    limit, allows = LIMITS[name]
    real = paddle.base.core.eager._run_custom_op

    def run(operator: str, *arguments: Any) -> Any:
        if operator == limit and not allows(*arguments):
            raise OSError(f"limit of another plug-in\n  [operators.cc:{len(name)}]")
        return real(operator, *arguments)

    return mock.patch.object(paddle.base.core.eager, "_run_custom_op", run)


def forced(operator: str) -> str:
    """The error of a training step with the operator forced."""
    os.environ[f"PADDLEMIX_NPU_FUSED_{SWITCH[operator]}"] = "1"
    try:
        train("npu", "right")
    except Exception as error:  # noqa: BLE001 the test reads what was raised
        return f"{type(error).__name__}: {error}"
    finally:
        del os.environ[f"PADDLEMIX_NPU_FUSED_{SWITCH[operator]}"]
    return "no error"


def main() -> dict[str, Any]:
    """Every limit and every missing gradient; then the doctor on one of each."""
    found: dict[str, Any] = {}
    for name in LIMITS:
        library._refused.clear()
        dispatch.forget_reports()
        with limited(name):
            found[name] = {**differences(), "forced": forced(LIMITS[name][0])}
    with ExitStack() as entered:
        entered.enter_context(limited("attention heads"))
        library._refused.clear()
        paddle.set_device("npu")
        found["doctor"] = {one.name: [one.state, one.text] for one in operators.self_check("npu", "bfloat16")}
    library._refused.clear()
    real = paddle.base.core.has_non_empty_grad_op_maker
    for operator in WITHOUT_GRADIENT:
        with mock.patch.object(
            paddle.base.core, "has_non_empty_grad_op_maker", lambda name, lost=operator: name != lost and real(name)
        ):
            found[f"{operator} without gradient"] = {**differences(), "forced": forced(operator)}
            forms = operators.forms()
            found[f"{operator} without gradient"]["doctor"] = [one.text for one in forms if one.name == operator]
    return found


if __name__ == "__main__":
    print("RESULT " + json.dumps(main()))
