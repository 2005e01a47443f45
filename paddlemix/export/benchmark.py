# SPDX-License-Identifier: Apache-2.0
"""How long an answer takes: images, the first token, each further one. ``run_static_predict.py --benchmark``."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from paddlemix.generation.engine import generate
from paddlemix.generation.features import FeatureCache, Picture
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.prompt import plan_of
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.load import ImageSource
from paddlemix.utils.errors import ConfigError

QUESTION = "Describe the image in one sentence."
WARM, ROUNDS = 2, 10
"""Answers that are not counted, and those that are."""

T = TypeVar("T")


def measure(
    predictor: Predictor, images: Sequence[ImageSource], question: str, decoding: Decoding, rounds: int = ROUNDS
) -> Iterator[str]:
    """Lines with medians in wall-clock time; nothing of one answer is kept for the next.

    An answer has all of ``decoding.max_new_tokens``: nothing ends it before. Of several beams the whole answer is
    timed, since its tokens come at once. ConfigError for a longer answer than the context holds.
    """
    decoding = predictor.decoding(decoding).with_changes(eos_ids=(), stop_ids=())
    predictor.features = FeatureCache(max_bytes=0)
    times: list[tuple[float, float, float]] = []
    for _ in range(WARM + rounds):
        seeing, pictures = _timed(lambda: _seen(predictor, images))
        prompt = predictor.prompt(predictor.question(question, len(pictures)), pictures)
        _require_room(prompt.length, decoding.max_new_tokens, predictor.context)
        plan, features = plan_of([prompt], predictor.model.config.tokens_per_tile)
        steps = generate(predictor.model, plan, None, decoding, features=features)
        first, _ = _timed(lambda: next(steps))  # noqa: B023 - called at once
        rest, count = _timed(lambda: sum(1 for _ in steps))  # noqa: B023
        times.append((seeing, first, rest / (1 if decoding.num_beams > 1 else max(1, count))))
    seeing, first, each = (statistics.median(values) for values in zip(*times[WARM:], strict=True))
    tokens = decoding.max_new_tokens
    yield f"{len(images)} image(s), {prompt.length} positions, {tokens} tokens; median of {rounds} answers"
    yield f"  images        {seeing * 1000:10.1f} ms"
    if decoding.num_beams > 1:
        yield f"  {decoding.num_beams} beams       {(first + each) * 1000:10.1f} ms"
        yield f"Time:  {seeing + first + each:.4f} s an answer"
        return
    yield f"  first token   {first * 1000:10.1f} ms"
    if tokens > 1:
        yield f"  each further  {each * 1000:10.1f} ms  ({1 / each:.1f} tokens a second)"
    yield f"Time:  {seeing + first + each * (tokens - 1):.4f} s an answer"


def _require_room(prompt: int, answer: int, context: int) -> None:
    if prompt + answer > context:
        raise ConfigError(
            f"max_new_tokens is {answer}: the context has {context} positions, and the prompt takes {prompt} of them; "
            f"give at most {context - prompt}"
        )


def _seen(predictor: Predictor, images: Sequence[ImageSource]) -> list[Picture]:
    """The images with their features, which are there when this returns."""
    pictures = [predictor.picture(image) for image in images]
    for picture in pictures:
        picture.features.sum().item()
    return pictures


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begun = time.perf_counter()
    done = work()
    return time.perf_counter() - begun, done
