# SPDX-License-Identifier: Apache-2.0
"""Rounds about one image in a session that keeps its cache, and again in one that kept nothing (bench.py chat)."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "what is in the image and where does it stand tell me more about the red circle on the left"


def chat(model: Any, spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Round 1 asks about an image; round 2 asks again, once in the same session and once in one that kept nothing."""
    fresh, picture, again = rounds(model)

    def run() -> dict[str, float]:
        session, other = fresh(), fresh()
        session.answer(QUESTION[:22], [picture], max_new_tokens=spec["tokens"])
        other.turns = list(session.turns)  # their features come along, so the encoding is done beside it
        begun = time.process_time()
        session.answer(QUESTION, max_new_tokens=1)
        between = time.process_time()
        again(other)
        return {"kept": between - begun, "again": time.process_time() - between}

    return run


def rounds(model: Any) -> tuple[Callable[[], Any], Any, Callable[[Any], None]]:
    """What makes a session of ``model``, a picture, and what asks a session that first has to encode the picture."""
    import paddle
    from PIL import Image

    from paddlemix.demo.model import write_tokenizer
    from paddlemix.generation.predictor import Predictor
    from paddlemix.generation.session import ChatSession
    from paddlemix.imaging.processor import ImageProcessor
    from paddlemix.text import templates
    from paddlemix.text.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), [QUESTION, " ".join(QUESTION.split()[::-1])])
        tokenizer = load_tokenizer(folder)
    processor = ImageProcessor(model.config.image, model.config.vision)
    picture = Image.effect_mandelbrot((640, 480), (-2, -1.5, 1, 1.5), 100).convert("RGB")

    def fresh() -> ChatSession:
        return ChatSession(Predictor(model, tokenizer, processor, templates.get(model.config.template)))

    def again(session: ChatSession) -> None:
        model.encode_images(paddle.to_tensor(processor(picture).pixels))
        session.answer(QUESTION, max_new_tokens=1)

    return fresh, picture, again
