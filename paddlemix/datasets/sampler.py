# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch: rows of like length, and of like modality, meet in one batch.

The rules are LLaVA's (llava_trainer.py), and equal to it when its permutations are given; only the source of chance is
ours, because torch's cannot be reproduced elsewhere. An order depends on seed and epoch alone: a run that stops knows
its place by counting batches.
"""

from collections.abc import Callable, Sequence

import numpy as np

from paddlemix.utils.errors import DataError

WINDOW = 8
"""Megabatches that are sorted by length together (``length_grouped``). With 1, as in the original, a single process
gets batches of any lengths, and several get worse ones than chance would give: the sorted megabatch is dealt out so
that every process has long and short rows."""

EpochOrder = Callable[[int], Sequence[int]]
"""Contract: the indices of one pass over the data, the same for the same epoch number in every process."""

Permute = Callable[[int], Sequence[int]]
"""Contract: a permutation of ``range(n)``."""


def shuffled(rows: int, seed: int) -> EpochOrder:
    """A fresh permutation per epoch that depends on ``seed`` and the epoch only, never on global random state."""
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(rows).tolist()


def even_chunks(indices: Sequence[int], lengths: Sequence[int], chunks: int) -> list[list[int]]:
    """``indices`` in ``chunks`` of equal count and nearly equal total length; dealt in turn if they do not divide."""
    if len(indices) % chunks:
        return [list(indices[start::chunks]) for start in range(chunks)]
    size = len(indices) // chunks
    found: list[list[int]] = [[] for _ in range(chunks)]
    totals: list[float] = [0.0] * chunks
    for index in indices:
        shortest = totals.index(min(totals))
        found[shortest].append(index)
        totals[shortest] += lengths[index]
        if len(found[shortest]) == size:
            totals[shortest] = float("inf")
    return found


def useful_share(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """Share of the positions of padded batches that hold a token.

    ``order`` are indices of ``lengths`` as they are trained on; each ``batch_size`` of them (one process, one
    micro-batch) are padded to their longest. 1.0 without padding.
    """
    ordered = np.asarray(lengths, dtype=np.int64)[np.asarray(order, dtype=np.int64)]
    starts = np.arange(0, len(ordered), batch_size)
    longest = np.maximum.reduceat(ordered, starts)
    counts = np.diff(np.append(starts, len(ordered)))
    return float(ordered.sum() / (longest * counts).sum())


def length_grouped(lengths: Sequence[int], batch_size: int, world: int, permute: Permute, window: int = 1) -> list[int]:
    """Shuffle, cut into megabatches (``world * batch_size`` rows), sort each by length, deal each to the processes.

    ``window`` megabatches are sorted together before they are cut (1 is the original): batches then hold rows of
    nearly one length, at the price of less chance in who meets whom. The order of megabatches inside a window is drawn.
    """
    order = list(permute(len(lengths)))
    size = world * batch_size
    megabatches: list[list[int]] = []
    for start in range(0, len(order), size * window):
        rows = sorted(order[start : start + size * window], key=lambda index: lengths[index], reverse=True)
        cut = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        full = len(cut) - (len(cut[-1]) < size)
        drawn = list(permute(full)) if window > 1 else list(range(full))
        megabatches += [cut[number] for number in [*drawn, *range(full, len(cut))]]
    return [index for rows in megabatches for chunk in even_chunks(rows, lengths, world) for index in chunk]


def modality_grouped(
    lengths: Sequence[int], batch_size: int, world: int, permute: Permute, window: int = 1
) -> list[int]:
    """As ``length_grouped``, and a megabatch holds rows with images (positive lengths) or without (negative).

    The last, usually incomplete megabatches of both kinds come at the end, sorted by index. Where there is one kind
    only, the lengths keep their sign: rows without images are then sorted from short to long, as in the original.
    """
    if any(length == 0 for length in lengths):
        raise DataError(f"row {list(lengths).index(0)} has length 0; rows of a data set are never empty")
    signs = {length > 0 for length in lengths}
    if len(signs) == 1:
        return length_grouped(lengths, batch_size, world, permute, window)
    size = world * batch_size
    whole: list[list[int]] = []
    rest: list[int] = []
    for pictured in (True, False):
        rows = [index for index, length in enumerate(lengths) if (length > 0) == pictured]
        own = [abs(lengths[index]) for index in rows]
        order = [rows[number] for number in length_grouped(own, batch_size, world, permute, window)]
        megabatches = [order[start : start + size] for start in range(0, len(order), size)]
        whole += megabatches[:-1]
        rest += megabatches[-1]
    drawn = [whole[number] for number in permute(len(whole))]
    return [index for megabatch in [*drawn, sorted(rest)] for index in megabatch]


class LengthGroupedSampler:
    """``sampler(epoch)`` is the order of that epoch: the same in every process, and the same after a resume.

    ``lengths`` are a data set's ``modality_lengths`` (``by_modality``) or ``lengths``. Consecutive ``batch_size`` rows
    form a batch, consecutive batches go to the ``world`` processes in turn.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        world: int = 1,
        seed: int = 0,
        by_modality: bool = True,
        window: int = WINDOW,
    ) -> None:
        self.lengths = [int(length) for length in lengths]
        self.batch_size = batch_size
        self.world = world
        self.seed = seed
        self.window = window
        self._group = modality_grouped if by_modality else length_grouped

    def __len__(self) -> int:
        return len(self.lengths)

    def __call__(self, epoch: int) -> list[int]:
        """The indices of all rows, each once."""
        draw = np.random.default_rng([self.seed, epoch])
        return self._group(
            self.lengths, self.batch_size, self.world, lambda n: draw.permutation(n).tolist(), self.window
        )
