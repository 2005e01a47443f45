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
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession
from tests.tiny import tiny_image

CLOSE = 1e-5
WIDE, TALL = tiny_image(1, (120, 40)), tiny_image(2, (30, 90))
ROUNDS = [("what is this?", [WIDE]), ("and now?", []), ("which one is tall?", [TALL, WIDE])]
DECODINGS = {
    "greedy": Decoding(max_new_tokens=10),
    "drawn": Decoding(max_new_tokens=10, temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, seed=7),
    "penalties": Decoding(
        max_new_tokens=10, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5,
        logit_bias=((5, 3.0),), logprobs=2,
    ),
    "beams": Decoding(max_new_tokens=6, num_beams=3),
}  # fmt: skip


def talk(predictor: Any, decoding: Decoding) -> list[Any]:
    """Ids, reused positions and encoded images of each round."""
    session, said = ChatSession(predictor, decoding=decoding), []
    for text, images in ROUNDS:
        session.answer(text, images)
        said.append((session.stats.answer_ids, session.stats.reused_rows, session.turns[-1].answer))
    return said


def prompts(predictor: Any) -> list[Any]:
    """Unequal ones: one image, two, none."""
    asked = [("one", [WIDE]), ("what are these two pictures of?", [TALL, WIDE]), ("how many?", [])]
    return [
        predictor.prompt(predictor.question(text, len(images)), [predictor.picture(image) for image in images])
        for text, images in asked
    ]


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
