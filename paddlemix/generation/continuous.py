# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: requests that come at any time share each step of the model; a row that ends makes room at once.

A prompt is run in pieces between the steps of the rows that are answering already, so nobody waits for a long prompt.
The shapes of a step change only by powers of two (slots) and by blocks (places), which suits devices that compile one
kernel for each shape. Knows ids only, no text; whoever reads the text ends a row with ``cancel``.
(Orca, Yu et al. 2022; prefill in pieces: Sarathi, Agrawal et al. 2023.)
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import paddle

from paddlemix.generation.engine import pick
from paddlemix.generation.prefix import Slot, length_of
from paddlemix.generation.prefix_store import PrefixStore
from paddlemix.generation.prompt import Prompt, plan_of
from paddlemix.generation.sampling import Decoding, Sampler
from paddlemix.models.answering import AnsweringModel, Rows
from paddlemix.models.llm.cache import BLOCK, KVCache
from paddlemix.models.llm.slot_cache import RowCache, SlotCache
from paddlemix.ops.attention.contract import Mask
from paddlemix.utils.errors import BackendError

PIECE = 512
"""Positions of a prompt that are run between two steps of the other rows."""

State = Literal["waiting", "prefill", "running", "done", "cancelled", "failed"]


@dataclass(eq=False)
class Row:
    """One request on its way. ``ids`` grow by one id a step, the ending one included; ``reused`` positions were kept.

    ``state`` is "done" after an ending id or ``max_new_tokens``, "failed" when its scores were not finite (``error``).
    """

    prompt: Prompt
    decoding: Decoding
    sampler: Sampler
    state: State = "waiting"
    ids: list[int] = field(default_factory=list)
    reused: int = 0
    error: BackendError | None = None

    @property
    def open(self) -> bool:
        """Whether more ids may come."""
        return self.state in ("waiting", "prefill", "running")


@dataclass
class _Prefill:
    """The row whose prompt is being run: what is left of it ``[1, L, D]``, and the cache that takes it."""

    row: Row
    cache: KVCache
    embeds: Rows
    done: int = 0


class ContinuousBatch:
    """At most ``slots`` rows that share each step of ``model``; others wait in the order in which they came.

    >>> batch = ContinuousBatch(model, slots=8)
    >>> row = batch.submit(prompt, decoding)
    >>> while batch.busy:
    ...     for row, token in batch.step(): ...

    ``prefixes`` is shared by whoever asks the model (None: nothing is kept); ``keep_answers`` keeps the answers there
    too, for conversations that go on. ``slots`` may be changed between steps, to ``taken`` at the least. It belongs to
    one thread. Beams are not for it (``engine.generate``).
    """

    def __init__(
        self,
        model: AnsweringModel,
        slots: int = 8,
        *,
        piece: int = PIECE,
        prefixes: PrefixStore | None = None,
        keep_answers: bool = False,
    ) -> None:
        if slots < 1 or piece < 1:
            raise ValueError(f"slots {slots} and piece {piece}: both must be 1 or more")
        self.model = model
        self.slots = slots
        self.piece = piece
        self.prefixes = prefixes
        self.keep_answers = keep_answers
        self._waiting: deque[Row] = deque()
        self._prefill: _Prefill | None = None
        self._cache: SlotCache | None = None
        self._rows: list[Row | None] = []
        self._vocab_size: int | None = None
        self._at_work: Row | None = None

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._prefill or self.running)

    @property
    def waiting(self) -> int:
        """Requests whose prompt has not been begun."""
        return len(self._waiting)

    @property
    def taken(self) -> int:
        """Slots that are not free: those of the rows that run, and one for a prompt that is being run."""
        return self.running + (self._prefill is not None)

    @property
    def running(self) -> int:
        """Rows that get an id in each step."""
        return sum(row is not None for row in self._rows)

    def rest(self) -> None:
        """Give the memory of the slots back; for a batch that nobody asks at the moment."""
        if not self.busy:
            self._cache, self._rows = None, []

    def submit(self, prompt: Prompt, decoding: Decoding, draw: Sequence[int] = (0,)) -> Row:
        """A row that waits for a slot. ``draw`` tells the random answers of one seed apart."""
        if decoding.num_beams > 1:
            raise ValueError("beam search takes one row and no slots; use engine.generate")
        if self.busy and decoding.vocab_size != self._vocab_size:
            raise ValueError(f"vocab_size {decoding.vocab_size} beside rows with {self._vocab_size}: one for all")
        self._vocab_size = decoding.vocab_size
        row = Row(prompt, decoding, Sampler(decoding, draw))
        self._waiting.append(row)
        return row

    def cancel(self, row: Row) -> None:
        """No more ids for the row; its slot is free at once. A row that has ended stays as it is."""
        if not row.open:
            return
        if row.state == "waiting":
            self._waiting.remove(row)
        elif row.state == "prefill":
            self._prefill = None
        self._release(row, "cancelled")

    @paddle.no_grad()
    def step(self) -> list[tuple[Row, int]]:
        """One piece of a waiting prompt, then one id for each running row; the new ids.

        When it raises, the rows of ``at_fault`` cannot go on; the others can.
        """
        new = self._run_piece()
        self._at_work = None
        return new + self._decode()

    def at_fault(self) -> list[Row]:
        """After a step that raised: the rows whose work it was. ``cancel`` them before the next step."""
        return [row for row in self._rows if row is not None] if self._at_work is None else [self._at_work]

    def _run_piece(self) -> list[tuple[Row, int]]:
        if self._prefill is None:
            if not self._waiting or self.running >= self.slots:
                return []
            row = self._waiting.popleft()
            self._at_work, row.state = row, "prefill"
            self._prefill = self._begin(row)
        work = self._prefill
        self._at_work = work.row
        # Keys whose rotation depends on the length of the text are made in one piece, and belong to that text alone.
        whole = self.model.config.text.rotates_anew(work.row.prompt.length)
        part = work.embeds if whole else work.embeds[:, work.done : work.done + self.piece]
        first, count = work.cache.offset, part.shape[1]
        positions = paddle.arange(first, first + count).unsqueeze(0)
        scores = self.model.score_next(part, positions, Mask(causal=True, offset=first), work.cache)
        work.done += count
        if work.done < work.embeds.shape[1]:
            return []
        self._prefill = None
        kept = RowCache(*map(tuple, work.cache.lend()), work.cache.length)
        self._keep(work.row.prompt.slots, kept)
        found = self._take([work.row], self._known(scores))
        if work.row.open:
            self._admit(work.row, kept)
        return found

    def _begin(self, row: Row) -> _Prefill:
        """Plan what of the prompt is not kept already."""
        slots, cache, skip = row.prompt.slots, self.model.new_cache(1, row.prompt.length), 0
        alone = self.prefixes is None or self.model.config.text.rotates_anew(row.prompt.length)
        shared = None if alone else self.prefixes.find(slots)
        if shared is not None:
            kept, skip = shared
            row.reused = length_of(slots[:skip])
            cache.borrow(kept.keys, kept.values, row.reused)
        plan, features = plan_of([row.prompt], self.model.config.tokens_per_tile, skip=skip)
        blend = None
        if plan.blend_index is not None:
            blend = paddle.to_tensor(plan.blend_index), paddle.to_tensor(plan.blend_weight)
        embeds = self.model.embed(paddle.to_tensor(plan.token_ids), paddle.to_tensor(plan.source), features, blend)
        return _Prefill(row, cache, embeds)

    def _admit(self, row: Row, kept: RowCache) -> None:
        """A slot for the row, whose first id is known; the cache grows when it has to."""
        if self._cache is None:
            self._cache = SlotCache(kept, 1, self._bucket(kept.length + 1), self.model.runtime)
            self._rows = [None]
        if None not in self._rows or kept.length >= self._cache.capacity:
            count = min(self.slots, 2 * len(self._rows)) if None not in self._rows else len(self._rows)
            self._resize(count, max(kept.length + 1, self._longest() + 1))
        slot = self._rows.index(None)
        self._cache.put(slot, kept)
        self._rows[slot] = row
        row.state = "running"

    def _resize(self, slots: int, places: int) -> None:
        rows = [number for number, row in enumerate(self._rows) if row is not None]
        self._cache.resize(rows, slots, self._bucket(places))
        self._rows = [self._rows[number] for number in rows] + [None] * (slots - len(rows))

    def _longest(self) -> int:
        return 0 if self._cache is None else int(self._cache.filled.max())

    def _fit(self) -> None:
        """Give slots and places back when half would do, and add places when a row has none left."""
        slots = len(self._rows)
        while slots > 1 and self.running <= slots // 2 and not (self._waiting or self._prefill):
            slots = -(-slots // 2)
        places = self._longest() + 1
        capacity = self._cache.capacity
        if slots < len(self._rows) or places > capacity or 2 * self._bucket(places) <= capacity:
            self._resize(slots, places)

    def _decode(self) -> list[tuple[Row, int]]:
        # A row that has just got its first id is fed it now, in the same step as the others.
        if not self.running:
            return []
        self._fit()
        rows, cache = self._rows, self._cache
        tokens = np.array([row.ids[-1] if row else 0 for row in rows], dtype=np.int64)[:, None]
        source = np.arange(len(rows), dtype=np.int64)[:, None]
        embeds = self.model.embed(paddle.to_tensor(tokens), paddle.to_tensor(source), None)
        positions = paddle.to_tensor(cache.filled[:, None])
        mask = Mask(causal=True, offset=cache.offset)
        live = [number for number, row in enumerate(rows) if row is not None]
        scores = self._known(self.model.score_next(embeds, positions, mask, cache))
        if len(live) < len(rows):
            scores = paddle.concat([scores[number : number + 1] for number in live])
        return self._take([rows[number] for number in live], scores)

    def _known(self, scores: paddle.Tensor) -> paddle.Tensor:
        return scores if self._vocab_size is None else scores[:, : self._vocab_size]

    def _take(self, rows: list[Row], scores: paddle.Tensor) -> list[tuple[Row, int]]:
        """Pick the next id of each row and end those that have theirs."""
        try:
            picked = self._pick(scores, rows)
        except BackendError as error:
            return self._take_sound(rows, scores, error)
        for row, token in zip(rows, picked, strict=True):
            row.ids.append(token)
            if token in row.decoding.ends or len(row.ids) >= row.decoding.max_new_tokens:
                self._release(row, "done")
        return list(zip(rows, picked, strict=True))

    def _pick(self, scores: paddle.Tensor, rows: list[Row]) -> list[int]:
        return pick(scores, [row.sampler for row in rows], [row.ids for row in rows])

    def _take_sound(self, rows: list[Row], scores: paddle.Tensor, error: BackendError) -> list[tuple[Row, int]]:
        """One row with scores that are not finite fails alone."""
        if len(rows) == 1:
            rows[0].error = error
            self._release(rows[0], "failed")
            return []
        return [found for number, row in enumerate(rows) for found in self._take([row], scores[number : number + 1])]

    def _keep(self, slots: Sequence[Slot], kept: RowCache) -> None:
        if self.prefixes is not None and not self.model.config.text.rotates_anew(kept.length):
            self.prefixes.put(slots, kept)

    def _release(self, row: Row, state: State) -> None:
        running, row.state = row.state == "running", state
        if not running:
            return
        slot = self._rows.index(row)
        if self.prefixes is not None and self.keep_answers and state != "failed":
            fed = self._cache.filled[slot] - row.prompt.length
            self._keep([*row.prompt.slots, *(Slot(token) for token in row.ids[:fed])], self._cache.take(slot))
        self._cache.free(slot)
        self._rows[slot] = None

    def _bucket(self, places: int) -> int:
        """Places of the cache for rows of so many: whole blocks on a CPU, which reads every place of a cache in a step;
        elsewhere powers of two of them, because a card may compile each shape anew."""
        blocks = -(-places // BLOCK)
        if self.model.runtime.device != "cpu":
            blocks = 1 << (blocks - 1).bit_length()
        return blocks * BLOCK
