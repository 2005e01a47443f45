# SPDX-License-Identifier: Apache-2.0
"""Models as static graphs for tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle

from paddlemix.export.graphs import save_text, save_vision
from paddlemix.export.manifest import Facts
from paddlemix.export.static_model import Graph, StaticModel
from paddlemix.generation.predictor import Predictor


@dataclass
class Twins:
    """One model in two forms. ``folder`` holds it as a checkpoint, ``export`` as graphs."""

    folder: Path
    export: Path
    dynamic: Predictor
    static: Predictor


def static_of(model: Any, folder: Path) -> StaticModel:
    """The graphs of ``model``, which is used up."""
    config, vision = model.config, None
    if config.vision is not None:
        save_vision(model, folder / "clip")
        vision = Graph(folder / "clip", "cpu", paddle.__version__)
    saved = save_text(model, folder / "llama")
    facts = Facts("encode_text", "", paddle.__version__, "cpu", "float32", saved.inputs, saved.outputs)
    return StaticModel(config, Graph(folder / "llama", "cpu", paddle.__version__), vision, facts)
