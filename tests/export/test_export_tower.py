# SPDX-License-Identifier: Apache-2.0
"""Towers whose graphs hold operators compiled here: the features, and the graph that serves without them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlemix.export import onnx_tower
from paddlemix.export.graphs import save_vision
from paddlemix.export.static_model import Graph
from paddlemix.ops import step_operator
from paddlemix.ops.runtime import Runtime
from tests.export.static_kit import CLOSE
from tests.tiny import tiny_config, tiny_intern_config, tiny_model

WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}
TOWERS = {
    "clip": lambda: wide(tiny_config()),
    "clip, heads of 80": lambda: wide(tiny_config(), hidden_size=640),
    "internvit": lambda: wide(tiny_intern_config()),
}  # fmt: skip
OPERATORS = {
    "clip": {"paddlemix_attend_all", "paddlemix_quick_gelu", "paddlemix_add_bias"},
    "clip, heads of 80": {"paddlemix_attend_all", "paddlemix_quick_gelu", "paddlemix_add_bias"},
    "internvit": {"paddlemix_attend_all", "paddlemix_rms_norm"},
}


def wide(config: Any, **sizes: int) -> Any:
    return config.with_changes(vision=replace(config.vision, **WIDE | sizes))


@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_the_dynamic_model_with_and_without_the_operators(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = step_operator.why_not()
    if reason:
        pytest.skip(reason)
    config = TOWERS[name]()
    model = tiny_model(config=config)
    paddle.seed(3)
    pixels = paddle.randn([3, 3, config.vision.image_size, config.vision.image_size])
    with paddle.no_grad():
        dynamic = model.encode_images(pixels).numpy()

    save_vision(model, tmp_path / "clip")

    written = (tmp_path / "clip_kernels.json").read_text()
    assert {one for one in OPERATORS[name] if one in written} == OPERATORS[name]
    assert "paddlemix_" not in (tmp_path / "clip.json").read_text()
    assert [one.name for one in tmp_path.glob("*.pdiparams")] == ["clip.pdiparams"]
    here = Graph(tmp_path / "clip", "cpu", paddle.__version__)
    monkeypatch.setattr(step_operator, "why_not", lambda: "no C++ compiler")
    plain = Graph(tmp_path / "clip", "cpu", paddle.__version__)
    for graph in (here, plain):
        found = graph.run([pixels])[0].numpy()
        assert np.abs(found - dynamic).max() <= CLOSE * np.abs(dynamic).max()
        alone = graph.run([pixels[1:2]])[0].numpy()
        assert np.abs(alone - dynamic[1:2]).max() <= CLOSE * np.abs(dynamic).max()
    assert (here.run([pixels])[0].numpy() != plain.run([pixels])[0].numpy()).any(), "otherwise no operator was at work"


def test_a_small_tower_has_one_graph(tmp_path: Path) -> None:
    save_vision(tiny_model(), tmp_path / "clip")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["clip.json", "clip.pdiparams"]


def test_the_weights_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle.static import pir_io

    if step_operator.why_not():
        pytest.skip(step_operator.why_not())
    written, write = [], pir_io.save_vars_pir

    def note(*given: Any, **more: Any) -> Any:
        written.append(more["filename"])
        return write(*given, **more)

    monkeypatch.setattr(pir_io, "save_vars_pir", note)
    save_vision(tiny_model(config=TOWERS["clip"]()), tmp_path / "clip")
    assert set(written) == {"clip.pdiparams"}  # it calls itself
    assert (tmp_path / "clip_kernels.json").is_file()


def test_a_tower_of_another_device_and_one_for_the_converter_have_one_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> str:
        raise AssertionError("nobody wants operators here")

    monkeypatch.setattr(step_operator, "why_not", asked)
    save_vision(tiny_model(config=wide(tiny_config()), runtime=Runtime("npu")), tmp_path / "clip")
    siglip = tiny_model(config=wide(tiny_config(), model_type="siglip_vision_model", hidden_act="gelu_pytorch_tanh"))
    with onnx_tower._as_it_converts(tmp_path / "clip", siglip) as source:
        assert sorted(one.name for one in source.parent.iterdir()) == ["clip.json", "clip.pdiparams"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["clip.json", "clip.pdiparams"]
