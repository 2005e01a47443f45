# SPDX-License-Identifier: Apache-2.0
"""Token ids from a model: prefill a plan, then one token a step. Knows ids only, no text.

A step costs one transfer to the host: the picked ids (greedy) or the scores (sampling, beams).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import paddle

from paddlemix.generation.sampling import Decoding, Sampler
from paddlemix.models.answering import AnsweringModel
from paddlemix.models.llm.cache import Cache
from paddlemix.ops.attention.contract import Mask
from paddlemix.splice.plan import Plan
from paddlemix.utils.errors import BackendError


@paddle.no_grad()
def encode_images(model: AnsweringModel, pixels: np.ndarray) -> paddle.Tensor:
    """Feature rows ``[N, P, D]`` of tiles ``[N, 3, S, S]``, tile by tile.

    One tile at a time keeps the activations small, and on a CPU a batch of tiles was measured to be no faster.
    """
    rows = [model.encode_images(paddle.to_tensor(tile[None]).astype(model.dtype)) for tile in pixels]
    return rows[0] if len(rows) == 1 else paddle.concat(rows)


@dataclass
class _Run:
    """A batch on its way: the cache, where each row starts, and the next position of each row."""

    model: AnsweringModel
    cache: Cache
    starts: np.ndarray
    next_position: np.ndarray
    vocab_size: int | None
    seen: list[list[int]] = field(default_factory=list)

    def _mask(self) -> Mask:
        starts = paddle.to_tensor(self.starts) if self.starts.any() else None
        return Mask(causal=True, key_starts=starts, offset=self.cache.offset)

    def _known(self, scores: paddle.Tensor) -> paddle.Tensor:
        """``[B, V]`` of the ids that the tokenizer knows."""
        return scores if self.vocab_size is None else scores[:, : self.vocab_size]

    @paddle.no_grad()
    def prefill(self, plan: Plan, features: paddle.Tensor | None) -> paddle.Tensor:
        """Run the plan's columns behind the cache; scores ``[B, V]`` of the token that comes next in each row."""
        blend = None
        if plan.blend_index is not None:
            blend = paddle.to_tensor(plan.blend_index), paddle.to_tensor(plan.blend_weight)
        rows = self.model.embed(paddle.to_tensor(plan.token_ids), paddle.to_tensor(plan.source), features, blend)
        kept = self.next_position - plan.lengths
        positions = plan.positions + kept[:, None]
        length, places = plan.token_ids.shape[1], paddle.to_tensor(positions)
        if (plan.starts + plan.lengths == length).all():
            return self._known(self.model.score_next(rows, places, self._mask(), self.cache))
        # Padded on the right: the padding leaves the cache again, and each row ends at a column of its own.
        ends = paddle.to_tensor(np.arange(len(kept)) * length + plan.lengths - 1)
        scores = self.model.score_next(rows, places, self._mask(), self.cache, ends)
        self.cache.trim(self.next_position)
        return self._known(scores)

    @paddle.no_grad()
    def step(self, ids: Sequence[int]) -> paddle.Tensor:
        """Feed one id a row; scores ``[B, V]`` of the next."""
        tokens = np.asarray(ids, dtype=np.int64)[:, None]
        source = np.arange(len(ids), dtype=np.int64)[:, None]
        rows = self.model.embed(paddle.to_tensor(tokens), paddle.to_tensor(source), None)
        positions = paddle.to_tensor(self.next_position[:, None])
        scores = self.model.score_next(rows, positions, self._mask(), self.cache)
        self.next_position = self.next_position + 1
        return self._known(scores)


def _start(
    model: AnsweringModel,
    plan: Plan,
    pixels: np.ndarray | None,
    features: paddle.Tensor | None,
    cache: Cache | None,
    vocab_size: int | None,
) -> tuple[_Run, paddle.Tensor]:
    kept = _kept(plan, cache)
    if features is None and pixels is not None and len(pixels):
        features = encode_images(model, pixels)
    cache = model.new_cache(len(plan.lengths)) if cache is None else cache
    run = _Run(model, cache, plan.starts, plan.lengths + kept, vocab_size)
    return run, run.prefill(plan, features)


def _kept(plan: Plan, cache: Cache | None) -> np.ndarray | int:
    """Places of the rows that stand in the cache already; ValueError for rows that the cache cannot hold."""
    if cache is not None and cache.own_lengths:
        if plan.starts.any():
            raise ValueError("rows behind a cache with a length for each are planned with padding_side='right'")
        return cache.lengths
    if (plan.starts + plan.lengths != plan.token_ids.shape[1]).any():
        raise ValueError(
            "rows of different lengths are generated from a plan with padding_side='left', or with a static cache"
        )
    kept = 0 if cache is None else cache.offset
    if kept and len(plan.lengths) != 1:
        raise ValueError("only a single row can go on behind a cache that is not empty, unless it is a static cache")
    return kept


def next_scores(model: AnsweringModel, plan: Plan, features: paddle.Tensor | None = None) -> paddle.Tensor:
    """Scores ``[B, V]`` (float32) of the token that follows each row of a left-padded plan."""
    return _start(model, plan, None, features, None, None)[1]


def generate(
    model: AnsweringModel,
    plan: Plan,
    pixels: np.ndarray | None = None,
    decoding: Decoding | None = None,
    *,
    features: paddle.Tensor | None = None,
    cache: Cache | None = None,
    samplers: Sequence[Sampler] | None = None,
) -> Iterator[list[int]]:
    """Yield one id a row until every row has ended or ``max_new_tokens`` are out.

    ``plan`` is left padded when its rows differ in length; for a ``cache`` whose rows have lengths of their own
    (``model.new_static_cache``, with room for the plan's columns and the new tokens) it is right padded. ``pixels
    [N, 3, S, S]`` are its tiles in order, or ``features [N, P, D]`` if they are encoded already. A ``cache`` that is
    not empty holds what stands before the plan's only row (a static one: before each row). A row's ending id is
    yielded; after it the row yields ``decoding.pad_id``.
    When an id is yielded, all ids before it are in the cache and it is not. Beams yield all their ids at the end.
    """
    decoding = decoding or Decoding()
    run, scores = _start(model, plan, pixels, features, cache, decoding.vocab_size)
    if decoding.num_beams > 1:
        if len(plan.lengths) != 1:
            raise ValueError("beam search takes one row; generate_batch goes row by row")
        yield from ([token] for token in _beam_search(run, scores, decoding))
        return
    samplers = samplers or [Sampler(decoding, (0, row)) for row in range(len(plan.lengths))]
    run.seen = [[] for _ in samplers]
    finished = [False] * len(samplers)
    for count in range(1, decoding.max_new_tokens + 1):
        picked = pick(scores, samplers, run.seen)
        ids = [decoding.pad_id if done else token for done, token in zip(finished, picked, strict=True)]
        finished = [done or token in decoding.ends for done, token in zip(finished, ids, strict=True)]
        yield ids
        if all(finished) or count == decoding.max_new_tokens:
            return
        for row, token in zip(run.seen, ids, strict=True):
            row.append(token)
        scores = run.step(ids)


def generate_batch(
    model: AnsweringModel,
    plan: Plan,
    pixels: np.ndarray | None = None,
    decoding: Decoding | None = None,
    *,
    features: paddle.Tensor | None = None,
    cache: Cache | None = None,
) -> list[list[int]]:
    """All ids of every row: up to and with the ending id, then ``pad_id`` to the length of the longest row.

    ``pixels`` float32 [N, 3, S, S], or in their place ``features`` [N, P, D] in the model's dtype; ``cache`` as for
    ``generate``.
    """
    steps = list(generate(model, plan, pixels, decoding, features=features, cache=cache))
    return [list(row) for row in zip(*steps, strict=True)]


def pick(scores: paddle.Tensor, samplers: Sequence[Sampler], seen: Sequence[list[int]]) -> list[int]:
    """One id a row from scores ``[B, V]``; exactly one transfer to the host. BackendError if they are not finite."""
    if all(sampler.decoding.takes_likeliest for sampler in samplers):
        # The sum is only there to find NaN and inf; it rides along, so that the check costs no second transfer.
        best = paddle.stack([scores.argmax(axis=-1).astype("float64"), scores.sum(axis=-1).astype("float64")])
        ids, sums = best.numpy()
        _require_finite(sums)
        return [int(token) for token in ids]
    rows = scores.numpy()
    _require_finite(rows)
    return [sampler.next(row, ids) for sampler, row, ids in zip(samplers, rows, seen, strict=True)]


def _require_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise BackendError(
            "the model's scores are not finite (NaN or inf); in float16 large activations overflow: "
            "use bfloat16 or float32"
        )


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@dataclass
class _Beams:
    """The finished hypotheses of a beam search: at most ``width``, best scores kept."""

    width: int
    length_penalty: float
    done: list[tuple[float, list[int]]] = field(default_factory=list)

    def worth(self, total: float, length: int) -> float:
        """Summed log probability over length, the order hypotheses are ranked in."""
        return total / length**self.length_penalty

    def add(self, total: float, ids: list[int]) -> None:
        """Take a finished hypothesis and let the worst go when there are too many."""
        self.done.append((self.worth(total, len(ids)), ids))
        self.done.sort(key=lambda item: -item[0])
        del self.done[self.width :]

    def closed(self, best_open: float, length: int) -> bool:
        """No open beam can still beat the worst finished one (transformers 4.37, ``early_stopping=False``)."""
        return len(self.done) == self.width and self.done[-1][0] >= self.worth(best_open, length)


def _beam_search(run: _Run, scores: paddle.Tensor, decoding: Decoding) -> list[int]:
    """Beam search as in transformers 4.37 for one row: ending ids leave the beam, so more candidates are taken."""
    width = decoding.num_beams
    kept = width * max(2, 1 + len(decoding.ends))
    beams = _Beams(width, decoding.length_penalty)
    run.cache.reorder([0] * width)
    run.starts = np.repeat(run.starts, width)
    run.next_position = np.repeat(run.next_position, width)
    # All beams are equal at first: only the first one may give candidates.
    totals = np.array([0.0] + [-1e9] * (width - 1), dtype=np.float32)
    rows: list[list[int]] = [[] for _ in range(width)]
    table = np.repeat(scores.numpy(), width, axis=0)
    for length in range(1, decoding.max_new_tokens + 1):
        _require_finite(table)
        candidates = (_log_softmax(table.astype(np.float32)) + totals[:, None]).reshape(-1)
        best = np.argsort(-candidates, kind="stable")[:kept]
        rows, totals, parents = _advance(beams, rows, candidates, best, table.shape[-1], decoding)
        if beams.closed(float(candidates[best[0]]), length):
            return beams.done[0][1]
        if length < decoding.max_new_tokens:
            run.cache.reorder(parents)
            table = run.step([row[-1] for row in rows]).numpy()
    for total, row in zip(totals, rows, strict=True):
        beams.add(float(total), row)
    return beams.done[0][1]


def _advance(
    beams: _Beams, rows: list[list[int]], candidates: np.ndarray, best: np.ndarray, vocab: int, decoding: Decoding
) -> tuple[list[list[int]], np.ndarray, list[int]]:
    """The next open beams: their ids, summed log probabilities and which beam each came from."""
    grown, totals, parents = [], [], []
    for rank, place in enumerate(best):
        parent, token = divmod(int(place), vocab)
        if token in decoding.ends:
            # Only an ending among the first ``width`` candidates counts; a worse one would not have stayed open.
            if rank < beams.width:
                beams.add(float(candidates[place]), [*rows[parent], token])
            continue
        grown.append([*rows[parent], token])
        totals.append(candidates[place])
        parents.append(parent)
        if len(grown) == beams.width:
            break
    return grown, np.asarray(totals, dtype=np.float32), parents
