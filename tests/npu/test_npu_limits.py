# SPDX-License-Identifier: Apache-2.0
"""A plug-in that takes less than ours does not stop a run and does not change its numbers."""

import json
import subprocess
import sys
from typing import Any

import pytest

from paddlemix.ops.npu import library
from tests.npu_standin import build

pytestmark = pytest.mark.npu_standin

CLOSE = 1e-5
LIMITS = ("attention heads", "attention lengths", "attention masks", "norm", "rope")
OPERATORS = ("flash_attention_npu", "rms_norm_npu", "fused_rope")


def run(*command: str, **changes: str) -> dict[str, Any]:
    """The RESULT line of a program on the stand-in, and what it logged."""
    if build.missing():
        pytest.skip(build.missing())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command], cwd=build.REPOSITORY, capture_output=True, text=True, timeout=110,
        env=build.environment(build.build(), **changes),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return {**json.loads(done.stdout.rpartition("RESULT ")[2]), "log": done.stderr}


@pytest.fixture(scope="module")
def limited():
    return run("-m", "tests.npu.limits_worker", PADDLEMIX_NPU_ATTENTION_FLOAT32="1", NPU_STANDIN_FLOAT32="1")


@pytest.mark.parametrize("name", [*LIMITS, *(f"{operator} without gradient" for operator in OPERATORS)])
def test_a_limit_or_a_missing_gradient_leaves_the_numbers_of_the_cpu(limited, name):
    found = limited[name]
    assert found["parameters"] == [80, 12], "a parameter went without its gradient"
    assert found["trained"] <= CLOSE
    assert found["scores"] <= CLOSE
    assert found["same ids"]


@pytest.mark.parametrize(
    ("name", "flag", "operator"),
    [
        ("attention heads", "ATTENTION", "flash_attention_npu"),
        ("norm", "RMS_NORM", "rms_norm_npu"),
        ("rope", "ROPE", "fused_rope"),
    ],
)
def test_a_forced_operator_that_refuses_is_an_error_with_shapes_and_remedy(limited, name, flag, operator):
    told = limited[name]["forced"]
    assert told.startswith(f"BackendError: PADDLEMIX_NPU_FUSED_{flag}=1: {operator} of this plug-in refused (")
    assert "float32: limit of another plug-in; use auto" in told


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_missing_gradient_is_told_and_an_error_when_forced(limited, operator):
    found = limited[f"{operator} without gradient"]
    assert f"the plug-in has {operator} without its gradient; use auto" in found["forced"]
    assert "without its gradient: the plain path trains" in found["doctor"][0]


def test_the_first_refusal_of_an_operator_is_a_warning_and_the_others_are_silent(limited):
    # Cleared before each limit, so three times for attention; each has many refusals.
    assert limited["log"].count("warning: fused npu attention: flash_attention_npu of this plug-in refused") == 3
    assert limited["log"].count("(PADDLEMIX_NPU_FUSED_ROPE=0: all)") == 1


def test_the_doctor_notes_a_refusal_because_the_plain_path_serves(limited):
    found = limited["doctor"]
    assert found["attention, causal"][0] == "ok"
    assert found["attention, image"][0] == "WARN"
    assert found["attention, image"][1].endswith("limit of another plug-in; the plain path serves")


@pytest.mark.parametrize(("abi", "gradient"), [("7+6", True), ("unknown", False)])
def test_a_gradient_is_looked_up_without_a_call(abi, gradient):
    program = (
        "import json; from paddlemix.ops.npu import library; import paddle; paddle.set_device('npu');"
        "print('RESULT ' + json.dumps({'has': library.has_gradient('flash_attention_npu')}))"
    )
    assert run("-c", program, NPU_STANDIN_ABI=abi)["has"] is gradient


@pytest.mark.parametrize(("device", "found"), [("cpu", "cpu"), ("npu", "npu:0")])
def test_a_training_computes_on_the_device_of_its_settings(device, found):
    # Paddle itself starts on the first card there is.
    program = (
        "import json, sys; from pathlib import Path; from paddlemix.settings.run.loader import load_settings;"
        "from paddlemix.trainer.run import TrainingRun; import paddle;"
        f"given = ['--model_name_or_path', 'm', '--do_train', 'true', '--data_path', 'd.json', '--device', {device!r}];"
        "TrainingRun(load_settings([*given, '--output_dir', 'out']), Path('out'), None)._choose_device();"
        "print('RESULT ' + json.dumps({'device': paddle.get_device()}))"
    )
    assert run("-c", program)["device"] == found


def test_an_operator_that_was_used_is_named_when_something_fails():
    program = (
        "import json, paddle; from paddlemix.ops.activation import SWIGLU; from paddlemix.utils import errors;"
        "from paddlemix.ops.runtime import Runtime; before = list(errors.IN_USE); paddle.set_device('npu');"
        "SWIGLU(Runtime.current(), paddle.rand([2, 8]), None);"
        "print('RESULT ' + json.dumps({'before': before, 'after': errors.IN_USE}))"
    )
    found = run("-c", program)
    assert found["before"] == []
    assert "PADDLEMIX_NPU_FUSED=0 runs without them" in found["after"][0]


OLD = library.KNOWN["flash_attention_npu"][0]


@pytest.mark.parametrize(
    ("form", "known"),
    [
        (OLD, True),
        (library.Form("found", OLD.inputs, OLD.attributes, "out,softmax_max"), True),
        (library.Form("found", OLD.inputs, OLD.attributes, "softmax_max,attention_score"), False),
        (library.Form("found", OLD.inputs[:-1], OLD.attributes, OLD.result), False),
        (library.Form("found", OLD.inputs, OLD.attributes[::-1], OLD.result), False),
        (library.Form("found", OLD.inputs, ("dropout:float", "causal:INT", *OLD.attributes[2:]), OLD.result), False),
        (library.Form("found", OLD.inputs, (*OLD.attributes, "sparse_mode:INT"), OLD.result), False),
    ],
    ids=["known", "another name", "another place", "fewer inputs", "other order", "another kind", "more"],
)
def test_names_order_and_kinds_decide_whether_a_form_is_known(monkeypatch, form, known):
    monkeypatch.setattr(library, "_found", lambda operator: form)
    found = library.form_of("flash_attention_npu")
    assert (found is OLD) == known
    if not known:
        assert "has the unknown form" in found
        known_forms = "5 inputs, 5 attributes; 5 inputs, 8 attributes; 7 inputs, 6 attributes"
        assert found.endswith(f"known: {known_forms}; it is not called")
