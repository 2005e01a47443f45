# SPDX-License-Identifier: Apache-2.0
"""Tower and projector as ONNX: written by paddle2onnx, and compared in onnxruntime with the graph it was made of."""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.export.graphs import save_vision
from paddlemix.export.static_model import Graph
from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.ops.activation import gelu_tanh, gelu_tanh_in_parts
from paddlemix.settings.model import LlavaConfig
from paddlemix.utils.errors import BackendError, ConfigError

OPSET = 17
"""The first that has LayerNormalization as one operator; onnxruntime reads it from 1.12 on."""
LARGEST = 2 << 30
"""Bytes of an ONNX file: it is one protobuf message."""
CLOSE = 1e-5
TILES = (1, 3)
"""Numbers of tiles that are compared."""


def require_packages() -> None:
    """ConfigError names what is not installed."""
    for name in ("paddle2onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f'--onnx: {name} is missing ({error}); pip install "paddlemix[onnx]"') from error


def write_tower(prefix: Path, model: LlavaForCausalLM) -> float:
    """Write ``prefix.onnx`` beside the graph of ``model``; the largest difference to it relative to its largest value.

    Input ``pixels`` float32 ``[N, 3, S, S]``, output ``[N, P, D]``, N of any size. ConfigError when the weights are too
    large for one file; BackendError when the converter fails, or what it wrote computes something else.
    """
    size = Path(f"{prefix}.pdiparams").stat().st_size
    if size >= LARGEST:
        raise ConfigError(
            f"--onnx: tower and projector have {size / 1e9:.1f} GB, an ONNX file holds 2; leave --onnx out, the graph "
            f"{prefix.name}.json has no limit"
        )
    target = Path(f"{prefix}.onnx")
    import paddle2onnx

    # Without another optimizer: the one that paddle2onnx uses by itself installs packages on its own.
    options = {"opset_version": OPSET, "enable_onnx_checker": True, "optimize_tool": "none"}
    with (
        _as_it_converts(prefix, model) as source,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        try:
            paddle2onnx.export(f"{source}.json", f"{source}.pdiparams", str(target), **options)
        except (RuntimeError, UnboundLocalError) as error:  # the latter follows a failure that it only prints
            raise BackendError(_failed(f"does not convert this tower ({error}); its message is above")) from error
    if not target.is_file():
        raise BackendError(_failed("wrote nothing"))
    return _difference(prefix, target, model.config)


@contextlib.contextmanager
def _as_it_converts(prefix: Path, model: LlavaForCausalLM) -> Iterator[Path]:
    """The graph that is converted: that of ``prefix``, or for SigLIP's activation another one of the same function."""
    layers: list[Any] = [layer for layer in model.sublayers() if getattr(layer, "act", None) is gelu_tanh]
    if not layers:
        yield prefix
        return
    with tempfile.TemporaryDirectory(dir=prefix.parent) as folder:
        for layer in layers:
            layer.act = gelu_tanh_in_parts
        try:
            save_vision(model, Path(folder, prefix.name), alone=True)
        finally:
            for layer in layers:
                layer.act = gelu_tanh
        yield Path(folder, prefix.name)


def _failed(what: str) -> str:
    return f"--onnx: paddle2onnx with paddle {paddle.__version__} {what}; leave --onnx out"


def _difference(prefix: Path, target: Path, config: LlavaConfig) -> float:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    graph, side = Graph(prefix, "cpu", paddle.__version__), config.vision.image_size
    worst = 0.0
    for count in TILES:
        pixels = np.random.default_rng(count).standard_normal([count, 3, side, side], dtype=np.float32)
        theirs = session.run(None, {"pixels": pixels})[0]
        ours = graph.run([paddle.to_tensor(pixels)])[0].numpy()
        worst = max(worst, float(np.abs(theirs - ours).max() / max(1.0, np.abs(ours).max())))
    if not worst <= CLOSE:
        raise BackendError(_failed(f"wrote a tower whose features differ by {worst:.1e}, more than {CLOSE:.0e}"))
    return worst
