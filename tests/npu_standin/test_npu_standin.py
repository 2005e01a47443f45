# SPDX-License-Identifier: Apache-2.0
"""The fused NPU path, executed on the stand-in device and held against the CPU."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.npu_standin import build

pytestmark = pytest.mark.npu_standin

Worker = Callable[..., dict[str, Any]]

FLOAT32 = {"PADDLEMIX_NPU_ATTENTION_FLOAT32": "1", "NPU_STANDIN_FLOAT32": "1"}
"""Both sides allow float32 in the fused attention, so that it can be held against the CPU to 1e-5."""

ABIS = ("5+5", "5+8", "7+6")
LAYERS, TOWER = 2, 2  # as in worker.py

CLOSE = 1e-5
"""Two orders of summation of float32 values of size 1."""

HALF = 0.02
"""bfloat16 keeps 8 bits: 0.004 for a value of size 1, and errors of a few layers add up."""


def training_calls(steps: int, *, frozen: bool = False) -> dict[str, int]:
    """Calls of ``steps`` training steps. Frozen: only the decoder has gradients, and its first norm none."""
    norms = 2 * LAYERS + 1
    # LoRA sits on q, v and gate: k of the first layer, which nothing trained comes before, has no gradient.
    return {
        "flash_attention_npu": steps * (LAYERS + TOWER),
        "flash_attention_npu_grad": steps * (LAYERS if frozen else LAYERS + TOWER),
        "flash_attention_npu:plain": steps * TOWER,
        "flash_attention_npu:mask": steps * LAYERS,
        "flash_attention_npu:triangle": steps * LAYERS,
        "rms_norm_npu": steps * norms,
        "rms_norm_npu_grad": steps * (norms - 1 if frozen else norms),
        "fused_rope": steps * 2 * LAYERS,
        "fused_rope_grad": steps * (2 * LAYERS - 1 if frozen else 2 * LAYERS),
        "swiglu": steps * LAYERS,
        "swiglu_grad": steps * LAYERS,
    }


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("kind", ["full", "packed", "left", "lora"])
def test_training_equals_the_cpu_and_every_layer_is_fused(worker: Worker, abi: str, kind: str) -> None:
    found = worker("equal", NPU_STANDIN_ABI=abi, **FLOAT32)[kind]
    assert found["loss"] <= CLOSE
    assert found["gradients"] <= CLOSE < found["gradient_size"] / 100
    assert found["after"] <= CLOSE < found["moved"] / 10
    assert found["parameters"] == (12 if kind == "lora" else 80)
    assert found["calls"] == training_calls(2, frozen=kind == "lora")


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("kind", ["generate", "generate_left"])
def test_generation_gives_the_tokens_of_the_cpu_and_every_step_is_fused(worker: Worker, abi: str, kind: str) -> None:
    found = worker("equal", NPU_STANDIN_ABI=abi, **FLOAT32)[kind]
    assert found["ids"][0] == found["ids"][1]
    assert found["scores"] <= CLOSE
    decoder_runs = 1 + 5 + 1  # prefill, a step for each id but the last, and one forward without a cache
    tower_runs = 2 + 1  # one for each image, and one for both
    assert found["calls"] == {
        "flash_attention_npu": decoder_runs * LAYERS + tower_runs * TOWER,
        "flash_attention_npu:plain": tower_runs * TOWER,
        "flash_attention_npu:mask": decoder_runs * LAYERS,
        "flash_attention_npu:triangle": 2 * LAYERS,  # never in a step behind a cache
        "rms_norm_npu": decoder_runs * (2 * LAYERS + 1),
        "fused_rope": decoder_runs * LAYERS,  # heads of q and k in one call
        "swiglu": decoder_runs * LAYERS,
    }


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_bfloat16_training_is_fused_and_close_to_float32(worker: Worker, kind: str) -> None:
    found = worker("half")[kind]
    assert found["loss"] <= HALF
    assert found["gradients"] <= HALF * found["gradient_size"]
    assert found["calls"] == training_calls(2, frozen=kind == "lora")


def test_gradients_have_the_dtype_of_their_parameters(worker: Worker) -> None:
    # rms_norm_npu gives the gradient of its weight in float32 whatever the weight is.
    assert worker("half")["full"]["grad_dtypes"] == ["bfloat16"]


def test_bfloat16_generation_is_fused_and_close_to_float32(worker: Worker) -> None:
    found = worker("half")["generate"]
    assert found["scores"] <= HALF
    assert found["calls"]["flash_attention_npu"] == 7 * LAYERS + 3 * TOWER


def test_each_fused_operator_equals_its_plain_twin_in_value_and_gradient(worker: Worker) -> None:
    found = worker("operators", **FLOAT32)
    assert len(found["differences"]) == 22  # nothing was left out
    assert max(found["differences"].values()) <= CLOSE, found["differences"]
    for name in ("flash_attention_npu", "rms_norm_npu", "fused_rope", "swiglu"):
        assert found["calls"][name] == found["calls"][f"{name}_grad"] >= 1


FUSED = {"flash_attention_npu": 1, "flash_attention_npu:mask": 1, "flash_attention_npu:triangle": 1}


@pytest.mark.parametrize(
    ("setting", "outcome"),
    [
        ("auto", FUSED),
        ("whole off", {}),
        ("one off", {}),
        ("one on", FUSED),
        ("by backend", FUSED),
        ("math by backend", {}),
        ("auto float32", {}),
        ("norm", {"rms_norm_npu": 1}),
        ("norm off", {}),
        ("rope", {}),
    ],
)
def test_the_flags_choose_the_path(worker: Worker, setting: str, outcome: dict[str, int]) -> None:
    assert worker("switches")[setting] == outcome


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("forced float32", "BackendError: PADDLEMIX_NPU_FUSED=1: flash_attention_npu takes float16 and bfloat16"),
        ("forced head", "BackendError: PADDLEMIX_NPU_FUSED_ATTENTION=1: flash_attention_npu: the head width 24"),
        ("forced dropout", "BackendError: PADDLEMIX_NPU_FUSED_ATTENTION=1: flash_attention_npu: its dropout"),
        ("forced cpu", "BackendError: PADDLEMIX_NPU_FUSED=1: the tensors are on cpu"),
        ("contradiction", "BackendError: PADDLEMIX_ATTENTION=npu and PADDLEMIX_NPU_FUSED=0 contradict"),
        ("contradiction too", "BackendError: PADDLEMIX_ATTENTION=math and PADDLEMIX_NPU_FUSED=1 contradict"),
        ("garbage", 'ConfigError: environment variable PADDLEMIX_NPU_FUSED="yes"'),
        ("norm forced", "BackendError: PADDLEMIX_NPU_FUSED_RMS_NORM=1: rms_norm_npu: x is bfloat16 and the weight"),
        ("norm forced cpu", "BackendError: PADDLEMIX_NPU_FUSED=1: the tensors are on cpu"),
        ("rope forced", "BackendError: PADDLEMIX_NPU_FUSED_ROPE=1: fused_rope: the head width 32"),
    ],
)
def test_forcing_what_cannot_be_raises_with_the_reason(worker: Worker, setting: str, text: str) -> None:
    assert worker("switches")[setting].startswith(text)


def test_auto_tells_each_reason_once(worker: Worker) -> None:
    log = worker("switches")["log"]
    assert log.count("fused npu rope: off: fused_rope: the head width 32 is no multiple of 64") == 1
    assert log.count("rms_norm: plain (not npu: PADDLEMIX_NPU_FUSED_RMS_NORM=0)") == 1
    assert log.count("not npu: flash_attention_npu takes float16 and bfloat16, not float32") == 1


@pytest.mark.parametrize(
    ("abi", "reason"),
    [
        ("unknown", "the operator flash_attention_npu has the unknown form"),
        ("none", "the operator flash_attention_npu is not registered"),
    ],
)
def test_an_operator_of_unknown_form_is_refused_by_name_and_never_called(worker: Worker, abi: str, reason: str) -> None:
    found = worker("unknown", NPU_STANDIN_ABI=abi)
    assert found["why_not"].startswith(reason)
    assert reason in found["forced"]
    assert reason in found["called"]
    assert found["difference"] == 0.0
    assert "flash_attention_npu" not in found["calls"]


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize(
    ("trap", "text"),
    [
        ("float32", "only float16 and bfloat16"),
        ("mask dtype", "attn_mask must be bool"),
        ("mask broadcast", "attn_mask must be [Sq,Sk]"),
        ("blind row", "has every key masked out"),
        ("causal", "as many queries as keys"),
        ("dropout", "dropout gives wrong gradients"),
        ("head", "multiple of 16"),
        ("too few arguments", "was given 3 arguments"),
        ("negative label", "no label out of the vocabulary"),
        ("logits of three axes", "logits of two axes"),
    ],
)
def test_the_stand_in_refuses_what_a_card_refuses(worker: Worker, abi: str, trap: str, text: str) -> None:
    assert text in worker("traps", NPU_STANDIN_ABI=abi)[trap]


def test_the_triangle_hint_on_a_decode_step_would_change_the_answer(worker: Worker) -> None:
    assert worker("traps", NPU_STANDIN_ABI="7+6")["triangle on a decode step"] > 0.1


def test_a_graph_on_an_npu_gives_the_numbers_of_the_dynamic_model_without_operators_of_the_plug_in(
    worker: Worker,
) -> None:
    found = worker("graphs.traced", **FLOAT32)
    assert max(found["tower"], found["prefill"]) <= CLOSE
    assert {"flash_attention_npu", "rms_norm_npu", "fused_rope"} <= set(found["dynamic"])
    assert not {"flash_attention_npu", "rms_norm_npu", "fused_rope"} & set(found["traced"])
    assert "rms_norm: plain (not npu: rms_norm_npu is not traced into a static graph)" in found["log"]


def test_rows_of_different_length_in_one_cache_are_fused_and_equal_each_row_alone(worker: Worker) -> None:
    found = worker("graphs.rows", **FLOAT32)
    assert found["together"] == found["alone"]
    assert len({tuple(row) for row in found["alone"]}) == 3
    assert found["calls"]["flash_attention_npu:mask"] == 6 * LAYERS
    assert found["calls"]["fused_rope"] == 6 * LAYERS


def test_a_missing_compiler_is_told_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert build.missing().startswith("NOT TESTED: g++ is missing")
