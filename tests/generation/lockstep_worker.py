# SPDX-License-Identifier: Apache-2.0
"""``lockstep_worker.py MODEL CARDS DEVICE FILE``: answers of a model over several cards (or one), written to FILE."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils import device as devices  # noqa: E402 - after the path


def answers(model: str, cards: int, device: str) -> dict[str, Any]:
    """Ids of a batch with images that come at different times, of a conversation, of drawn answers, and scores."""
    from paddlemix.generation.load import load_predictor
    from paddlemix.generation.sampling import Decoding
    from paddlemix.generation.session import ChatSession
    from tests.tiny import tiny_image

    predictor = load_predictor(model, cards=cards, device=device, dtype="float32")
    pictures = [predictor.picture(tiny_image(kind)) for kind in range(3)]
    numbers = (0, 1, 2, 1, 0, 3)
    asked = [
        predictor.prompt(predictor.question(f"what is this {place}?", number), pictures[:number])
        for place, number in enumerate(numbers)
    ]
    told: dict[str, Any] = {}
    told["batch"] = [answer.ids for answer in predictor.answer(asked, Decoding(max_new_tokens=12), batch_size=3)]
    drawn = Decoding(max_new_tokens=8, temperature=1.0, seed=5)
    told["drawn"] = [answer.ids for answer in predictor.answer(asked[:2], drawn)]
    told["scores"] = np.round(predictor.scores(asked[:2]).max(axis=-1), 3).tolist()
    session = ChatSession(predictor, decoding=Decoding(max_new_tokens=10))
    told["rounds"] = [session.answer("what is shown?", [tiny_image(4)]), session.answer("why?")]
    told["reused"] = session.stats.reused_rows > 10
    left = predictor.stream(asked[1], Decoding(max_new_tokens=50))
    next(left)
    left.close()
    told["after one was closed"] = predictor.answer([asked[5]], Decoding(max_new_tokens=6))[0].ids
    told["interrupted"] = interrupted(predictor, asked[2])
    told["after an interrupt"] = predictor.answer([asked[2]], Decoding(max_new_tokens=6))[0].ids
    return told


def interrupted(predictor: Any, prompt: Any) -> bool:
    """Ctrl-C in the middle of an answer."""
    from paddlemix.generation.sampling import Decoding

    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    until = time.monotonic() + 20
    try:
        while time.monotonic() < until:
            predictor.stream(prompt, Decoding(max_new_tokens=200)).read()
    except KeyboardInterrupt:
        return True
    return False


if __name__ == "__main__":
    devices.before_paddle(sys.argv[3])
    found = answers(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    Path(sys.argv[4]).write_text(json.dumps(found))
