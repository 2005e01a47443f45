# SPDX-License-Identifier: Apache-2.0
"""The decision per model about device and kernels, and the one dispatch that all operators with a fast form share."""

import ast
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import pytest

from paddlemix.ops import dispatch
from paddlemix.ops.dispatch import Facts, Kernel, Operator, plain
from paddlemix.ops.npu.library import RefusalError
from paddlemix.ops.operators import OPERATORS
from paddlemix.ops.runtime import Choice, Runtime
from paddlemix.utils import env
from paddlemix.utils.errors import BackendError, ConfigError

PACKAGE = Path(__file__).resolve().parents[2] / "paddlemix"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is reported, as ``level: text``."""
    found: list[str] = []

    class Logger:
        def __getattr__(self, level: str) -> Callable[..., None]:
            return lambda text, *values: found.append(f"{level}: {text % values}")

    monkeypatch.setattr(dispatch, "_reported", set())
    monkeypatch.setattr(dispatch, "get_logger", lambda name: Logger())
    return found


def doubling(why_not: Callable[[Runtime, Facts], str | None] = lambda *_: None, refuses: bool = False) -> Operator:
    """A fifth operator: x * 2 by the plain kernel, and 2 more by the fused one, so that a test sees which served."""

    def fused(x: paddle.Tensor) -> paddle.Tensor:
        if refuses:
            raise RefusalError("double_npu of this plug-in refused (3,)")
        return x * 2 + 2

    kernels = (Kernel("npu", why_not, fused, ("npu",)), plain(lambda x: x * 2))
    return Operator("DOUBLE", kernels, cost="it costs a multiply", plugin="double_npu")


def served(operator: Operator, device: str = "npu", choice: Choice | None = None) -> str:
    """Which kernel served."""
    runtime = Runtime(device, {} if choice is None else {"DOUBLE": choice})
    return {2.0: "plain", 4.0: "npu"}[float(operator(runtime, paddle.ones([3]))[0])]


FORCED = Choice(forced="npu", by="PADDLEMIX_NPU_FUSED_DOUBLE=1")
OFF = Choice(off=True, by="PADDLEMIX_NPU_FUSED_DOUBLE=0")


def test_a_new_operator_takes_the_fused_kernel_where_it_can_serve(lines: list[str]) -> None:
    assert [served(doubling(), device) for device in ("npu", "cpu", "gpu")] == ["npu", "plain", "plain"]
    assert lines == ["info: double: npu"], "what is plain on other devices is no news"


def test_a_fallback_is_reported_once_with_its_reason_and_its_cost(lines: list[str]) -> None:
    narrow = doubling(lambda runtime, request: f"double_npu: no width {request.width}")
    assert {served(narrow) for _ in range(3)} == {"plain"}
    assert lines == [
        "warning: fused npu double: off: double_npu: no width 3; it costs a multiply",
        "info: double: plain (not npu: double_npu: no width 3)",
    ]


def test_an_operator_that_is_switched_off_is_named_with_its_flag(lines: list[str]) -> None:
    assert served(doubling(), choice=OFF) == "plain"
    assert lines == ["info: double: plain (not npu: PADDLEMIX_NPU_FUSED_DOUBLE=0)"]
    assert served(doubling(), choice=Choice(off=True)) == "plain", "off unless asked for"
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("operator", "device", "text"),
    [
        (doubling(lambda *_: "no such width"), "npu", "no such width"),
        (doubling(), "cpu", "the tensors are on cpu, not on an npu"),
        (doubling(refuses=True), "npu", "double_npu of this plug-in refused (3,)"),
    ],
)
def test_forcing_what_cannot_be_is_an_error_with_the_reason(operator: Operator, device: str, text: str) -> None:
    with pytest.raises(BackendError) as raised:
        served(operator, device, FORCED)
    assert str(raised.value) == f"PADDLEMIX_NPU_FUSED_DOUBLE=1: {text}; use auto to let the plain path serve it"
    assert served(doubling(), "npu", FORCED) == "npu"


def test_the_plain_kernel_serves_what_the_fused_one_refuses_and_the_first_refusal_is_a_warning(
    lines: list[str],
) -> None:
    assert [served(doubling(refuses=True)) for _ in range(2)] == ["plain", "plain"]
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == 1
    assert "refused (3,); the plain path serves this call" in warnings[0]
    assert "(PADDLEMIX_NPU_FUSED_DOUBLE=0: all); it costs a multiply" in warnings[0]


def test_a_kernel_is_chosen_once_for_calls_that_are_alike() -> None:
    asked: list[Facts] = []
    operator = doubling(lambda runtime, request: asked.append(request))
    runtime = Runtime("npu")
    for width in (3, 3, 4, 3):
        operator(runtime, paddle.ones([width]))
    with paddle.no_grad():
        operator(runtime, paddle.ones([3]))
    assert [(request.width, request.gradients) for request in asked] == [(3, True), (4, True), (3, False)]


def test_every_operator_has_a_flag_and_every_flag_an_operator() -> None:
    flags = {name.removeprefix("PADDLEMIX_NPU_FUSED_") for name in env.FLAGS if name.startswith("PADDLEMIX_NPU_FUSED_")}
    assert set(OPERATORS) == flags == set(Runtime.current().choices)
    for operator in OPERATORS.values():
        names = [kernel.name for kernel in operator.kernels]
        assert names[0] == "npu"
        assert not operator.kernels[-1].devices, "the last kernel is plain and serves everywhere"


@pytest.mark.parametrize(
    ("flags", "operator", "choice"),
    [
        ({}, "ROPE", Choice()),
        ({}, "MC2", Choice(off=True)),
        ({"": "0"}, "ROPE", Choice(off=True, by="PADDLEMIX_NPU_FUSED=0")),
        ({"": "0"}, "ATTENTION", Choice(off=True, by="PADDLEMIX_NPU_FUSED=0")),
        ({"": "0", "_ROPE": "1"}, "ROPE", Choice("npu", by="PADDLEMIX_NPU_FUSED_ROPE=1")),
        ({"": "1", "_ROPE": "auto"}, "ROPE", Choice("npu", by="PADDLEMIX_NPU_FUSED=1")),
        ({"": "1"}, "MC2", Choice(off=True)),
        ({"_MC2": "auto"}, "MC2", Choice()),
        ({"PADDLEMIX_ATTENTION": "math"}, "ATTENTION", Choice("math", by="PADDLEMIX_ATTENTION=math")),
        ({"PADDLEMIX_ATTENTION": "math"}, "ROPE", Choice()),
        ({"PADDLEMIX_ATTENTION": "npu", "": "1"}, "ATTENTION", Choice("npu", by="PADDLEMIX_ATTENTION=npu")),
    ],
)
def test_flags_decide(monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], operator: str, choice: Choice) -> None:
    for name, value in flags.items():
        monkeypatch.setenv(name if name.startswith("PADDLEMIX") else f"PADDLEMIX_NPU_FUSED{name}", value)
    assert Runtime.current().choice(operator) == choice


@pytest.mark.parametrize(("attention", "fused"), [("npu", "0"), ("math", "1"), ("sdpa", "1")])
def test_flags_that_contradict_each_other_stop_a_model_before_it_has_weights(
    monkeypatch: pytest.MonkeyPatch, attention: str, fused: str
) -> None:
    from paddlemix.models.llava import build_empty
    from tests.tiny import tiny_config

    monkeypatch.setenv("PADDLEMIX_ATTENTION", attention)
    monkeypatch.setenv("PADDLEMIX_NPU_FUSED", fused)
    text = f"PADDLEMIX_ATTENTION={attention} and PADDLEMIX_NPU_FUSED={fused} contradict each other"
    with pytest.raises(BackendError, match=text):
        build_empty(tiny_config())


def test_a_flag_with_garbage_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLEMIX_NPU_FUSED_ROPE", "on")
    with pytest.raises(ConfigError, match='PADDLEMIX_NPU_FUSED_ROPE="on": expected one of auto, 0, 1'):
        Runtime.current()


def test_a_model_keeps_the_decision_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny import tiny_model

    model = tiny_model()
    monkeypatch.setenv("PADDLEMIX_NPU_FUSED", "1")
    pixels = paddle.zeros([1, 3, 28, 28])
    assert model.encode_images(pixels).shape[0] == 1
    with pytest.raises(BackendError, match="PADDLEMIX_NPU_FUSED=1: the tensors are on cpu"):
        tiny_model().encode_images(pixels)


@pytest.mark.parametrize(("backend", "text"), [("npu", "the tensors are on cpu, not on an npu"), ("math", None)])
def test_a_forced_attention_is_asked_before_a_run(monkeypatch: pytest.MonkeyPatch, backend: str, text: str) -> None:
    from paddlemix.ops.attention.select import why_not_fused

    monkeypatch.setenv("PADDLEMIX_ATTENTION", backend)
    if text is None:
        assert why_not_fused("float32", 2, 1, 16) == f"PADDLEMIX_ATTENTION={backend}"
    else:
        with pytest.raises(BackendError, match=f"PADDLEMIX_ATTENTION={backend}: {text}; use auto"):
            why_not_fused("float32", 2, 1, 16)


class Place:
    """How paddle's places read; those of other devices cannot be made on a CPU."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"Place({self.name})"


@pytest.mark.parametrize("device", ["npu", "npu:0", Place("npu:1"), "gpu:1", Place("gpu:0")], ids=str)
def test_a_model_does_not_move_to_a_device_that_its_kernels_are_not_for(device: Any) -> None:
    from tests.tiny import tiny_model

    kind = "gpu" if "gpu" in str(device) else "npu"
    with pytest.raises(BackendError, match=f"made for cpu and cannot move to {kind}.*set_device..{kind}.. first"):
        tiny_model().to(device)


def test_a_model_changes_its_dtype_and_is_put_where_it_is() -> None:
    from tests.tiny import tiny_model

    model = tiny_model()
    for options in ({"dtype": "float64"}, {"device": "cpu"}, {"device": paddle.CPUPlace(), "dtype": "float32"}):
        assert model.to(**options) is model
    assert model.dtype == "float32"
    assert model.to("cpu", "float64").dtype == "float64"


def sources(*rooms: str) -> dict[str, ast.Module]:
    """The parsed files of these rooms by name."""
    files = [path for room in rooms for path in sorted((PACKAGE / room).rglob("*.py"))]
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def test_nothing_asks_a_tensor_where_it_lies() -> None:
    """It lies nowhere while a graph is traced. A kernel that is handed an address serves no graph, and must know."""
    words = {"place", "is_cpu_place", "is_gpu_place", "is_custom_place", "custom_device_type"}
    found = {
        (name, node.attr)
        for name, tree in sources("ops", "models", "generation").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in words
    }
    assert {name for name, _ in found} == {"ops/few_rows.py"}


def test_flags_are_read_in_one_file_of_the_operators_and_models() -> None:
    found = {
        name
        for name, tree in sources("ops", "models").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("get", "is_set")
        if isinstance(node.value, ast.Name) and node.value.id == "env"
    }
    assert found == {"ops/runtime.py"}


def test_a_runtime_cannot_be_changed() -> None:
    runtime: Any = Runtime("cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        runtime.device = "npu"
